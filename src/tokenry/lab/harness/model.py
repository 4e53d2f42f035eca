"""The model class ``tokenry`` of the Language Model Evaluation Harness (``lm_eval``): a hub model under a KV-cache method.

``HFLM`` (Hugging Face models) with one difference: what is asked about a context is answered from its compressed cache.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from inspect import signature
from typing import Any

import torch
from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
from lm_eval.models import huggingface  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from tokenry.lab.compare.methods import kv_method
from tokenry.lab.harness.scoring import score_continuations
from tokenry.lazy import suggest
from tokenry.pruning.kv_method import CacheMethod

HFLM: Any = huggingface.HFLM  # its decorator hides the class from type checkers
Request = tuple[Any, list[int], list[int]]
"""What the harness asks: its own key, token ids of the context, token ids of the continuation."""
_LOG = logging.getLogger(__name__)
_LOADING = ("attn_implementation", "device_map", "quantization_config")
_BASE = tuple(name for name in signature(HFLM.__init__).parameters if name not in ("self", "kwargs"))


def harness_method(name: str, **options: Any) -> CacheMethod:
    """The KV-cache method of that name with these options of its constructor; lists stand for tuples.

    Raises:
        ValueError: unknown name or option, or a value the method refuses.
    """
    kind = type(kv_method(name, 1.0))
    known = [field.name for field in fields(kind)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"{option} is no argument of the model or of {name}{suggest(option, [*known, *_BASE])}; "
                f"{name} takes {', '.join(known)}; loading takes {', '.join(_LOADING)} and the arguments of HFLM"
            )
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


@register_model("tokenry")
class TokenryLM(HFLM):
    """``lm_eval --model tokenry --model_args pretrained=...,method=d2o,budget=0.2``.

    - ``loglikelihood``: the context is run with the method attached, so that its cache is compressed; the continuations are
      then scored on copies of that cache, and a context that several continuations share is run once. `batch_size` counts
      contexts. A context of one token is never compressed.
    - ``generate_until``: the harness's own, with the method attached.
    - ``loglikelihood_rolling`` scores a text without a context: there is no cache to compress, and it is refused.

    Args:
        pretrained: hub id, folder, or a model.
        method: ``full``, ``streaming``, ``h2o``, ``snapkv``, ``d2o`` or another KV-cache method of the catalogue.
        **options: options of the method (``budget``, ``skip_layers`` ...), arguments of ``HFLM``, and of ``from_pretrained``
            ``attn_implementation``, ``device_map`` and ``quantization_config``.

    Raises:
        ValueError: unknown method or option.
        UnsupportedModelError: the method cannot be attached to the model.
    """

    def __init__(self, pretrained: Any, method: str = "full", **options: Any) -> None:
        own = {key: options.pop(key) for key in list(options) if key not in (*_BASE, *_LOADING)}
        self.method = harness_method(method, **own)
        self.method_name = method
        self._bytes = [0, 0]
        super().__init__(pretrained, **options)
        with self.method.attach(self.model):  # refuse a model that cannot be compressed before any work
            pass

    @property
    def cache_share(self) -> float | None:
        """Bytes of all compressed caches so far over those of the whole ones; None before the first."""
        return self._bytes[0] / self._bytes[1] if self._bytes[1] else None

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused under a method that drops anything: see the class."""
        if not self.method.is_identity:
            raise ValueError(
                f"loglikelihood_rolling scores a text without a context: method={self.method_name!r} would compress nothing, "
                "and the result would be that of the whole cache; use method=full, or a task with contexts"
            )
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        groups = self._by_context(requests)
        answers: dict[int, tuple[float, bool]] = {}
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running loglikelihood requests")
        short = [number for context, members in groups.items() if len(context) < 2 for number in members]
        if short:
            plain = super()._loglikelihood_tokens([requests[i] for i in short], disable_tqdm=True, override_bs=override_bs)
            answers.update(zip(short, plain, strict=True))
            bar.update(len(short))
        order = sorted((context for context in groups if len(context) > 1), key=len, reverse=True)
        size = self._contexts_at_once(override_bs) if order else 1
        for start in range(0, len(order), size):
            contexts = order[start : start + size]
            members = [groups[context] for context in contexts]
            done = self._score(contexts, [[requests[i][2] for i in own] for own in members])
            for own, scores in zip(members, done, strict=True):
                answers.update(zip(own, scores, strict=True))
            self._hand_on(requests, {i: answers[i] for own in members for i in own})
            bar.update(sum(map(len, members)))
        bar.close()
        return [answers[number] for number in range(len(requests))]

    def _by_context(self, requests: list[Request]) -> dict[tuple[int, ...], list[int]]:
        """Numbers of the requests by context, which is cut from the left where it does not fit, as ``HFLM`` does."""
        groups: dict[tuple[int, ...], list[int]] = {}
        cut = 0
        for number, (_, context, continuation) in enumerate(requests):
            room = self.max_length + 1 - len(continuation)  # the last token of a continuation is never run
            if room < 1:
                raise ValueError(f"a continuation must have at most {self.max_length} tokens, got {len(continuation)}")
            cut += len(context) > room
            groups.setdefault(tuple(context[-room:]), []).append(number)
        if cut:
            _LOG.warning(
                "%d of %d contexts are longer than max_length=%d and cut from the left", cut, len(requests), self.max_length
            )
        return groups

    def _contexts_at_once(self, override: int | None) -> int:
        if override is not None:
            return override
        return self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size)

    def _score(self, contexts: Any, continuations: list[list[list[int]]]) -> list[list[tuple[float, bool]]]:
        mixed = self.mixed_precision_dtype
        with torch.autocast(device_type=self.device.type, dtype=mixed, enabled=mixed is not None):
            done = score_continuations(
                self.model, self.method, contexts, continuations, dtype=self.softmax_dtype or torch.float32
            )
        self._count(done.cache_bytes, done.cache_bytes_full)
        return [[(score.log_likelihood, score.greedy) for score in own] for own in done.scores]

    def _hand_on(self, requests: list[Request], answers: dict[int, tuple[float, bool]]) -> None:
        """Give finished answers to the harness's store of responses."""
        for number, answer in answers.items():
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], answer)

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        with self.method.attach(self.model) as trace:
            out = super()._model_generate(context, *args, **kwargs)
        if trace.facts:
            self._count(trace.facts["cache_bytes"], trace.facts["cache_bytes_full"])
        return out

    def _count(self, used: int, full: int) -> None:
        self._bytes = [self._bytes[0] + used, self._bytes[1] + full]

    def get_model_info(self) -> dict[str, Any]:
        """What the result file says about the model: also the method with its options, and the share of the cache kept."""
        return {**super().get_model_info(), "kv_method": repr(self.method), "kv_cache_share": self.cache_share}
