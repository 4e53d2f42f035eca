"""Fewer patch tokens after chosen blocks of a vision transformer: dropped (`drop_after`) or merged (`merge_after`).

Prefix tokens (CLS, distillation token, registers) always stay. Kept patches keep their order, and their indices are composed
over the stages, so that every record speaks in the patch numbering of the image. Positions were added before the first block,
so nothing has to be gathered but the tokens and, where one is in use, the attention mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_shape
from tokenry.core.selection import gather_tokens
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks, attached
from tokenry.hosts.vision.rows import AttentionCapture
from tokenry.hosts.vision.towers import VisionHost, describe, image_size_of


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
        """Keys of the patches, [B,H,N,d]."""
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
    """Record of one stage: kept patches [B,K] ascending in the numbering of the image, of `total` = rows x columns of `grid`.

    `scores` [B,total] are the selector's scores in that numbering, NaN for patches dropped earlier; None if it gave none.
    """

    block: int
    index: Tensor
    total: int
    grid: tuple[int, int]
    scores: Tensor | None


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
        ValueError: as `drop_after`, and a model that is called with an attention mask.
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


class _Run:
    """State of the forward in progress: which patches are present and how many patches each stands for."""

    def __init__(self, host: VisionHost, record: Callable[[Dropped], None], merging: bool, proportional: bool) -> None:
        self.host, self.record = host, record
        self.merging, self.proportional = merging, proportional
        self.grid = (0, 0)
        self.kept: Tensor | None = None
        self.size: Tensor | None = None

    def install(self, hooks: Hooks, edits: Mapping[int, Callable[[BlockSignals], Any]]) -> None:
        if not edits:
            return
        hooks.forward_pre(self.host.model, self._on_start)
        for block, edit in edits.items():
            capture = AttentionCapture(self.host, block)
            capture.install(hooks)
            hooks.forward(self.host.blocks[block], self._editing(block, edit, capture))
        for block in self.host.blocks[min(edits) + 1 :]:
            hooks.forward_pre(block, self._on_block)

    def _on_start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training and any(getattr(block, "gradient_checkpointing", False) for block in self.host.blocks):
            raise ValueError("patches cannot be dropped under gradient checkpointing; switch it off for this model")
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else (args[0] if args else None)
        self.grid = self.host.grid(image_size_of(pixels))
        mask = kwargs.get("attention_mask")
        if self.merging and mask is not None:
            raise ValueError("attention_mask must be None while patches are merged, got a mask")
        self.kept = self.size = None

    def _on_block(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Fit the attention mask of the whole sequence to the tokens that are left."""
        if self.kept is None:
            return None
        mask = kwargs["attention_mask"] if "attention_mask" in kwargs else (args[1] if len(args) > 1 else None)
        if self.size is not None and self.proportional:
            mask = self._size_bias(args[0] if args else kwargs["hidden_states"])
        elif mask is not None:
            mask = self._gather_mask(mask)
        if len(args) > 1:
            return (args[0], mask, *args[2:]), kwargs
        return args, {**kwargs, "attention_mask": mask}

    def _size_bias(self, hidden: Tensor) -> Tensor:
        assert self.size is not None
        bias = nn.functional.pad(self.size.log(), (self.host.prefix, 0))
        return bias[:, None, None, :].to(hidden.dtype)

    def _gather_mask(self, mask: Tensor) -> Tensor:
        assert self.kept is not None
        prefix = self.host.prefix
        head = torch.arange(prefix, device=mask.device).expand(self.kept.shape[0], -1)
        present = torch.cat([head, self.kept + prefix], dim=1)
        mask = mask.expand(present.shape[0], -1, -1, -1)
        mask = mask.gather(3, present[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
        if mask.shape[2] > 1:
            mask = mask.gather(2, present[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        return mask

    def _editing(
        self, block: int, edit: Callable[[BlockSignals], Any], capture: AttentionCapture
    ) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            prefix = self.host.prefix
            patches = output[:, prefix:]
            answer = edit(BlockSignals(block, patches, self._valid(capture), self.size, capture))
            capture.clear()
            if isinstance(answer, Merged):
                return self._merge(block, output, answer)
            selected = answer if isinstance(answer, Selected) else Selected(answer)
            check_shape("index", selected.index, "B K", B=output.shape[0])
            index = selected.index.sort(dim=1).values
            self._note(block, index, patches.shape[1], selected.scores)
            if index.shape[1] == patches.shape[1]:
                return None
            self.kept = index if self.kept is None else self.kept.gather(1, index)
            return torch.cat([output[:, :prefix], gather_tokens(patches, index)], dim=1)

        return hook

    def _merge(self, block: int, output: Tensor, merged: Merged) -> Tensor | None:
        present = output.shape[1] - self.host.prefix
        self._note(block, merged.index, present, None)
        if merged.index.shape[1] == present:
            return None
        self.kept = merged.index if self.kept is None else self.kept.gather(1, merged.index)
        self.size = merged.size
        return torch.cat([output[:, : self.host.prefix], merged.tokens], dim=1)

    def _valid(self, capture: AttentionCapture) -> Tensor | None:
        if capture.mask is None or self.merging:
            return None
        row = capture.mask[:, 0, 0, self.host.prefix :]
        return row if row.dtype == torch.bool else row > torch.finfo(row.dtype).min / 2

    def _note(self, block: int, index: Tensor, present: int, scores: Tensor | None) -> None:
        total = self.grid[0] * self.grid[1]
        if self.kept is None and present != total:
            raise ValueError(f"{present} patch tokens do not fill the {self.grid[0]} x {self.grid[1]} grid of the image")
        original = index if self.kept is None else self.kept.gather(1, index)
        if scores is not None and self.kept is not None:
            full = torch.full((scores.shape[0], total), float("nan"), device=scores.device, dtype=scores.dtype)
            scores = full.scatter_(1, self.kept, scores)
        self.record(Dropped(block, original, total, self.grid, scores))
