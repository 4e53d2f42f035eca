"""Probes on frozen tokens (DASB's protocol in small): embedding of the books, attention over them, a linear head.

The same probe reads continuous features, the reference that tokens are compared with. Training is seeded; nothing but the
probe is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokenry.codecs.audio.embedding import BookAttention, BookEmbedding
from tokenry.core.checks import check_choice, check_finite, check_int, check_mask, check_range, check_tensor
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded

Level = Literal["frame", "utterance"]
IGNORED = -1


class TokenProbe(nn.Module):
    """Codes [B,T,m] (or features [B,T,F]) -> logits, [B,T,classes] per frame or [B,classes] per utterance.

    Args:
        classes: number of classes.
        codebook_sizes: of the tokens; None for a probe on features.
        features: width of the features; None for a probe on tokens.
        level: ``frame``, or ``utterance`` (mean over the real frames).
        dim: width of the embedding (of the hidden layer, for features).
        attention: combine the books by attention; False = sum them, which makes a linear probe of one-hot codes.
        context: a frame reads the mean over itself and that many real frames on either side.
        seed: of the initial weights.

    Raises:
        TypeError, ValueError: not exactly one of codebook_sizes and features, or values out of range.
    """

    def __init__(
        self,
        classes: int,
        *,
        codebook_sizes: Sequence[int] | None = None,
        features: int | None = None,
        level: Level = "frame",
        dim: int = 64,
        attention: bool = True,
        context: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.context = check_int("context", context, 0)
        if (codebook_sizes is None) == (features is None):
            raise ValueError("give exactly one of codebook_sizes (a probe on tokens) and features (on continuous features)")
        self.level: Level = check_choice("level", level, ("frame", "utterance"))
        check_int("classes", classes, 2)
        with seeded(check_int("seed", seed, 0)):
            self.embedding = BookEmbedding(codebook_sizes, dim, seed=seed) if codebook_sizes is not None else None
            self.attention = BookAttention(dim) if codebook_sizes is not None and attention else None
            # What the embedding is to tokens: features pass one hidden layer before the linear head.
            self.hidden = nn.Sequential(nn.Linear(features, dim), nn.ReLU()) if features is not None else None
            self.head = nn.Linear(dim, classes)
        # Features are standardised by the training frames' mean and deviation, which `train_probe` fills in.
        self.register_buffer("mean", torch.zeros(features or 0))
        self.register_buffer("deviation", torch.ones(features or 0))

    mean: Tensor
    deviation: Tensor

    def frames(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """One vector per frame [B,T,D], zero at padding."""
        keep = _mask(x, mask)[..., None]
        if self.embedding is None:
            assert self.hidden is not None
            vectors = self.hidden((check_finite("features", x) - self.mean) / self.deviation)
        else:
            books = self.embedding(x)
            vectors = books.sum(dim=-2) if self.attention is None else self.attention(books, x >= 0)
        vectors = vectors * keep
        if self.context == 0:
            return vectors
        window = 2 * self.context + 1
        sums, counts = (
            nn.functional.avg_pool1d(part.transpose(1, 2), window, stride=1, padding=self.context).transpose(1, 2)
            for part in (vectors, keep.to(vectors.dtype))
        )
        return sums / counts.clamp_min(1 / (2 * window)) * keep

    def pooled(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over the real frames [B,D]: an utterance's embedding, for verification."""
        return self.frames(x, mask).sum(1) / _mask(x, mask).sum(1, keepdim=True).clamp_min(1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of codes [B,T,m] or features [B,T,F]; `mask` [B,T] (True = real), by default the frames that are not -1."""
        return self.head(self.frames(x, mask) if self.level == "frame" else self.pooled(x, mask))


@dataclass(frozen=True)
class ProbeTraining:
    """Settings: AdamW `steps` of `batch` clips at `learning_rate` with `weight_decay`, cosine to zero; `seed` of the draws."""

    steps: int = 300
    batch: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 1)
        check_int("batch", self.batch, 1)
        check_int("seed", self.seed, 0)
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)
        check_range("weight_decay", self.weight_decay, 0.0)


def train_probe(
    probe: TokenProbe, x: Tensor, labels: Tensor, settings: ProbeTraining | None = None, *, mask: Tensor | None = None
) -> list[float]:
    """Train `probe` in place; labels [B,T] or [B], -1 = ignored. Returns the loss of every step.

    Raises:
        TypeError, ValueError: labels of another shape than the probe's level asks for, or out of range.
    """
    settings = settings or ProbeTraining()
    keep = _mask(x, mask)
    _check_labels(probe, x, labels)
    if probe.embedding is None:
        real = x[keep].detach()
        probe.mean, probe.deviation = real.mean(0), real.std(0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(settings.seed)

    def loss_of(step: int) -> Tensor:
        rows = torch.randperm(len(x), generator=generator)[: settings.batch].to(x.device)
        wanted = labels[rows]
        if probe.level == "frame":
            wanted = torch.where(keep[rows], wanted, IGNORED)
        logits = probe(x[rows], keep[rows])
        return nn.functional.cross_entropy(logits.flatten(0, -2), wanted.flatten(), ignore_index=IGNORED)

    plan = Plan(
        steps=settings.steps, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, clip=None, warmup=0.0
    )
    log = descend(probe, loss_of, plan, log_every=1)
    probe.eval()
    return [row["loss"] for row in log]


@torch.no_grad()
def probe_accuracy(probe: TokenProbe, x: Tensor, labels: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Accuracy of every clip [B], over its labelled real frames (or 0 or 1 for an utterance); nan where there is none."""
    keep = _mask(x, mask)
    _check_labels(probe, x, labels)
    hits = probe(x, keep).argmax(-1) == labels
    counted = labels != IGNORED
    if probe.level == "utterance":
        return torch.where(counted, hits.float(), torch.nan)
    counted = counted & keep
    return (hits & counted).sum(1) / counted.sum(1)


def equal_error_rate(scores: Tensor, same: Tensor) -> float:
    """Rate at which false acceptances equal false rejections, in 0..1; `scores` [N] are higher for pairs of the same class.

    Between two thresholds the two rates are interpolated linearly; equal scores are accepted together.

    Raises:
        TypeError, ValueError: shapes differ, scores are not finite, or one kind of pair is missing.
    """
    check_finite("scores", check_tensor("scores", scores))
    check_mask("same", same, scores.shape)
    if scores.dim() != 1 or not bool(same.any()) or bool(same.all()):
        raise ValueError("scores must be [N] with at least one pair of each kind")
    values, group = torch.unique(scores, return_inverse=True)  # ascending
    positive = torch.zeros(len(values), dtype=torch.float64).scatter_add_(0, group.cpu(), same.cpu().double())
    negative = torch.zeros(len(values), dtype=torch.float64).scatter_add_(0, group.cpu(), (~same).cpu().double())
    zero = torch.zeros(1, dtype=torch.float64)
    rejected = torch.cat([zero, positive.cumsum(0)]) / positive.sum()  # misses at a threshold above each value
    accepted = 1 - torch.cat([zero, negative.cumsum(0)]) / negative.sum()
    gap = rejected - accepted  # -1 .. 1, ascending
    after = int((gap >= 0).nonzero()[0])
    low, high = gap[after - 1], gap[after]
    share = float(-low / (high - low))
    return float(rejected[after - 1] + share * (rejected[after] - rejected[after - 1]))


def _mask(x: Tensor, mask: Tensor | None) -> Tensor:
    check_tensor("x", x)
    if x.dim() != 3:
        raise ValueError(f"x must be codes [B, T, m] or features [B, T, F], got {list(x.shape)}")
    if mask is not None:
        return check_mask("mask", mask, x.shape[:2])
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if x.is_floating_point() else (x >= 0).any(-1)


def _check_labels(probe: TokenProbe, x: Tensor, labels: Tensor) -> None:
    check_tensor("labels", labels)
    wanted = list(x.shape[:2]) if probe.level == "frame" else [len(x)]
    if labels.is_floating_point() or list(labels.shape) != wanted:
        raise ValueError(
            f"labels must be integers {wanted} for a probe per {probe.level}, got {labels.dtype} {list(labels.shape)}"
        )
    if bool(((labels < IGNORED) | (labels >= probe.head.out_features)).any()):
        raise ValueError(f"labels must be 0..{probe.head.out_features - 1}, or -1 to ignore")
