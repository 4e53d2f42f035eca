"""Rows of a batch with tokens taken out: what was kept, where it went, and the positions and masks that belong to it.

A `KeptColumns` maps a batch of S columns to n' <= S columns. Rows that keep fewer tokens are padded on the left, as
``generate`` expects; the padding carries mask 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.hosts.cache import as_layer_mask, of_layer_mask


@dataclass(frozen=True)
class KeptColumns:
    """Kept columns of a batch.

    Attributes:
        index: [B,n'] source column of every kept slot (0 on padding).
        mask: [B,n'] bool, True = real token.
        latest: [B,S] the kept slot at or before every source column (the first slot where there is none).
        dropped: [B] real tokens taken out of each row.
    """

    index: Tensor
    mask: Tensor
    latest: Tensor
    dropped: Tensor

    @classmethod
    def of(cls, real: Tensor, keep: Tensor) -> KeptColumns:
        """KeptColumns that keeps `keep` [B,S] of the `real` [B,S] tokens, both bool."""
        kept = real & keep
        lengths = kept.sum(dim=1)
        width = max(int(lengths.max()), 1)  # a part of a prompt that keeps nothing leaves one padding column
        slot = kept.long().cumsum(dim=1) - 1 + (width - lengths).unsqueeze(1)
        index = torch.zeros(kept.shape[0], width, dtype=torch.long, device=kept.device)
        rows, columns = kept.nonzero(as_tuple=True)
        index[rows, slot[rows, columns]] = columns
        mask = torch.arange(width, device=kept.device) >= (width - lengths).unsqueeze(1)
        return cls(index, mask, slot.clamp(min=0, max=width - 1), (real & ~keep).sum(dim=1))

    @property
    def width(self) -> int:
        """Columns after dropping."""
        return self.index.shape[1]

    @property
    def padded(self) -> bool:
        """Whether any row carries padding."""
        return not bool(self.mask.all())

    def take(self, x: Tensor) -> Tensor:
        """Kept columns of `x` [B or 1,S,...] -> [B,n',...]."""
        rows = torch.arange(self.index.shape[0], device=x.device).unsqueeze(1) if x.shape[0] > 1 else 0
        return x[rows, self.index]

    @property
    def kept(self) -> Tensor:
        """Which of the S source columns have a slot, [B,S] bool."""
        kept = torch.zeros(self.latest.shape, dtype=torch.bool, device=self.index.device)
        rows, slots = self.mask.nonzero(as_tuple=True)
        kept[rows, self.index[rows, slots]] = True
        return kept

    @property
    def trailing(self) -> int:
        """Columns after the last one that some row lost: they can be taken back."""
        columns = torch.arange(1, self.latest.shape[1] + 1, device=self.index.device)
        return self.latest.shape[1] - int(columns.where(~self.kept.all(dim=0), 0).max())

    def spread(self, x: Tensor) -> Tensor:
        """Back to S columns: every source column gets the value of the latest kept slot, [B,n',...] -> [B,S,...].

        The shape of a model's output is thereby what its caller expects, and a token that is predicted from a dropped one is
        predicted from the kept token before it, which is what the shortened sequence does.
        """
        return x[torch.arange(x.shape[0], device=x.device).unsqueeze(1), self.latest]

    def counted(self) -> Tensor:
        """Positions 0, 1, ... over the real slots of every row, 0 on padding: [B,n']."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def prefill_mask(self, attention_mask: Tensor | None, implementation: str, dtype: torch.dtype) -> Tensor | None:
        """Attention mask of a decoder layer over the kept slots; `attention_mask` is the layer's mask over all S.

        A 4-D mask is gathered in both dimensions; without one, a causal mask is only built when there is padding.
        """
        if implementation.startswith("flash"):
            return self.mask.long() if self.padded else None
        if attention_mask is None and not self.padded:
            return None
        width = self.width
        if attention_mask is None:
            visible = torch.ones(width, width, dtype=torch.bool, device=self.mask.device).tril()
            visible = visible.expand(self.mask.shape[0], 1, width, width)
        else:
            full = of_layer_mask(attention_mask).expand(self.mask.shape[0], -1, -1, -1)
            rows = self.index[:, None, :, None].expand(-1, full.shape[1], -1, full.shape[3])
            columns = self.index[:, None, None, :].expand(-1, full.shape[1], width, -1)
            visible = full.gather(2, rows).gather(3, columns)
        # A padding query sees itself: a row without any visible slot would be NaN and poison the cache.
        alone = torch.eye(width, dtype=torch.bool, device=self.mask.device) & ~self.mask[:, None, :, None]
        return as_layer_mask((visible & self.mask[:, None, None, :]) | alone, implementation, dtype)


def row_mask(attention_mask: Any, like: Tensor) -> Tensor:
    """The caller's 2-D padding mask as bool [B,S]; all True without one.

    Raises:
        ValueError: the mask is not 2-D (prepared 4-D masks cannot be shortened by rows).
    """
    if attention_mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        kind = list(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
        raise ValueError(f"attention_mask must be the 2-D padding mask [B, S] while a pruner is attached, got {kind}")
    return attention_mask.bool()


def spread_output(output: Any, layout: KeptColumns | None, stage: KeptColumns | None) -> Any:
    """A model output with as many columns as the caller gave: hidden states of `layout`, and of `stage` within it."""

    def whole(hidden: Tensor) -> Tensor:
        if stage is not None and hidden.shape[1] == stage.width:
            hidden = stage.spread(hidden)
        return hidden if layout is None else layout.spread(hidden)

    output.last_hidden_state = whole(output.last_hidden_state)
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = tuple(whole(hidden) for hidden in output.hidden_states)
    return output
