"""ToDRE: a diverse set of visual tokens first, then none of them deep in the decoder (arXiv 2505.18757).

Stage 1, before the language model: start at a pivot and add, one after the other, the token with the smallest summed cosine to
those kept (version 2, Algorithm 1), or the farthest one (version 1, k-center). Stage 2, at block 7L/8 during prefill: if the
text gives less than `threshold` of its attention to vision and vision less than `threshold` to the text, all visual tokens are
dropped for the later blocks and for decoding.

No code was released. Ours where the papers are silent: heads are averaged for the pivot; separators stay outside the budget;
"block 7L/8" is counted from 1 and removal acts from the next block on; rows of a batch decide for themselves; a prompt without
text after the image keeps its tokens; without a CLS token the pivot is drawn from `seed`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tokenry.core.attention import mass_between
from tokenry.core.checks import check_choice, check_int, check_range, check_tensor
from tokenry.core.selection import greedy_select
from tokenry.hosts.vlm import BlockView, DecoderStage, Signals, VisualTokens, language_of
from tokenry.pruning.base import check_tokens
from tokenry.pruning.importance import resolve_source, signals_for
from tokenry.pruning.visual import VisualPruner, identity

_RULES = {"max_sum": "max_sum", "k_center": "max_min"}


def relevance(attention: Tensor, vision: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Attention mass from text to vision and from vision to text (Section 3.2), heads pooled.

    Args:
        attention: softmax attention [n,n], [H,n,n] or [B,H,n,n]; rows are queries.
        vision: visual positions, indices [V] or a bool mask [n].
        text: text positions after the image, likewise.

    Returns:
        ``(t2v, v2t)``, scalars (or [B]): the share of the rows' mass that lands on the other side. NaN without any row.
    """
    check_tensor("attention", attention)
    if attention.dim() not in (2, 3, 4) or attention.shape[-1] != attention.shape[-2]:
        raise ValueError(f"attention must have shape [n, n], [H, n, n] or [B, H, n, n], got {list(attention.shape)}")
    n = attention.shape[-1]
    rows = [_positions(name, value, n).to(attention.device) for name, value in (("vision", vision), ("text", text))]
    pooled = attention.float() if attention.dim() == 2 else attention.float().sum(dim=-3)
    return _share(pooled, rows[1], rows[0]), _share(pooled, rows[0], rows[1])


def _share(attention: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    part = attention.index_select(-2, rows)
    return part.index_select(-1, columns).sum(dim=(-2, -1)) / part.sum(dim=(-2, -1))


def _positions(name: str, value: Tensor, n: int) -> Tensor:
    value = torch.as_tensor(value)
    if value.dim() != 1 or value.is_floating_point():
        raise ValueError(f"{name} must be a 1-D tensor of indices or a bool mask, got {value.dtype} {list(value.shape)}")
    if value.dtype == torch.bool:
        if len(value) != n:
            raise ValueError(f"{name} as a mask must have length {n}, got {len(value)}")
        return value.nonzero().squeeze(1)
    if len(value) and (int(value.min()) < 0 or int(value.max()) >= n):
        raise ValueError(f"{name} must hold indices in [0, {n - 1}], got {value.tolist()}")
    return value.long()


@dataclass(frozen=True)
class ToDRE(VisualPruner):
    """Diversity-driven selection before the decoder, relevance-driven removal inside it.

    Attributes:
        keep: ratio or count of tokens kept by stage 1. Paper: 0.25 and 0.1.
        rule: ``"max_sum"`` (version 2) or ``"k_center"`` (version 1). Note that ``"max_sum"`` may take exact duplicates of an
            outlier: one cosine of 1 is outweighed by many negative ones; ``"k_center"`` never does.
        threshold: tau of stage 2; 0 switches it off. Paper: 0.10.
        check_depth: where stage 2 looks, as a fraction of the blocks. Paper: 7/8.
        pivot: first token: ``"cls"`` = most attended by CLS in the vision tower's last block (in the thumbnail, with crops),
            ``"random"`` from the seed; ``"auto"`` = CLS where there is one.
        seed: seed of a random pivot.
    """

    rule: Literal["max_sum", "k_center"] = "max_sum"
    threshold: float = 0.10
    check_depth: float = 0.875
    pivot: Literal["auto", "cls", "random"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("rule", self.rule, tuple(_RULES))
        check_range("threshold", self.threshold)
        check_range("check_depth", self.check_depth, 0.0, 1.0, low_open=True)
        check_choice("pivot", self.pivot, ("auto", "cls", "random"))
        check_int("seed", self.seed, 0)

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """A random pivot, where one is needed, is drawn under `seed`."""
        return cls(keep, seed=seed)

    def select(
        self,
        features: Tensor,
        *,
        importance: Tensor | None = None,
        mask: Tensor | None = None,
        first: int | Tensor | None = None,
    ) -> Tensor:
        """Indices [B,K] in selection order for `features` [B,N,D]; ``K = N`` returns 0..N-1.

        The pivot is `first` (an index or [B]), else the largest `importance` [B,N] (such as CLS attention), else drawn from the
        seed (the same position in every row).

        Raises:
            ValueError: `first` out of range or masked; non-finite values; fewer than K unmasked tokens.
        """
        _, n = check_tokens(features, importance)
        k = self.plan(n)
        if k == n and mask is None and first is None:
            return identity(features)
        if first is None and importance is None:
            first = self._drawn(features, mask)
        return greedy_select(features, k, rule=_RULES[self.rule], importance=importance, first=first, mask=mask)  # pyright: ignore

    def _drawn(self, features: Tensor, mask: Tensor | None) -> Tensor:
        order = torch.rand(features.shape[1], generator=torch.Generator().manual_seed(self.seed))
        scores = order.to(features.device).expand(features.shape[0], -1)
        return (scores if mask is None else scores.masked_fill(~mask, -1.0)).argmax(dim=1)

    def _signals(self, model: nn.Module) -> Signals:
        source = "cls_attention" if self.pivot == "cls" else resolve_source("auto", model)
        return signals_for(source if source == "cls_attention" and self.pivot != "random" else "uniform")

    def _importance(self, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor | None:
        if "cls_attention" not in tokens[0][0].signals:
            return None
        # With crops the pivot comes from the thumbnail: the others are attended by other class tokens.
        parts = [image.signals["cls_attention"][index].masked_fill(image.crop[index] != 0, 0.0) for image, index in tokens]
        return torch.cat(parts)

    def _stage(self, model: nn.Module, run: Any) -> DecoderStage | None:
        if self.threshold <= 0:
            return None
        blocks = len(language_of(model).layers)
        block = math.floor(self.check_depth * blocks)
        if not 1 <= block < blocks:
            warnings.warn(
                f"check_depth={self.check_depth} of {blocks} blocks leaves no block to drop visual tokens from; "
                "only stage 1 acts",
                stacklevel=4,
            )
            return None
        return DecoderStage(block - 1, lambda view: self._decide(view, run, block - 1))

    def _decide(self, view: BlockView, run: Any, layer: int) -> Tensor:
        """Rows whose text and vision both look away drop every visual token."""
        after = view.visual.long().cumsum(dim=1) > 0
        text = view.real & ~view.visual & after
        t2v = _mass(view, text, view.visual)
        v2t = _mass(view, view.visual, text)
        drop = (t2v < self.threshold) & (v2t < self.threshold) & text.any(dim=1) & view.visual.any(dim=1)
        keep = view.real & ~(view.visual & drop.unsqueeze(1))
        run.record_stage(layer, keep, view)
        run.trace.facts.setdefault("relevance", []).extend(
            {"text_to_vision": t, "vision_to_text": v, "dropped": d}
            for t, v, d in zip(t2v.tolist(), v2t.tolist(), drop.tolist(), strict=True)
        )
        return keep


def _mass(view: BlockView, rows: Tensor, columns: Tensor) -> Tensor:
    heads = mass_between(view.query, view.key, rows, columns, causal_offset=0, mask=view.real, **vars(view.rule))
    return heads.mean(dim=1)


def contract_instances() -> dict[str, ToDRE]:
    """What the contract of the wing is checked on."""
    return {"max-sum": ToDRE(0.25), "k-center": ToDRE(0.25, rule="k_center")}
