"""Importance of visual tokens from sources that need no training, by name; any of them feeds any selector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.hosts.vlm import Signals, VisualTokens, has_cls
from tokenry.pruning.sensitivity import exact_sensitivity, unit_directions

Source = Literal["auto", "cls_attention", "norm", "sensitivity", "random", "uniform"]
SOURCES: tuple[Source, ...] = ("auto", "cls_attention", "norm", "sensitivity", "random", "uniform")


def resolve_source(source: Source, model: nn.Module) -> Source:
    """``"auto"`` is CLS attention where the tower has a CLS token and a visual token is one of its patches, else the norm."""
    check_choice("importance", source, SOURCES)
    if source != "auto":
        return source
    return "cls_attention" if has_cls(model) else "norm"


def signals_for(source: Source) -> Signals:
    """What the host must read off on the way for this source."""
    if source == "cls_attention":
        return Signals(cls_attention=True)
    if source == "sensitivity":
        return Signals(projector={"sensitivity": seeded_sensitivity})
    return Signals()


def seeded_sensitivity(projector: nn.Module, x: Tensor) -> Tensor:
    """Exact sensitivity [G,N] along the paper's 64 directions, drawn from seed 0."""
    directions = unit_directions(64, x.shape[-1], generator=torch.Generator().manual_seed(0)).to(x.device)
    return exact_sensitivity(projector, x, directions)


def unit_importance(source: Source, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor:
    """Importance [n] of tokens that share a budget.

    Args:
        source: a name of `SOURCES`; ``"auto"`` takes CLS attention where it was recorded, else the norm.
        features: [n,D] projected tokens.
        tokens: the images they come from, each with the indices of its tokens.
        number: seed of ``"random"``.
    """
    if source == "auto":
        source = "cls_attention" if "cls_attention" in tokens[0][0].signals else "norm"
    if source in ("cls_attention", "sensitivity"):
        return torch.cat([image.signals[source][index] for image, index in tokens]).float()
    if source == "norm":
        return torch.linalg.vector_norm(features.float(), dim=-1)
    if source == "random":
        return torch.rand(len(features), generator=torch.Generator().manual_seed(number)).to(features.device)
    return torch.ones(len(features), device=features.device)
