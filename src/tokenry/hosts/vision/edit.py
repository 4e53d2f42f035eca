"""Fewer patch tokens after chosen blocks of a vision transformer: dropped (`drop_after`) or merged (`merge_after`).

Prefix tokens (CLS, distillation token, registers) always stay. Kept patches keep their order, and their indices are composed
over the stages, so that every record speaks in the patch numbering of the image. What later blocks are told about places is
gathered with the tokens: attention masks, rotary tables (DINOv3; a merged token has the place it is listed under), relative
position biases (BEiT), the mask of padded patches (SigLIP 2). ViTMAE hides and shuffles patches before its first block; those
it hides are not there to be chosen.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_shape
from tokenry.core.selection import gather_tokens
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, attached
from tokenry.hosts.vision.images import Images, images_of
from tokenry.hosts.vision.places import gather_mask, gather_rotary, real_tokens, with_prefix
from tokenry.hosts.vision.rows import AttentionCapture
from tokenry.hosts.vision.towers import VisionHost, describe


@dataclass(frozen=True)
class BlockSignals:
    """What a selector may look at after one block; the attention signals are computed when read, without gradient.

    `tokens` [B,N,D] are the patches leaving the block, `valid` [B,N] bool marks real patches (None: all), `size` [B,N] is the
    number of patches that each token stands for (None before any merging).
    """

    block: int
    tokens: Tensor
    valid: Tensor | None
    size: Tensor | None
    _capture: AttentionCapture = field(repr=False)

    @cached_property
    def cls_attention(self) -> Tensor:
        """CLS row over the patches, [B,H,N] float32.

        Raises:
            UnsupportedModelError: the model has no CLS token.
        """
        self._capture.host.require_cls("the CLS row of attention")
        with torch.no_grad():
            return self._capture.cls_attention()

    @cached_property
    def content(self) -> Tensor:
        """Attention output of each patch per head before the output projection, [B,H,N,d]."""
        return self._capture.content()

    @cached_property
    def keys(self) -> Tensor:
        """Keys of the patches, [B,H,N,d], before any rotation."""
        return self._capture.keys()


@dataclass(frozen=True)
class Selected:
    """The answer of a selector: positions to keep [B,K] among the patches present, and optionally their scores [B,N]."""

    index: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Merged:
    """The answer of a merger: new patch tokens [B,K,D], the positions [B,K] that stand for them, and their sizes [B,K]."""

    tokens: Tensor
    index: Tensor
    size: Tensor


@dataclass(frozen=True)
class Dropped:
    """Record of one stage: kept patches [B,K] ascending in the numbering of the image.

    `total` patches an image went in, padding included; `grids` are the (rows, columns) of every image without it. `scores`
    [B,total] are the selector's scores in that numbering, NaN for patches that were gone; None if it gave none. `real` [B,K]
    bool marks kept patches that are not padding (None: all).
    """

    block: int
    index: Tensor
    total: int
    grids: tuple[tuple[int, int], ...]
    scores: Tensor | None
    real: Tensor | None = None


Selector = Callable[[BlockSignals], Selected | Tensor]
Merger = Callable[[BlockSignals], Merged]


@contextmanager
def drop_after(
    model: nn.Module,
    selectors: Mapping[int, Selector],
    *,
    owner: str = "drop_after",
    on_drop: Callable[[Dropped], None] | None = None,
) -> Iterator[list[Dropped]]:
    """Within the context, keep after block ``b`` only the patches that ``selectors[b]`` chooses.

    Yields the list of records, one per stage and forward; with `on_drop` the records go there instead. A selector that keeps
    every patch leaves the forward untouched bit for bit.

    Raises:
        UnsupportedModelError: unknown model class.
        ValueError: a block that the model does not have, or gradient checkpointing (its recomputation would record twice).
        RuntimeError: something else is attached to the model.
    """
    with _attach(model, selectors, owner, on_drop, merging=False) as records:
        yield records


@contextmanager
def merge_after(
    model: nn.Module,
    mergers: Mapping[int, Merger],
    *,
    owner: str = "merge_after",
    on_drop: Callable[[Dropped], None] | None = None,
    proportional: bool = True,
) -> Iterator[list[Dropped]]:
    """Within the context, replace the patches after block ``b`` by the merged tokens of ``mergers[b]``.

    With `proportional`, later blocks attend to a merged token in proportion to its size: the log of the size is added to the
    attention scores through the attention mask (sdpa and eager attention).

    Raises:
        UnsupportedModelError: as `drop_after`, and another attention implementation when `proportional`.
        ValueError: as `drop_after`, and a model that is called with a mask that hides patches.
    """
    with _attach(model, mergers, owner, on_drop, merging=True, proportional=proportional) as records:
        yield records


@contextmanager
def _attach(
    model: nn.Module,
    edits: Mapping[int, Callable[[BlockSignals], Any]],
    owner: str,
    on_drop: Callable[[Dropped], None] | None,
    *,
    merging: bool,
    proportional: bool = False,
) -> Iterator[list[Dropped]]:
    host = describe(model)
    config: Any = host.model.config
    if proportional and config._attn_implementation not in ("sdpa", "eager"):
        reason = f"proportional attention needs sdpa or eager attention, not {config._attn_implementation!r}"
        raise UnsupportedModelError.of(model, ("the same class with attn_implementation='sdpa'",), reason=reason)
    records: list[Dropped] = []
    with attached(host.model, owner) as hooks:
        run = _Run(host, on_drop or records.append, merging, proportional)
        run.install(hooks, {host.block(b): edit for b, edit in edits.items()})
        yield records


class _Run(threading.local):
    """State of the thread's forward in progress: which patches are present and how many patches each stands for.

    `kept` numbers the present patches as they entered the first block. That is the order of the image, unless the model hides
    and shuffles patches itself: `places` then says where each of them comes from. `given` marks the real patches of the call,
    `valid` those among the present ones.
    """

    def __init__(self, host: VisionHost, record: Callable[[Dropped], None], merging: bool, proportional: bool) -> None:
        self.host, self.record = host, record
        self.merging, self.proportional = merging, proportional
        self.arguments = tuple(signature(host.model.forward).parameters)
        self.images = Images((), 0)
        self.kept: Tensor | None = None
        self.size: Tensor | None = None
        self.given: Tensor | None = None
        self.valid: Tensor | None = None
        self.places: Tensor | None = None

    def install(self, hooks: Hooks, edits: Mapping[int, Callable[[BlockSignals], Any]]) -> None:
        if not edits:
            return
        hooks.forward_pre(self.host.model, self._on_start)
        if self.host.layout.shuffled:
            hooks.forward(self.host.model.get_submodule("embeddings"), self._on_shuffled)
        for block, edit in edits.items():
            capture = AttentionCapture(self.host, block)
            capture.install(hooks)
            hooks.forward(self.host.blocks[block], self._editing(block, edit, capture))
        for block in self.host.blocks[min(edits) + 1 :]:
            hooks.forward_pre(block, self._on_block)
            if (bias := getattr(block, self.host.layout.bias or "", None)) is not None:
                hooks.forward_pre(bias, self._before_bias)
                hooks.forward(bias, self._after_bias)
        if self.host.layout.packed:
            self._install_pooling(hooks)

    def _install_pooling(self, hooks: Hooks) -> None:
        """Poolers of packed images look at the mask of all patches: they get the part that fits what is left."""
        if getattr(self.host.model, "use_head", False):
            hooks.forward_pre(self.host.model.get_submodule("head"), self._on_head)
        if self.host.whole is not self.host.model:
            hooks.forward(self.host.model, self._spread_for_the_mean)

    def _on_start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training and any(getattr(block, "gradient_checkpointing", False) for block in self.host.blocks):
            raise ValueError("patches cannot be dropped under gradient checkpointing; switch it off for this model")
        call = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        name = "pixel_attention_mask" if self.host.layout.packed else "attention_mask"
        mask = call.get(name)
        self.images = images_of(self.host, call)
        self.kept = self.size = self.places = None
        self.given = real_tokens(mask, len(self.images.grids), self.host.prefix)
        if self.merging and mask is not None:
            if not (self.host.layout.packed and bool(mask.all())):
                raise ValueError(f"{name} must hide nothing while patches are merged, got a mask")
            self.given = None
        self.valid = self.given

    def _on_shuffled(self, module: nn.Module, args: tuple, kwargs: dict, output: tuple[Tensor, Tensor, Tensor]) -> None:
        present = output[0].shape[1] - self.host.prefix
        self.places = output[2].argsort(dim=1)[:, :present]

    def _on_block(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Fit what the block is told about the whole sequence to the tokens that are left."""
        if self.kept is None:
            return None
        kwargs = dict(kwargs)
        if kwargs.get("position_embeddings") is not None:
            kwargs["position_embeddings"] = gather_rotary(kwargs["position_embeddings"], self.kept)
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
        if mask is not None:
            mask = gather_mask(mask, self._slots())
        if self.size is not None and self.proportional:
            bias = self._size_bias(args[0] if args else kwargs["hidden_states"])
            mask = bias if mask is None else mask + bias
        if len(args) > 1:
            return (args[0], mask, *args[2:]), kwargs
        return args, kwargs if mask is None else {**kwargs, "attention_mask": mask}

    def _before_bias(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.kept is None or "dim_size" not in kwargs:
            return None
        return args, {**kwargs, "dim_size": self.host.prefix + self.images.total}  # of the bias before it is gathered

    def _after_bias(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        return None if self.kept is None else gather_mask(output, self._slots())

    def _on_head(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.kept is None or len(args) < 2 or args[1] is None:
            return None
        return (args[0], args[1].gather(1, self.kept), *args[2:]), kwargs

    def _spread_for_the_mean(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Give the classifier states of all patches whose mean over the real ones is the mean over the real ones left."""
        if self.kept is None:
            return None
        states = output.last_hidden_state
        full = states.new_zeros(states.shape[0], self.images.total, states.shape[2])
        if self.valid is None or self.given is None:
            states = states * (self.images.total / states.shape[1])
        else:
            share = self.given.sum(dim=1, keepdim=True) / self.valid.sum(dim=1, keepdim=True)
            states = states * (self.valid * share).unsqueeze(-1).to(states.dtype)
        output.last_hidden_state = full.scatter(1, self.kept.unsqueeze(-1).expand_as(states), states)
        return output

    def _slots(self) -> Tensor:
        assert self.kept is not None
        return with_prefix(self.kept, self.host.prefix)

    def _size_bias(self, hidden: Tensor) -> Tensor:
        assert self.size is not None
        bias = nn.functional.pad(self.size.log(), (self.host.prefix, 0))
        return bias[:, None, None, :].to(hidden.dtype)

    def _editing(
        self, block: int, edit: Callable[[BlockSignals], Any], capture: AttentionCapture
    ) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            patches = output[:, self.host.prefix :]
            with torch.autocast(output.device.type, enabled=False):  # what is scored in float32 stays in float32
                answer = edit(BlockSignals(block, patches, self.valid, self.size, capture))
            capture.clear()
            if isinstance(answer, Merged):
                return self._change(block, output, answer.index, None, answer)
            selected = answer if isinstance(answer, Selected) else Selected(answer)
            check_shape("index", selected.index, "B K", B=output.shape[0])
            return self._change(block, output, selected.index.sort(dim=1).values, selected.scores)

        return hook

    def _change(
        self, block: int, output: Tensor, index: Tensor, scores: Tensor | None, merged: Merged | None = None
    ) -> Tensor | None:
        """Note the stage, and return the block's output with the patches at `index` or what they were merged into."""
        patches = output[:, self.host.prefix :]
        self._note(block, index, patches.shape[1], scores)
        if index.shape[1] == patches.shape[1]:
            return None
        self.kept = index if self.kept is None else self.kept.gather(1, index)
        self.valid = None if self.valid is None else self.valid.gather(1, index)
        self.size = self.size if merged is None else merged.size
        left = gather_tokens(patches, index) if merged is None else merged.tokens
        return torch.cat([output[:, : self.host.prefix], left], dim=1)

    def _note(self, block: int, index: Tensor, present: int, scores: Tensor | None) -> None:
        total = self.images.total
        if self.kept is None and self.places is None and present != total:
            raise ValueError(f"{present} patch tokens do not fill the {self.images.grids[0]} grid of the image")
        original = index if self.kept is None else self.kept.gather(1, index)
        before = self.kept
        if self.places is not None:
            original = self.places.gather(1, original)
            before = self.places if before is None else self.places.gather(1, before)
        if scores is not None and before is not None:
            full = torch.full((scores.shape[0], total), float("nan"), device=scores.device, dtype=scores.dtype)
            scores = full.scatter_(1, before, scores)
        real = None if self.valid is None else self.valid.gather(1, index)
        if self.places is not None:
            original, order = original.sort(dim=1)
            real = None if real is None else real.gather(1, order)
        self.record(Dropped(block, original, total, self.images.grids, scores, real))
