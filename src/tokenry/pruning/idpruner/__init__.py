"""IDPruner: importance and diversity of visual tokens by maximal marginal relevance (arXiv 2602.13315).

Keeps K of N visual tokens, one after the other: the next has the largest ``balance * Imp - (1 - balance) * m``, where Imp is
the min-max scaled importance and m the largest cosine to the tokens already kept (Algorithm 1). One pass before the language
model, no attention maps.

The importance scores come from a learned scorer in the form of VisionSelector (`ImportanceScorer`). Without one, training-free
stand-ins are used and named in the trace: CLS attention, token norm, projector sensitivity.

Paper and released code differ: the paper feeds the soft top-k output of the scorer into the rule, the released code its raw
scores; both are offered as `importance_transform`. The raw form is the default because the two agree on ranking and the raw
form needs no budget of its own. The released code gives all images of a prompt one budget (the default here too); `per_image`
gives each its own. `per_round` is the released code's ``parallel_k``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.selection import greedy_select
from tokenry.hosts.vlm import Signals, VisualTokens
from tokenry.pruning.base import check_tokens
from tokenry.pruning.idpruner.metrics import hopkins_statistic, importance_retention
from tokenry.pruning.idpruner.scorer import ImportanceScorer, ScorerConfig, soft_top_k
from tokenry.pruning.idpruner.training import ScorerTraining, train_scorer
from tokenry.pruning.importance import SOURCES, Source, resolve_source, signals_for, unit_importance
from tokenry.pruning.visual import Scope, VisualPruner, identity

__all__ = [
    "IDPruner",
    "ImportanceScorer",
    "ScorerConfig",
    "ScorerTraining",
    "hopkins_statistic",
    "importance_retention",
    "soft_top_k",
    "train_scorer",
]


def contract_instances() -> dict[str, IDPruner]:
    """What the contract of the wing is checked on."""
    return {
        "raw": IDPruner(0.25),
        "soft top-k": IDPruner(0.25, importance_transform="soft_topk"),
        "three a round": IDPruner(0.25, per_round=3),
    }


@dataclass(frozen=True)
class IDPruner(VisualPruner):
    """Keep visual tokens by maximal marginal relevance (Algorithm 1).

    Attributes:
        keep: ratio (float in (0, 1]) or count (int) of tokens to keep. Paper: 0.25 and 0.1.
        balance: lambda in [0, 1]; 1 = importance only, 0 = farthest point. Paper: 0.5.
        per_round: tokens taken per round. Paper: 1.
        importance_transform: ``"raw"`` scores or ``"soft_topk"``, sigmoid(score + t) with t such that the sum is the budget.
        clamp_negative: treat negative cosines as 0. Paper: False.
        per_image: a budget per image instead of one for all images of a prompt.
        importance: source used by `attach` when there is no `scorer`; ``"auto"`` is CLS attention where there is a CLS token,
            else the token norm. These are training-free stand-ins for the learned scorer.
        scorer: learned `ImportanceScorer`.
        soft_fraction: budget of the soft top-k as a fraction of N; None = the pruner's own budget (released code: 0.2).
    """

    balance: float = 0.5
    per_round: int = 1
    importance_transform: Literal["raw", "soft_topk"] = "raw"
    clamp_negative: bool = False
    per_image: bool = False
    importance: Source = "auto"
    scorer: ImportanceScorer | None = field(default=None, compare=False)
    soft_fraction: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("balance", self.balance, 0.0, 1.0)
        check_int("per_round", self.per_round, 1)
        check_choice("importance_transform", self.importance_transform, ("raw", "soft_topk"))
        check_choice("importance", self.importance, SOURCES)
        if self.soft_fraction is not None:
            check_range("soft_fraction", self.soft_fraction, 0.0, 1.0, low_open=True, high_open=True)

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Indices [B,K] in selection order for `features` [B,N,D] and raw scores `importance` [B,N].

        `mask` [B,N] bool: False = never kept. ``K = N`` returns 0..N-1.

        Raises:
            ValueError: importance missing, of another shape or not finite; fewer than K unmasked tokens.
        """
        if importance is None:
            raise ValueError("importance must be given ([B, N] scores, for example CLS attention), got None")
        _, n = check_tokens(features, importance)
        k = self.plan(n)
        if k == n and mask is None:
            return identity(features)
        if self.importance_transform == "soft_topk":
            budget = float(k) if self.soft_fraction is None else self.soft_fraction * n
            importance = soft_top_k(importance, budget, mask=mask)
        return greedy_select(
            features,
            k,
            rule="mmr",
            importance=importance,
            balance=self.balance,
            mask=mask,
            per_round=self.per_round,
            clamp_negative=self.clamp_negative,
        )

    def _scope(self) -> Scope:
        return "image" if self.per_image else "prompt"

    def _signals(self, model: nn.Module) -> Signals:
        if self.scorer is not None:
            return Signals()
        source = resolve_source(self.importance, model)
        return signals_for(source)

    def _importance(self, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor | None:
        if self.scorer is not None:
            with torch.no_grad():
                return self.scorer(features.unsqueeze(0)).squeeze(0)
        return unit_importance(self.importance, features, tokens, number)
