"""Scores several token sequences that share beginnings in one run of a causal LM, and keeps the keys and values they share."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.release import as_argument, release

_CHUNK = 256


class WindowFullError(ValueError):
    """A path is longer than the model's window."""

    def __init__(self, limit: int, length: int) -> None:
        super().__init__(f"prompt must fit the model's window of {limit} tokens, got {length}")
        self.limit = limit


class PathScorer:
    """One model with the keys and values of the paths it ran last.

    A path is a sequence of ids from the first token on. Rows of one run may differ in length: each is aligned to the right, and
    rows that share more with the cache give some of it back, so that no row has a hole. One run is one call of the model. Where
    a model's rows do not stay apart, or its cache cannot be cut back, every path is run alone and whole: the answer is the same
    for every causal class, and a warning says that it is slow.

    Attributes:
        runs: calls of the model so far.
        limit: longest path that the model takes, None where its config names none.
    """

    def __init__(self, model: Any, size: int) -> None:
        """`size`: number of ids that count; logits beyond it (padded embeddings) are left out before the softmax."""
        self.model = model
        self.size = size
        self.runs = 0
        self._trusted: bool | None = False if getattr(model, "_is_stateful", False) else None
        self._rows: list[list[int]] = []
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.limit: int | None = limit if limit and limit > 0 else None
        self._causal = self._trusted is False  # a state that is read from left to right

    @torch.inference_mode()
    def token_log_probs(self, path: Sequence[int]) -> Tensor:
        """Log-probability of every token of `path` given those before it, float64 on the CPU [len(path) - 1].

        Long paths go through the model in pieces of 256 tokens, so that logits never exist for all positions at once.
        """
        found = []
        for first in range(1, len(path), _CHUNK):
            stop = min(first + _CHUNK, len(path))
            after = self._forward([list(path[:stop])], [stop - first + 1])[0]
            targets = torch.tensor(path[first:stop], device=after.device)
            found.append(after[:-1].gather(1, targets[:, None])[:, 0].double().cpu())
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    @torch.inference_mode()
    def run(self, paths: Sequence[Sequence[int]], last: Sequence[int], *, hold: bool = False) -> list[Tensor]:
        """Log-probabilities after the last ``last[r]`` tokens of every path, float32 on the CPU, each [last[r], V].

        `hold`: leave the cache as it is, for paths that end where the next ones will not go on.
        """
        return [x.cpu() for x in self._forward([list(path) for path in paths], list(last), hold=hold)]

    def _forward(self, paths: list[list[int]], last: list[int], *, hold: bool = False) -> list[Tensor]:
        for path in paths:
            self.check_fits(path)
        learning = [module for module in self.model.modules() if module.training] if self.model.training else []
        for module in learning:
            module.training = False  # drop-out would make every answer another one
        try:
            if not self._causal:
                self._check_causal()
            if self._trusted is None:
                self._trusted = self._shares(paths[0])
            if self._trusted:
                return self._together(paths, last, hold=hold)
            return [self._alone(path, n) for path, n in zip(paths, last, strict=True)]
        finally:
            for module in learning:
                module.training = True

    def _check_causal(self) -> None:
        """Refuse a model in which a token changes what is said before it.

        Raises:
            UnsupportedModelError: it does.
        """
        runs, ids = self.runs, self._probe_ids(5)
        one, other = (self._alone([*ids, last % self.size], 6)[:5] for last in (ids[0] + 1, ids[1] + 2))
        self.runs, self._causal = runs, True
        if bool((one - other).abs().max() > self._tolerance):
            name = type(self.model).__name__
            raise UnsupportedModelError(f"{name} is no causal language model: a token changes what is said before it")

    def _probe_ids(self, count: int) -> list[int]:
        """Ids from all over the vocabulary."""
        return [(13 + 7919 * k) % self.size for k in range(count)]

    @property
    def _tolerance(self) -> float:
        """Largest difference of two log-probabilities that rounding explains."""
        return 1e-3 if self.model.dtype == torch.float32 else 0.3

    def check_fits(self, path: Sequence[int]) -> None:
        """Refuse a path that is longer than the model's window.

        Raises:
            WindowFullError: it is.
        """
        if self.limit and len(path) > self.limit:
            raise WindowFullError(self.limit, len(path))

    def _alone(self, path: list[int], last: int) -> Tensor:
        """One path without a cache: right for every causal model."""
        options: dict[str, Any] = {"logits_to_keep": last} if self._keeps_logits else {}
        self.runs += 1
        output = self.model(torch.tensor([path], device=self.model.device), use_cache=False, **options)
        return torch.log_softmax(output.logits[0, -last:, : self.size].float(), dim=-1)

    def _shares(self, ids: list[int]) -> bool:
        """Whether rows of different length may share a run, and a cache may be cut back, tried on a few tokens.

        Recurrent states read the padding, some classes count positions from the start of the row, some keep no cache or one of
        their own; which ones is not to be read off a model.
        """
        runs, seed = self.runs, [*ids[:2], *self._probe_ids(6)]
        probes = [seed, [*seed[:3], (seed[3] + 1) % self.size], [*seed[:2], (seed[2] + 2) % self.size, seed[0]]]
        alone = [self._alone(path, 1)[-1] for path in probes]
        try:
            found = [rows[-1] for rows in self._together(probes[:2], [1, 1])]
            found += [rows[-1] for rows in self._together(probes[2:], [1])]
            same = all(bool((a - b).abs().max() < self._tolerance) for a, b in zip(alone, found, strict=True))
            reason = "gives other results then"
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, UnsupportedModelError) as error:
            same, reason = False, f"{type(error).__name__}: {error}"
        self.runs, self._rows, self._layers = runs, [], []
        if not same:
            name = type(self.model).__name__
            warnings.warn(
                f"{name} runs every path alone and whole, which is slow: with a cache or padded rows it {reason}; {release()}",
                stacklevel=4,
            )
        return same

    def _together(self, paths: list[list[int]], last: list[int], *, hold: bool = False) -> list[Tensor]:
        source = [self._best_row(path, len(path) - n) for path, n in zip(paths, last, strict=True)]
        new = max(len(path) - shared for path, (_, shared) in zip(paths, source, strict=True))
        keep = [max(len(path) - new, 0) for path in paths]
        width, device = max(keep), self.model.device
        ids = torch.zeros(len(paths), new, dtype=torch.long)
        mask = torch.zeros(len(paths), width + new, dtype=torch.long)
        position = torch.zeros(len(paths), new, dtype=torch.long)
        for r, path in enumerate(paths):
            fresh = len(path) - keep[r]
            ids[r, new - fresh :] = torch.tensor(path[keep[r] :])
            position[r, new - fresh :] = torch.arange(keep[r], len(path))
            mask[r, width - keep[r] : width] = 1
            mask[r, width + new - fresh :] = 1
        options: dict[str, Any] = {"logits_to_keep": max(last)} if self._keeps_logits else {}
        if len(paths) > 1 or int(mask.sum()) < mask.numel():
            options |= {"attention_mask": mask.to(device), "position_ids": position.to(device)}
        cache = self._cache([row for row, _ in source], keep)
        self.runs += 1
        output = self.model(ids.to(device), use_cache=True, **as_argument(cache), **options)
        if not cache.get_seq_length():
            raise UnsupportedModelError(f"{type(self.model).__name__} left its cache empty")
        if not hold:
            self._layers = [(cast(Any, layer).keys, cast(Any, layer).values) for layer in cache.layers]
            self._rows = paths
        return [torch.log_softmax(output.logits[r, -n:, : self.size].float(), dim=-1) for r, n in enumerate(last)]

    def _best_row(self, path: list[int], most: int) -> tuple[int, int]:
        """Row of the cache that shares the longest beginning with `path`, and how much of it may be used."""
        best = (0, 0)
        for row, known in enumerate(self._rows):
            shared = _common(known, path)
            if shared > best[1]:
                best = (row, shared)
        return best[0], min(best[1], most)

    def _cache(self, rows: list[int], keep: list[int]) -> DynamicCache:
        """A cache with the first ``keep[r]`` positions of the chosen rows, aligned to the right."""
        cache = DynamicCache()
        width = max(keep)
        if not width:
            return cache
        for index, (keys, values) in enumerate(self._layers):
            cache.update(self._aligned(keys, rows, keep, width), self._aligned(values, rows, keep, width), index)
        return cache

    def _aligned(self, x: Tensor, rows: list[int], keep: list[int], width: int) -> Tensor:
        pads = [x.shape[2] - len(self._rows[row]) for row in rows]
        if len(rows) == 1:
            return x[rows[0] : rows[0] + 1, :, pads[0] : pads[0] + width]
        found = x.new_zeros(len(rows), x.shape[1], width, x.shape[3])
        for r, (row, pad) in enumerate(zip(rows, pads, strict=True)):
            found[r, :, width - keep[r] :] = x[row, :, pad : pad + keep[r]]
        return found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle
    return low
