"""Vision-language models as hosts: visual tokens of every image, and the language model without the ones that were not chosen.

Families: those of `families`. Nothing is patched but a few things on the instance, all undone on exit: the methods that return
features of images and videos are observed, and hooks stand before and after the language model. The prompt is shortened
between the two, so ``generate`` and ``forward`` are called as without a pruner and return what they return without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.core.precision import no_autocast
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, attached
from tokenry.hosts.cache import ShortenedPast, TrackedLayer, TrackedSlidingLayer, tracked
from tokenry.hosts.release import CACHE, CHUNKS_KEEP_PICTURES, cache_in, cache_of, check_takes_cache, release
from tokenry.hosts.vlm.extras import block_masks, kept_rows, shorten_deepstack
from tokenry.hosts.vlm.families import family_of, language_of, part
from tokenry.hosts.vlm.kept_columns import KeptColumns, row_mask, spread_output
from tokenry.hosts.vlm.request import Chooser, ChunkedChoice, Request, VisualTokens
from tokenry.hosts.vlm.signals import KINDS, Kind, SignalCapture, Signals
from tokenry.hosts.vlm.stage import DecoderStage, StageHooks
from tokenry.hosts.wrappers import unwrapped

Positions = Literal["reindex", "gather"]


@contextmanager
def prune_prompt(
    model: nn.Module,
    owner: str,
    choose: Chooser,
    *,
    signals: Signals | None = None,
    positions: Positions = "reindex",
    stage: DecoderStage | None = None,
    once: bool = False,
) -> Iterator[None]:
    """Shorten every prompt with images or videos to the tokens that `choose` keeps, until the block ends.

    Args:
        model: one of the supported classes.
        owner: name used in messages.
        choose: called once per forward that brings images or videos.
        signals: per-token scores to compute on the way (CLS attention, functions of the projector's input).
        positions: for models with 1-D positions, ``"reindex"`` counts the kept tokens 0, 1, ... and ``"gather"`` keeps their
            original positions. Models with 3-D positions (Qwen) always keep them.
        stage: removal of visual tokens inside the decoder.
        once: `choose` would choose otherwise for the same images again, so ``generate(use_cache=False)`` is refused.

    Raises:
        UnsupportedModelError: another model class; the message names the nearest supported one, lists all, and links the page
            that says how one is added. Or a `stage` on a language model with sliding-window layers.
        RuntimeError: something is attached to the model already.
    """
    check_choice("positions", positions, ("reindex", "gather"))
    model = unwrapped(model)
    check_takes_cache(language_of(model))
    with attached(model, owner, kind="visual") as hooks:
        _PromptPruner(model, hooks, owner, choose, signals or Signals(), positions, stage, once)
        yield


class _PromptPruner:
    """The hooks of one attachment. What a cache went through is written on its layers (`ShortenedPast`)."""

    def __init__(
        self,
        model: Any,
        hooks: Hooks,
        owner: str,
        choose: Chooser,
        signals: Signals,
        positions: Positions,
        stage: DecoderStage | None,
        once: bool,
    ) -> None:
        self.model, self.inner, self.family = model, model.model, family_of(model)
        self.language = language_of(model)
        part(self.inner, self.family.tower)  # a wrong name is said now, also where nothing reads the tower
        self.owner, self.choose, self.positions, self.once = owner, choose, positions, once or stage is not None
        self.request = Request()
        self.signals = SignalCapture(hooks, model, signals)
        self.stage = None if stage is None else StageHooks(hooks, self.language, stage)
        if self.stage is not None and hasattr(self.language, "_deepstack_process"):
            hooks.patch(self.language, "_deepstack_process", shorten_deepstack(self.language._deepstack_process, self.stage))
        for kind in KINDS:
            if hasattr(self.inner, f"get_{kind}_features"):
                encode = getattr(self.inner, f"get_{kind}_features")
                hooks.patch(self.inner, f"get_{kind}_features", self._observing(kind, encode))
        hooks.patch(model, "_prefill", self._prefilling(model._prefill))
        hooks.patch(model, "_validate_generation_mode", self._checking(model._validate_generation_mode))
        hooks.forward_pre(self.inner, self._before_model)
        hooks.forward(self.inner, self._after_model)
        # First of all hooks, so that whoever else watches the language model sees the shortened prompt.
        hooks.forward_pre(self.language, self._before_language, prepend=True)
        hooks.forward(self.language, self._after_language)

    # ---- generate --------------------------------------------------------------------------------------------------

    def _checking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def validate(mode: Any, config: Any, *args: Any, **kwargs: Any) -> Any:
            if config.use_cache is False and self.once:
                raise ValueError(
                    f"use_cache must be True while {self.owner} is attached, got False: it decides once, in the prompt, and "
                    "without a cache every step would be a prompt"
                )
            if self.stage is not None and getattr(mode, "value", mode) == "assisted_generation":
                raise ValueError(
                    f"assistant_model and prompt_lookup_num_tokens must be None while {self.owner} is attached: it decides by "
                    "the last token of the prompt, which would be a guessed one"
                )
            return original(mode, config, *args, **kwargs)

        return validate

    def _prefilling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Choose for the whole prompt before the first chunk of it runs."""

        def prefill(input_ids: Tensor, config: Any, arguments: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            features, size = _encoded_before(arguments), getattr(config, "prefill_chunk_size", None)
            if size is not None and features and not CHUNKS_KEEP_PICTURES:
                raise ValueError(
                    f"prefill_chunk_size must be None for a prompt with pictures, got {size}: {release()} runs "
                    "chunks without the pictures, also without a pruner"
                )
            if size is None or not features:
                return original(input_ids, config, arguments, *args, **kwargs)
            if self.stage is not None:
                raise ValueError(
                    f"prefill_chunk_size must be None while {self.owner} is attached, got {config.prefill_chunk_size}: it "
                    "decides from the whole prompt"
                )
            cache = cache_in(arguments)
            start = 0 if cache is None else cache.get_seq_length()
            self.request.begin(input_ids[:, start:] if start < input_ids.shape[1] else input_ids)
            self.request.features = features
            keep, visual = self._decided(None)
            self.request.choice = ChunkedChoice(keep, visual, start)
            try:
                return original(input_ids, config, arguments, *args, **kwargs)
            finally:
                self.request.choice = None

        return prefill

    # ---- one forward pass ------------------------------------------------------------------------------------------

    def _observing(self, kind: Kind, encode: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(encode)  # `generate` reads the signature to know which arguments belong to the encoder.
        def observed(*args: Any, **kwargs: Any) -> Any:
            request = self.request
            if request.encoding:  # videos may be encoded by the method for images
                return encode(*args, **kwargs)
            self.signals.clear()
            request.encoding = True
            try:
                output = encode(*args, **kwargs)
            finally:
                request.encoding = False
            entries = list(output.pooler_output)
            given = signature(encode).bind(*args, **kwargs).arguments
            described = self.signals.describe(kind, entries, given)
            request.encoded[kind] = list(zip(entries, described, strict=True))
            request.features[kind] = entries
            return output

        return observed

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        self.request.begin(input_ids, kwargs.get("attention_mask"), kwargs.get("token_type_ids"))
        self.request.features = _encoded_before(kwargs)

    def _after_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.request.begin(None)

    def _before_language(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        cache, request = cache_in(kwargs), self.request
        if getattr(cache, "is_compileable", False) or getattr(cache, "offloading", False):
            kind = "static" if getattr(cache, "is_compileable", False) else "offloaded"
            raise ValueError(f"{CACHE}: a {kind} cache cannot hold a shortened prompt; use the default dynamic cache")
        layers: list[Any] = [] if cache is None else cache.layers
        for layer in layers:
            if isinstance(layer, (TrackedLayer, TrackedSlidingLayer)):
                layer.arm("visual")
        past: ShortenedPast | None = getattr(layers[0], "past", None) if layers else None
        request.seen = 0 if cache is None or not layers else cache.get_seq_length()
        embeds: Tensor | None = kwargs.get("inputs_embeds")
        if embeds is None:  # the language model was called by itself, with ids
            if past is None:
                return None
            raise ValueError(
                f"{CACHE} was shortened by {self.owner}; continue with the whole model, not its language model alone"
            )
        request.columns = embeds.shape[1]
        if past is not None and len(past.dropped) != len(embeds):
            raise ValueError(f"the batch has {len(embeds)} rows, the pruned prompt in its cache has {len(past.dropped)}")
        if not request.features and request.choice is None:
            if request.input_ids is None and request.seen == 0:
                raise ValueError(
                    "inputs_embeds: the visual tokens of a prompt that is embedded already cannot be told; pass input_ids and "
                    f"pixel_values while {self.owner} is attached"
                )
            return None if past is None else (args, self._feed(kwargs, None, past))
        if self.stage is not None and request.seen:
            raise ValueError(
                f"pixel_values: new images cannot join a cache that already holds a prompt while {self.owner} is attached, "
                "which decides from the whole prompt; start a new one"
            )
        if self.stage is not None and self.language.training and getattr(self.language, "gradient_checkpointing", False):
            raise ValueError(
                f"gradient checkpointing must be off while {self.owner} is attached, which drops tokens between blocks that "
                "would be run again; call gradient_checkpointing_disable()"
            )
        keep, visual = self._chosen(embeds)
        real = self._new_tokens(kwargs)
        layout = KeptColumns.of(real, keep)
        if layout.width == real.shape[1] and bool(keep.all()):
            if self.stage is not None:
                self.stage.begin(real, visual & real)
            return None if past is None else (args, self._feed(kwargs, None, past))
        kwargs = self._feed(kwargs, layout, past or self._plain_past(kwargs))
        if self.stage is not None:
            self.stage.begin(layout.mask, layout.take(visual) & layout.mask)
        return args, kwargs

    def _chosen(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """`keep` and `visual` [B,q] of this forward's columns."""
        choice = self.request.choice
        if choice is None:
            return self._decided(embeds)
        here = slice(self.request.seen - choice.start, self.request.seen - choice.start + embeds.shape[1])
        return choice.keep[:, here], choice.visual[:, here]

    def _decided(self, embeds: Tensor | None) -> tuple[Tensor, Tensor]:
        """`keep` and `visual` over the columns of the request; the tokens are read from `embeds`, else from the features."""
        request = self.request
        places, images = request.places(self.model.config, self.signals), []
        for i, place in enumerate(places):
            row, d = place.row, place.described
            tokens = place.features.detach() if embeds is None else embeds[row, place.columns].detach()
            images.append(VisualTokens(i, row, tokens, d.prunable, d.signals, d.crop, d.grid, place.clip))
        ids = request.input_ids
        assert ids is not None
        keep = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
        visual = torch.zeros_like(keep)
        with no_autocast():
            chosen = self.choose(images)
        for place, kept in zip(places, chosen, strict=True):
            keep[place.row, place.columns] = False
            keep[place.row, place.columns[kept]] = True
            visual[place.row, place.columns] = True
        return keep, visual

    def _given_mask(self, kwargs: dict[str, Any]) -> Any:
        """The caller's padding mask, where the model has made layer masks of it already."""
        mask = kwargs.get("attention_mask")
        return self.request.mask if self.family.blocks and isinstance(mask, dict) else mask

    def _new_tokens(self, kwargs: dict[str, Any]) -> Tensor:
        """[B,q] bool, which of this forward's columns are real."""
        embeds = kwargs["inputs_embeds"]
        return row_mask(self._given_mask(kwargs), embeds)[:, -embeds.shape[1] :]

    def _plain_past(self, kwargs: dict[str, Any]) -> ShortenedPast:
        """The columns that a cache holds from before anything was taken out."""
        embeds, seen = kwargs["inputs_embeds"], self.request.seen
        mask = self._given_mask(kwargs)
        real = torch.ones(len(embeds), seen, dtype=torch.bool, device=embeds.device)
        if mask is not None and seen:
            real = mask[:, :seen].bool()
        zero = torch.zeros(len(embeds), dtype=torch.long, device=embeds.device)
        return ShortenedPast(real, zero, zero + seen)

    def _feed(self, kwargs: dict[str, Any], layout: KeptColumns | None, past: ShortenedPast) -> dict[str, Any]:
        """Arguments of the language model for the columns of `layout` (None = all of them) after `past`."""
        embeds, kwargs = kwargs["inputs_embeds"], dict(kwargs)
        new = self._new_tokens(kwargs) if layout is None else layout.mask
        if self.stage is not None:
            self.stage.state.fresh = None if bool(new.all()) else new
        fed = torch.cat((past.real, new), dim=1)
        unfed = self.request.seen - past.real.shape[1]
        kwargs["attention_mask"] = nn.functional.pad(fed.long(), (unfed, 0))
        kwargs["position_ids"] = self._feed_positions(kwargs.get("position_ids"), layout, new, past)
        dropped = past.dropped
        if layout is not None:
            kwargs["inputs_embeds"] = layout.take(embeds)
            kwargs.update(kept_rows(kwargs, layout))
            dropped = dropped + layout.dropped
        if self.family.blocks:
            kwargs["attention_mask"] = block_masks(self.model, kwargs, self.request.types, layout)
        self.request.layout = layout
        self.request.after = ShortenedPast(fed, dropped, self._next_position(kwargs, past, embeds.shape[1]))
        return kwargs

    def _feed_positions(self, given: Tensor | None, layout: KeptColumns | None, new: Tensor, past: ShortenedPast) -> Any:
        counted = past.real.sum(dim=1, keepdim=True) + (new.long().cumsum(dim=1) - 1).clamp(min=0)
        if given is not None and given.dim() == 3:
            planes = given if layout is None else torch.stack([layout.take(plane) for plane in given])
            # The first of Qwen's four rows counts text slots; the other three are 3-D positions and stay.
            return torch.cat([counted[None], planes[1:]]) if len(planes) == 4 else planes
        if self.positions == "reindex":
            return counted
        if given is None:
            step = torch.arange(self.request.columns, device=new.device)
            given = past.next_position.unsqueeze(1) + step
        return given if layout is None else layout.take(given)

    def _next_position(self, given: dict[str, Any], past: ShortenedPast, columns: int) -> Tensor:
        positions = given.get("position_ids")
        if self.positions == "gather" and positions is not None and positions.dim() == 2:
            return positions[:, -1].expand(len(past.dropped)) + 1
        return past.next_position + columns

    def _after_language(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        request = self.request
        stage = None if self.stage is None else self.stage.take_layout()
        if request.after is None and stage is None:
            return None
        cache = cache_of(output)
        if cache is not None:
            self._write(cache, kwargs, stage)
        elif cache_in(kwargs) is not None:
            raise UnsupportedModelError(f"{type(module).__name__} was given a cache and returned none; this is {release()}")
        layout = request.layout
        if layout is None and stage is None:
            return None
        return spread_output(output, layout, stage)

    def _write(self, cache: Any, kwargs: dict[str, Any], stage: KeptColumns | None) -> None:
        """Note on the cache's layers what they did not see, and what is needed to go on."""
        request = self.request
        after = request.after or self._unshortened(kwargs)
        seen = request.seen + request.columns
        new = after.real[:, after.real.shape[1] - kwargs["inputs_embeds"].shape[1] :]
        dropped_now = request.layout is not None or stage is not None
        trailing = 0 if request.layout is None else request.layout.trailing
        late = self.stage.stage.layer + 1 if self.stage is not None and stage is not None else len(cache.layers)
        for i, plain in enumerate(cache.layers):
            layer = cache.layers[i] = tracked(plain)
            layer.past = after
            layer.unfed = seen - (layer.seen - layer.unfed)
            if isinstance(layer, TrackedLayer):
                fresh = new if i < late or stage is None else stage.mask
                if layer.policy is None:
                    layer.append_real(None if bool(fresh.all()) else fresh, len(fresh), fresh.shape[1])
                if dropped_now:
                    layer.lost(after=0 if stage is not None or layer.policy is not None else trailing)
            if self._only_here(after, kwargs, stage):
                layer.need("visual", self.owner)

    def _unshortened(self, kwargs: dict[str, Any]) -> ShortenedPast:
        past = self._plain_past(kwargs)
        real = torch.cat((past.real, self._new_tokens(kwargs)), dim=1)
        return ShortenedPast(real, past.dropped, past.next_position + self.request.columns)

    def _only_here(self, after: ShortenedPast, kwargs: dict[str, Any], stage: KeptColumns | None) -> bool:
        """Whether transformers alone would go on with other positions or another mask."""
        given = kwargs.get("position_ids")
        shifted = self.positions == "reindex" and (given is None or given.dim() == 2) and bool(after.dropped.any())
        return shifted or stage is not None or not bool(after.real.all())


def _encoded_before(arguments: dict[str, Any]) -> dict[Kind, Sequence[Tensor]]:
    """Features that the caller (or ``generate``) encoded before the model runs, by kind."""
    given = arguments.get("mm_encoder_outputs")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"mm_encoder_outputs must be a dict of encoder outputs, got {type(given).__name__}")
    return {kind: list(given[kind].pooler_output) for kind in KINDS if given.get(kind) is not None}
