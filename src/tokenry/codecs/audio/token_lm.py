"""A small language model over audio codes, and how many bits it needs per frame: the lower, the more predictable the tokens.

A GRU reads the frames before; inside a frame, book m also sees the books before it (the likelihood is exact, by the chain
rule). Bits per frame are those of the books that are given: score a codec's first book alone by passing ``codes[..., :1]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenry.codecs.audio.embedding import BookEmbedding
from tokenry.core.checks import check_int, check_range
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded


class TokenLM(nn.Module):
    """Next-frame model of codes [B,T,M].

    Args:
        codebook_sizes: codes of every book.
        dim: width of the embeddings and of the GRU.
        layers: of the GRU.
        seed: of the initial weights.
    """

    def __init__(self, codebook_sizes: Sequence[int], *, dim: int = 64, layers: int = 1, seed: int = 0) -> None:
        super().__init__()
        check_int("layers", layers, 1)
        with seeded(check_int("seed", seed, 0)):
            self.embedding = BookEmbedding(codebook_sizes, dim, seed=seed)
            self.inner = BookEmbedding(codebook_sizes, dim, seed=seed + 1)
            self.begin = nn.Parameter(torch.zeros(dim))
            self.gru = nn.GRU(dim, dim, layers, batch_first=True)
            self.heads = nn.ModuleList([nn.Linear(dim, size) for size in codebook_sizes])

    def nats(self, codes: Tensor) -> Tensor:
        """-ln p of every code [B,T,M], 0 where it is -1."""
        if codes.dim() != 3 or codes.shape[2] != len(self.heads) or 0 in codes.shape:
            raise ValueError(f"codes must have shape [B, T, {len(self.heads)}], got {list(codes.shape)}")
        frames = self.embedding(codes).sum(dim=2)
        before = torch.cat([self.begin.expand(len(codes), 1, -1), frames[:, :-1]], dim=1)
        state = self.gru(before)[0]
        within = self.inner(codes)
        terms = []
        for book, head in enumerate(self.heads):
            logits = head(torch.relu(state + within[:, :, :book].sum(dim=2)))
            wanted = codes[..., book]
            terms.append(nn.functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=-1, reduction="none"))
        return torch.stack(terms, dim=-1)

    def forward(self, codes: Tensor) -> Tensor:
        """Mean nats per real frame of the batch, a scalar."""
        return self.nats(codes).sum() / (codes >= 0).any(-1).sum().clamp_min(1)


@dataclass(frozen=True)
class LMTraining:
    """Settings: AdamW `steps` of `batch` clips at `learning_rate`, cosine to zero; `seed` of the draws."""

    steps: int = 300
    batch: int = 32
    learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("steps", self.steps, 1)
        check_int("batch", self.batch, 1)
        check_int("seed", self.seed, 0)
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)


def train_token_lm(lm: TokenLM, codes: Tensor, settings: LMTraining | None = None) -> list[float]:
    """Train `lm` in place on codes [N,T,M] (-1 = padding); returns the nats per frame of every step."""
    settings = settings or LMTraining()
    generator = torch.Generator().manual_seed(settings.seed)

    def loss_of(step: int) -> Tensor:
        return lm(codes[torch.randperm(len(codes), generator=generator)[: settings.batch].to(codes.device)])

    plan = Plan(steps=settings.steps, learning_rate=settings.learning_rate, weight_decay=1e-3, warmup=0.0)
    log = descend(lm, loss_of, plan, log_every=1)
    lm.eval()
    return [row["loss"] for row in log]


@torch.no_grad()
def bits_per_frame(lm: TokenLM, codes: Tensor) -> Tensor:
    """Bits per real frame of every clip [B], first frame included. Uniform codes cost sum log2 K.

    Raises:
        ValueError: a clip without a frame.
    """
    frames = (codes >= 0).any(-1).sum(1)
    if bool((frames == 0).any()):
        raise ValueError("every clip must have at least one frame that is not -1")
    return lm.nats(codes).sum((1, 2)) / frames / math.log(2)
