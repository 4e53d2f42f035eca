"""Probes: what can be read off frozen features by a linear map, a small network, or least squares."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checks import check_choice, check_finite, check_float, check_int, check_mask, check_range, check_tensor
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded

Kind = Literal["linear", "mlp", "least_squares"]
_BATCH = 1024


class Probe(nn.Module):
    """A map from features [..., D] to scores [..., C]; in evaluation mode.

    Attributes:
        mean, deviation: of the training features [D]; taken out before the map (0 and 1 for least squares).
        net: the map.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor, net: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Scores [..., C]: logits of classes, or values."""
        return self.net((x.to(self.mean.dtype) - self.mean) / self.deviation)

    @torch.no_grad()
    def hits(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the highest score is that of class `y` [...], float32 [...]."""
        return (self(x).argmax(dim=-1) == y).float()


def fit_probe(
    x: Tensor,
    y: Tensor,
    *,
    kind: Kind = "linear",
    mask: Tensor | None = None,
    classes: int | None = None,
    hidden: int = 64,
    steps: int = 300,
    learning_rate: float = 3e-2,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> Probe:
    """Fit a probe; the features get no gradient and the global random state stays.

    Args:
        x: features [..., D].
        y: classes [...] as integers, or values [..., C] as floats.
        kind: ``linear`` and ``mlp`` (one hidden layer, GELU) go down the cross-entropy, or the mean squared error for values,
            with AdamW and a cosine to zero on standardised features; ``least_squares`` is the exact map with a constant, of
            one-hot classes or of values, in float64 for float64 features.
        mask: which places are real [...], True = real.
        classes: number of classes C; by default the highest of `y` plus one.
        hidden: width of the MLP.
        steps: of AdamW, each on at most 1,024 places.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        seed: of weights and order.

    Raises:
        TypeError, ValueError: shapes that do not fit, features that are not finite, classes out of range, no real place.
    """
    check_choice("kind", kind, get_args(Kind))
    check_int("hidden", hidden, 1)
    check_int("steps", steps, 1)
    check_range("learning_rate", learning_rate, 0.0, low_open=True)
    check_range("weight_decay", weight_decay, 0.0)
    rows, targets, width = _rows(x, y, mask, classes)
    rows = rows if rows.dtype == torch.float64 and kind == "least_squares" else rows.float()
    if kind == "least_squares":
        return _least_squares(rows, targets, width)
    mean, deviation = rows.mean(dim=0), rows.std(dim=0, correction=0)
    # A feature that never moved in training says nothing; its unit is kept, so that it cannot explode later.
    deviation = torch.where(deviation > 1e-6 * mean.abs().clamp_min(1e-6), deviation, 1.0)
    with seeded(seed):
        layers = [nn.Linear(rows.shape[1], hidden), nn.GELU(), nn.Linear(hidden, width)]
        net = nn.Linear(rows.shape[1], width) if kind == "linear" else nn.Sequential(*layers)
    probe = Probe(mean, deviation, net.to(rows.device))
    generator = torch.Generator().manual_seed(seed)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randperm(len(rows), generator=generator)[:_BATCH].to(rows.device) if len(rows) > _BATCH else slice(None)
        made = probe(rows[chosen])
        wanted = targets[chosen]
        return F.mse_loss(made, wanted.to(made.dtype)) if wanted.is_floating_point() else F.cross_entropy(made, wanted)

    descend(probe, loss_of, Plan(steps=steps, learning_rate=learning_rate, weight_decay=weight_decay, clip=None, warmup=0.0))
    return probe.eval()


def _rows(x: Tensor, y: Tensor, mask: Tensor | None, classes: int | None) -> tuple[Tensor, Tensor, int]:
    """Features [n, D] and targets of the real places, and the number of scores."""
    check_float("x", x)
    check_tensor("y", y)
    places = x.shape[:-1]
    if x.dim() < 2 or y.shape[: len(places)] != places or y.dim() != len(places) + y.is_floating_point():
        raise ValueError(
            f"y must be classes {list(places)} or values {[*places, 'C']} for x {list(x.shape)}, got {list(y.shape)}"
        )
    keep = torch.ones(places, dtype=torch.bool, device=x.device) if mask is None else check_mask("mask", mask, places)
    rows, targets = check_finite("x", x.detach()[keep]), y[keep]
    if not len(rows):
        empty = f"x must hold at least one place, got shape {list(x.shape)}"
        raise ValueError("mask must keep at least one place, got all False" if x.numel() else empty)
    if targets.is_floating_point():
        return rows, check_finite("y", targets), targets.shape[1]
    width = int(targets.max()) + 1 if classes is None else check_int("classes", classes, 1)
    if bool(((targets < 0) | (targets >= width)).any()):
        raise ValueError(f"y must be 0..{width - 1} at the real places, got {int(targets.min())}..{int(targets.max())}")
    return rows, targets.long(), width


@torch.no_grad()
def _least_squares(rows: Tensor, targets: Tensor, width: int) -> Probe:
    wanted = targets if targets.is_floating_point() else F.one_hot(targets, width)
    design = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
    solution = torch.linalg.lstsq(design, wanted.to(design.dtype)).solution
    net: Any = nn.utils.skip_init(nn.Linear, rows.shape[1], width, dtype=rows.dtype, device=rows.device)
    net.weight.copy_(solution[:-1].T)
    net.bias.copy_(solution[-1])
    return Probe(rows.new_zeros(rows.shape[1]), rows.new_ones(rows.shape[1]), net).eval()
