"""Baselines for pruning inside a vision transformer, on the same schedule as EET.

- `ClsRow`: attention of CLS averaged over heads (the score of EViT, arXiv 2202.07800, without its fused token).
- `ToMe`: token merging (arXiv 2210.09461): bipartite soft matching on keys, size-weighted
  averages, proportional attention.
- `RandomPatches`: chance.

ToMe as published merges a fixed number of tokens inside every block, between attention and MLP. Here it merges after the blocks
of the schedule, in as many matching rounds as the budget needs (one round at most halves), so that it meets the other methods
at equal counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_int, check_shape
from tokenry.core.selection import complement, gather_tokens
from tokenry.core.similarity import unit_rows
from tokenry.hosts.vision import BlockSignals, Dropped, Merged, merge_after
from tokenry.pruning.vit_schedule import PatchPruner, stage_count


@dataclass(frozen=True)
class ClsRow(PatchPruner):
    """Keep the patches that CLS attends to most, averaged over heads: the control for EET's content weighting."""

    def scores(self, signals: BlockSignals) -> Tensor:
        """Mean over heads of the CLS row, [B,N]."""
        return signals.cls_attention.mean(dim=1)


@dataclass(frozen=True)
class RandomPatches(PatchPruner):
    """Keep random patches. Each attachment starts again from `seed`; every image gets its own draw."""

    needs_cls: ClassVar[bool] = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("seed", self.seed, 0)

    def scores(self, signals: BlockSignals) -> Tensor:
        """Uniform scores [B,N], the first draw of `seed`."""
        return self._scorer()(signals)

    def _scorer(self) -> Callable[[BlockSignals], Tensor]:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(signals: BlockSignals) -> Tensor:
            return torch.rand(signals.tokens.shape[:2], generator=generator).to(signals.tokens.device)

        return draw


@dataclass(frozen=True)
class ToMe(PatchPruner):
    """Merge similar patches instead of dropping unimportant ones.

    `proportional` adds the log of each token's size to the attention scores of later blocks (ToMe eq. 1). Works without a CLS
    token, so also for SigLIP. In the trace a merged token is listed under the patch it was merged into.
    """

    needs_cls: ClassVar[bool] = False
    proportional: bool = True

    def scores(self, signals: BlockSignals) -> Tensor:
        """ToMe ranks pairs, not patches.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("ToMe has no score per patch; it matches pairs of patches")

    def _attached(
        self, model: nn.Module, schedule: Mapping[int, float | int], recorder: Callable[[Dropped], None]
    ) -> AbstractContextManager[object]:
        mergers = {block: _merger(budget) for block, budget in schedule.items()}
        return merge_after(model, mergers, owner="ToMe", on_drop=recorder, proportional=self.proportional)


def bipartite_merge(tokens: Tensor, metric: Tensor, size: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One round of bipartite soft matching: the `r` best matched even tokens are averaged into their odd partner.

    Args:
        tokens: [B,N,D].
        metric: [B,N,d]; cosine decides the matches.
        size: [B,N] float, patches per token.
        r: tokens to remove, 0 <= r <= N // 2.

    Returns:
        Tokens [B,N-r,D] and metric [B,N-r,d] averaged by size, sizes [B,N-r], and the positions [B,N-r] they had, ascending.

    Raises:
        ValueError: `r` out of range or shapes that do not agree.
    """
    sizes = check_shape("tokens", tokens, "B N D")
    check_shape("metric", metric, "B N d", B=sizes["B"], N=sizes["N"])
    check_shape("size", size, "B N", B=sizes["B"], N=sizes["N"])
    n = sizes["N"]
    check_int("r", r, 0, n // 2)
    rows = unit_rows(metric)
    best, partner = (rows[:, 0::2] @ rows[:, 1::2].transpose(1, 2)).max(dim=-1)
    source = torch.sort(best, dim=1, descending=True, stable=True).indices[:, :r]
    owner = torch.arange(n, device=tokens.device).repeat(sizes["B"], 1)
    owner.scatter_(1, 2 * source, 2 * partner.gather(1, source) + 1)
    index = complement(2 * source, n)
    total = torch.zeros_like(size).scatter_add_(1, owner, size)

    def average(x: Tensor) -> Tensor:
        weighted = x.float() * size.unsqueeze(-1)
        summed = torch.zeros_like(weighted).scatter_add(1, owner.unsqueeze(-1).expand_as(weighted), weighted)
        return gather_tokens(summed / total.unsqueeze(-1), index).to(x.dtype)

    return average(tokens), average(metric), total.gather(1, index), index


def _merger(budget: float | int) -> Callable[[BlockSignals], Merged]:
    def merge(signals: BlockSignals) -> Merged:
        tokens = signals.tokens
        batch, n = tokens.shape[:2]
        k = stage_count(budget, n)
        index = torch.arange(n, device=tokens.device).expand(batch, -1)
        size = torch.ones(batch, n, device=tokens.device) if signals.size is None else signals.size
        metric = signals.keys.float().mean(dim=1)
        while (present := tokens.shape[1]) > k:
            tokens, metric, size, kept = bipartite_merge(tokens, metric, size, min(present - k, present // 2))
            index = index.gather(1, kept)
        return Merged(tokens, index, size)

    return merge


def contract_instances() -> dict[str, PatchPruner]:
    """What the contract of pruners inside a vision transformer is checked on."""
    plain = ToMe(proportional=False)
    return {"CLS row": ClsRow(), "random": RandomPatches(), "ToMe": ToMe(), "ToMe without sizes": plain}
