"""Vision-language models as hosts: visual tokens of every image, and the language model without the ones that were not chosen.

Families: LLaVA-1.5, LLaVA-OneVision, Qwen2.5-VL. Nothing is patched but three things on the instance, all undone on exit: the
method that returns image features is observed, and hooks stand before and after the language model. The prompt is shortened
between the two, so ``generate`` and ``forward`` are called as without a pruner and return what they return without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, attached
from tokenry.hosts.release import CACHE, cache_in, cache_of, check_takes_cache, release
from tokenry.hosts.vlm.kept_columns import KeptColumns, row_mask
from tokenry.hosts.vlm.signals import Described, SignalCapture, Signals
from tokenry.hosts.vlm.stage import DecoderStage, StageHooks

SUPPORTED = (
    "LlavaForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)
Positions = Literal["reindex", "gather"]


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one image, as the language model would read them.

    Attributes:
        image: running number of the image within this forward.
        row: batch row whose prompt holds it.
        features: [n,D] after the projector.
        prunable: [n] bool; False = separator (``image_newline``), always kept and outside the budget.
        signals: per-token scores [n] that were asked for, such as ``"cls_attention"``.
        crop: [n] crop number, 0 = whole image or thumbnail; -1 on separators.
        grid: (rows, columns) if the tokens form one grid in raster order.
    """

    image: int
    row: int
    features: Tensor
    prunable: Tensor
    signals: Mapping[str, Tensor]
    crop: Tensor
    grid: tuple[int, int] | None


Chooser = Callable[[Sequence[VisualTokens]], Sequence[Tensor]]
"""All images of a forward -> per image the ascending indices [K] to keep (separators included)."""


@dataclass
class _Prompt:
    """What happened to the prompt that a cache holds."""

    layout: KeptColumns | None
    real: Tensor
    next_position: Tensor
    stage: Any = None


@dataclass
class _Request:
    """The forward in flight."""

    input_ids: Tensor | None = None
    features: Sequence[Tensor] | None = None
    prompt: _Prompt | None = None


@contextmanager
def prune_prompt(
    model: nn.Module,
    owner: str,
    choose: Chooser,
    *,
    signals: Signals | None = None,
    positions: Positions = "reindex",
    stage: DecoderStage | None = None,
) -> Iterator[None]:
    """Shorten every prompt with images to the tokens that `choose` keeps, until the block ends.

    Args:
        model: one of the supported classes.
        owner: name used in messages.
        choose: called once per forward that brings images.
        signals: per-token scores to compute on the way (CLS attention, functions of the projector's input).
        positions: for models with 1-D positions, ``"reindex"`` counts the kept tokens 0, 1, ... and ``"gather"`` keeps their
            original positions. Qwen2.5-VL always keeps its 3-D positions.
        stage: removal of visual tokens inside the decoder.

    Raises:
        UnsupportedModelError: another model class; the message lists the supported ones.
        RuntimeError: something is attached to the model already.
    """
    check_choice("positions", positions, ("reindex", "gather"))
    if type(model).__name__ not in SUPPORTED:
        raise UnsupportedModelError.of(model, SUPPORTED)
    check_takes_cache(model.model.language_model)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    with attached(model, owner) as hooks:
        _PromptPruner(model, hooks, choose, signals or Signals(), positions, stage)
        yield


class _PromptPruner:
    """The hooks of one attachment and the prompts whose caches are alive."""

    def __init__(
        self,
        model: Any,
        hooks: Hooks,
        choose: Chooser,
        signals: Signals,
        positions: Positions,
        stage: DecoderStage | None,
    ) -> None:
        self.model, self.inner, self.language = model, model.model, model.model.language_model
        self.choose, self.positions = choose, positions
        self.request = _Request()
        self.prompts: WeakKeyDictionary[Any, _Prompt] = WeakKeyDictionary()
        self.signals = SignalCapture(hooks, self.inner, signals)
        self.stage = None if stage is None else StageHooks(hooks, self.language, stage)
        self.encode = self.inner.get_image_features
        self.encoded: list[tuple[Tensor, Described]] = []
        # `generate` reads the signature to know which arguments belong to the encoder.
        hooks.patch(
            self.inner, "get_image_features", wraps(self.encode)(lambda *args, **kwargs: self._observe(*args, **kwargs))
        )
        hooks.forward_pre(self.inner, self._before_model)
        hooks.forward(self.inner, self._after_model)
        hooks.forward_pre(self.language, self._before_language)
        hooks.forward(self.language, self._after_language)

    def _observe(self, *args: Any, **kwargs: Any) -> Any:
        self.signals.clear()
        output = self.encode(*args, **kwargs)
        bound = signature(self.encode).bind(*args, **kwargs).arguments
        features = list(output.pooler_output)
        self.encoded = list(zip(features, self.signals.describe(features, bound.get("image_grid_thw")), strict=True))
        self.request.features = features
        return output

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if kwargs.get("pixel_values_videos") is not None:
            raise ValueError("pixel_values_videos: videos are not pruned; pass images, or leave the pruner's `with` block")
        self.request = _Request(input_ids=kwargs.get("input_ids", args[0] if args else None))
        given = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if given is not None:
            self.request.features = given.pooler_output

    def _after_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.request = _Request()

    def _before_language(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        cache = cache_in(kwargs)
        if getattr(cache, "is_compileable", False):
            raise ValueError(f"{CACHE}: a static cache cannot hold a shortened prompt; use the default dynamic cache")
        known = self.prompts.get(cache) if cache is not None else None
        past = 0 if cache is None else cache.get_seq_length()
        if self.request.features is not None:
            if past:
                raise ValueError("pixel_values: new images cannot join a cache that already holds a prompt; start a new one")
            return args, self._prefill(kwargs)
        if known is not None and past:
            return args, self._decode(kwargs, known, past)
        return None

    def _prefill(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        embeds: Tensor = kwargs["inputs_embeds"]
        real = row_mask(kwargs.get("attention_mask"), embeds)
        keep = torch.ones_like(real)
        visual = torch.zeros_like(real)
        places = self._places()
        images = self._images(embeds, places)
        for (row, columns), kept in zip(places, self.choose(images), strict=True):
            dropped = torch.ones(len(columns), dtype=torch.bool, device=real.device).index_fill_(0, kept, False)
            keep[row, columns[dropped]] = False
            visual[row, columns] = True
        positions = kwargs.get("position_ids")
        prompt = _Prompt(None, real, self._next_position(real, positions))
        layout = KeptColumns.of(real, keep)
        if layout.width < real.shape[1] or not bool(keep.all()):
            prompt.layout = layout
            kwargs = dict(kwargs)
            kwargs["inputs_embeds"] = layout.take(embeds)
            kwargs["attention_mask"] = layout.mask.long()
            kwargs["position_ids"] = self._prompt_positions(positions, layout, embeds.device)
            real, visual = layout.mask, layout.take(visual) & layout.mask
        if self.stage is not None:
            prompt.stage = self.stage.begin(real, visual)
        self.request.prompt = prompt
        return kwargs

    def _decode(self, kwargs: dict[str, Any], prompt: _Prompt, past: int) -> dict[str, Any]:
        embeds: Tensor = kwargs["inputs_embeds"]
        if embeds.shape[0] != prompt.real.shape[0]:
            raise ValueError(f"the batch has {embeds.shape[0]} rows, the pruned prompt in its cache has {prompt.real.shape[0]}")
        layout, kwargs = prompt.layout, dict(kwargs)
        width = prompt.real.shape[1] if layout is None else layout.width
        new = past - width + embeds.shape[1]
        if self.stage is not None:
            self.stage.resume(prompt.stage, new)
        self.request.prompt = prompt
        if layout is None:
            return kwargs
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        after = torch.ones(embeds.shape[0], new, dtype=torch.long, device=embeds.device)
        if mask is not None:
            after = row_mask(mask, embeds)[:, prompt.real.shape[1] :].long()
        kwargs["attention_mask"] = torch.cat([layout.mask.long(), after], dim=1)
        if positions is None:
            start = layout.mask.sum(dim=1) if self.positions == "reindex" else prompt.next_position
            step = torch.arange(new - embeds.shape[1], new, device=embeds.device)
            kwargs["position_ids"] = start.unsqueeze(1) + step
        elif positions.dim() == 2:
            kwargs["position_ids"] = positions - (layout.dropped.unsqueeze(1) if self.positions == "reindex" else 0)
        elif positions.shape[0] == 4:
            # The first of Qwen's four rows counts text slots; the other three are 3-D positions and stay.
            kwargs["position_ids"] = torch.cat([positions[:1] - layout.dropped[None, :, None], positions[1:]])
        return kwargs

    def _after_language(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        prompt = self.request.prompt
        if prompt is None:
            return None
        cache = cache_of(output)
        if cache is not None:
            self.prompts[cache] = prompt
        elif cache_in(kwargs) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} was given a cache and returned none; this is {release()}")
        if self.request.features is None:
            return None
        hidden = output.last_hidden_state
        if self.stage is not None:
            hidden = self.stage.spread(hidden)
        if prompt.layout is not None:
            hidden = prompt.layout.spread(hidden)
        output.last_hidden_state = hidden
        return output

    def _places(self) -> list[tuple[int, Tensor]]:
        """Batch row and columns of every image's placeholders."""
        ids, features = self.request.input_ids, self.request.features
        assert features is not None
        if ids is None:
            raise ValueError("input_ids must be given with the images while a pruner is attached (not inputs_embeds)")
        rows, columns = (ids == self.model.config.image_token_id).nonzero(as_tuple=True)
        counts = [len(f) for f in features]
        if sum(counts) != len(rows):
            raise ValueError(f"input_ids hold {len(rows)} image placeholders for {sum(counts)} image features")
        places = []
        for row, column in zip(rows.split(counts), columns.split(counts), strict=True):
            if bool((row != row[0]).any()):
                raise ValueError("input_ids: the placeholders of one image are spread over two rows")
            places.append((int(row[0]), column))
        return places

    def _images(self, embeds: Tensor, places: list[tuple[int, Tensor]]) -> list[VisualTokens]:
        assert self.request.features is not None
        described = [self._described(features) for features in self.request.features]
        return [
            VisualTokens(i, row, embeds[row, columns].detach(), d.prunable, d.signals, d.crop, d.grid)
            for i, ((row, columns), d) in enumerate(zip(places, described, strict=True))
        ]

    def _described(self, features: Tensor) -> Described:
        """What the encoder's run said about these features; `generate` may have encoded earlier and copied them since."""
        for known, described in self.encoded:
            if known is features or (known.shape == features.shape and torch.equal(known, features)):
                return described
        return self.signals.unobserved(features)

    def _next_position(self, real: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None and positions.dim() == 2:
            return positions[:, -1].expand(real.shape[0]) + 1
        return torch.full((real.shape[0],), real.shape[1], device=real.device)

    def _prompt_positions(self, positions: Tensor | None, layout: KeptColumns, device: torch.device) -> Tensor:
        if positions is not None and positions.dim() == 3:
            planes = torch.stack([layout.take(plane) for plane in positions])
            return torch.cat([layout.counted()[None], planes[1:]]) if len(planes) == 4 else planes
        if self.positions == "reindex":
            return layout.counted()
        if positions is None:
            positions = torch.arange(layout.latest.shape[1], device=device).unsqueeze(0)
        return layout.take(positions)
