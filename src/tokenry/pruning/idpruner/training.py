"""Training the importance scorer end to end with the language model frozen (VisionSelector's recipe, as IDPruner uses it).

Visual tokens are multiplied by the soft top-k mask p of their scores. The loss is the language model's cross-entropy plus a
weight times the binary cross-entropy between p and the hard top-k mask; the weight grows linearly over training, so that p
becomes nearly binary. The end points of that weight and the learning rate are ours: the papers do not print them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_int, check_range
from tokenry.core.descent import Plan, descend
from tokenry.core.progress import Progress
from tokenry.hosts.vlm import weigh_visual_tokens
from tokenry.pruning.idpruner.scorer import ImportanceScorer, soft_top_k


@dataclass(frozen=True)
class ScorerTraining:
    """Settings of the recipe.

    Attributes:
        budget: fraction of the visual tokens that the soft mask lets through. Released code: 0.2.
        steps: optimizer steps.
        learning_rate: of AdamW.
        binary_weight: (start, end) of the weight of the binary term, linear over the steps.
    """

    budget: float = 0.2
    steps: int = 200
    learning_rate: float = 2e-3
    binary_weight: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_range("budget", self.budget, 0.0, 1.0, low_open=True, high_open=True)
        check_int("steps", self.steps, 1)
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)
        for value in self.binary_weight:
            check_range("binary_weight", value, 0.0)


def train_scorer(
    model: nn.Module,
    scorer: ImportanceScorer,
    batches: Iterable[Mapping[str, Tensor]],
    settings: ScorerTraining | None = None,
    *,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train `scorer` in place on `batches` of model inputs with ``labels``; returns the losses per step.

    The language model is put in eval mode and its parameters get no gradient; both are restored.

    Raises:
        ValueError: a batch without labels, fewer batches than steps, or a loss that is not finite (nothing is updated by it).
    """
    settings = settings or ScorerTraining()
    frozen = [p for p in model.parameters() if p.requires_grad]
    mode = model.training
    run, drawn = _SoftMask(scorer, settings.budget), iter(batches)

    def loss_of(step: int) -> dict[str, Any]:
        batch = next(drawn, None)
        if batch is None:
            raise ValueError(f"batches must yield at least steps = {settings.steps} batches, got {step}")
        return _terms(model, run, batch, settings, step)

    def tell(row: dict[str, Any]) -> None:
        if progress is not None:
            progress(f"loss {row['language']:.3f}", row["step"] / settings.steps)

    plan = Plan(steps=settings.steps, learning_rate=settings.learning_rate, clip=None, warmup=0.0, decay="none")
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.eval()
    try:
        with weigh_visual_tokens(model, "train_scorer", run):
            return descend(scorer, loss_of, plan, log_every=1, watch=tell)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.train(mode)
        scorer.eval()


def _terms(
    model: nn.Module, run: _SoftMask, batch: Mapping[str, Tensor], settings: ScorerTraining, step: int
) -> dict[str, Any]:
    if "labels" not in batch:
        raise ValueError(f"batches must hold labels, got {sorted(batch)}")
    language: Any = model(**batch).loss
    start, end = settings.binary_weight
    weight = start + (end - start) * step / max(settings.steps - 1, 1)
    binary = run.binary_loss()
    return {"loss": language + weight * binary, "language": language, "binary": binary, "weight": weight}


class _SoftMask:
    """Weights of the visual tokens, kept for the binary term."""

    def __init__(self, scorer: ImportanceScorer, budget: float) -> None:
        self.scorer, self.budget = scorer, budget
        self.soft: Tensor | None = None
        self.mask: Tensor | None = None

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        # Rows without an image have no budget to spend; a row's budget is its own token count times the fraction.
        scores = self.scorer(tokens, mask)
        soft = torch.zeros_like(scores)
        for count in mask.sum(dim=1).unique().tolist():
            rows = mask.sum(dim=1) == count
            if count > 1:
                soft[rows] = soft_top_k(scores[rows], self.budget * count, mask=mask[rows]).to(soft.dtype)
            else:
                soft[rows] = 1.0
        self.soft, self.mask = soft, mask
        return soft

    def binary_loss(self) -> Tensor:
        """Binary cross-entropy between the soft mask and its own hard top-k."""
        assert self.soft is not None
        assert self.mask is not None
        ranks = self.soft.detach().masked_fill(~self.mask, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        hard = (ranks < (self.budget * self.mask.sum(dim=1, keepdim=True)).round()).to(self.soft.dtype)
        soft = self.soft.clamp(1e-6, 1 - 1e-6)
        return nn.functional.binary_cross_entropy(soft[self.mask], hard[self.mask])
