"""QINCo: residual levels whose book depends on what the levels before have coded (Huijben et al., 2024, arXiv 2401.14732).

Level 1 has a plain book. Level m > 1 turns each row c of its base book C_m into a code for the partial sum x^ = x^_{m-1}:

    f_m(c, x^): y = c + W [c; x^] + b;  y <- y + W_2 relu(W_1 y), L times
    k_m = argmin_k ||z - x^ - f_m(C_m[k], x^)||^2,  x^_m = x^ + f_m(C_m[k_m], x^)
    loss = sum_m mse(sg z, x^_m) + commitment mse(z, sg x^_m)

`rank` factors W into two maps of that rank (QINCo-LR). Encoding runs f for every code, decoding only for those chosen. The
paper's loss is the first term, its gradient passes from each level to those before it. Ours: the last map of every part starts
at zero, so that books start as those of RVQ; dead codes are not replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.codecs.vq.asymmetric import DecodedSearch
from tokenry.codecs.vq.base import Choice, Quantized, spread
from tokenry.codecs.vq.prefixes import LevelPrefixes
from tokenry.codecs.vq.single import check_bank
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.codebooks.codebooks import kmeans, nearest_codes, row_chunks
from tokenry.core.codebooks.estimators import rotation_trick, straight_through
from tokenry.core.codebooks.ranks import joined_rows
from tokenry.core.codebooks.terms import joined, pulls
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded_linear

_CHUNK = 1 << 22


class ImplicitBook(nn.Module):
    """f(c, x^) [n, d] of rows c and partial sums x^ [n, d]; zero maps at the start leave c as it is."""

    def __init__(self, width: int, hidden: int, blocks: int, rank: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.first = seeded_linear(2 * width, rank, generator, bias=False) if rank else nn.Identity()
        self.last = _zero_linear(rank or 2 * width, width, bias=rank is None)
        self.into = nn.ModuleList(seeded_linear(width, hidden, generator, bias=False) for _ in range(blocks))
        self.out = nn.ModuleList(_zero_linear(hidden, width, bias=False) for _ in range(blocks))

    def forward(self, rows: Tensor, partial: Tensor) -> Tensor:
        """Codes [n, d] for rows [n, d] after partial sums [n, d]."""
        y = rows + self.last(self.first(torch.cat([rows, partial], dim=-1)))
        for into, out in zip(self.into, self.out, strict=True):
            y = y + out(F.relu(into(y)))
        return y


class QINCo(LevelPrefixes, DecodedSearch):
    """Residual levels with implicit books: x [..., D] -> codes [..., D], indices [..., M]; `codebook` is [M, K, d].

    Args:
        dim: width D.
        levels: number of levels M.
        codebook_size: K of each.
        hidden: width h of the residual blocks, d by default.
        blocks: number L of residual blocks.
        rank: of the map of row and partial sum; None leaves it full.
        commitment: weight of mse(z, sg x^_m).
        estimator: "straight_through" or "rotation", on the sum.
        kmeans_init: the first training batch sets book after book by k-means of what is left.
        code_dim: width d of the code space; linear maps lead in and out.
        seed: of the books and maps.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: sections 3 and 4 of QINCo.
    """

    scale: Tensor
    initialised: Tensor

    def __init__(
        self,
        dim: int,
        levels: int,
        codebook_size: int,
        *,
        hidden: int | None = None,
        blocks: int = 2,
        rank: int | None = None,
        commitment: float = 0.25,
        estimator: Literal["straight_through", "rotation"] = "straight_through",
        kmeans_init: bool = False,
        code_dim: int | None = None,
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        check_int("codebook_size", codebook_size, 2)
        width = check_int("dim", dim, 1) if code_dim is None else check_int("code_dim", code_dim, 1)
        super().__init__(dim, width, check_int("levels", levels, 1), codebook_size, channels_first=channels_first, seed=seed)
        self.levels = levels
        self.commitment = check_range("commitment", commitment, 0)
        self.estimator = check_choice("estimator", estimator, ("straight_through", "rotation"))
        self.hidden = width if hidden is None else check_int("hidden", hidden, 1)
        check_int("blocks", blocks, 0)
        if rank is not None:
            check_int("rank", rank, 1)
        generator = torch.Generator().manual_seed(seed)
        self.codebook = nn.Parameter(torch.randn(levels, codebook_size, width, generator=generator) * width**-0.5)
        self.books_of = nn.ModuleList(
            ImplicitBook(width, self.hidden, blocks, rank, generator) for _ in range(levels - 1)
        )  # fmt: skip
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("initialised", torch.tensor(not kmeans_init))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, levels: int | None = None, *, with_loss: bool | None = None
    ) -> Quantized:
        """Quantize x [..., D] with all levels, or the first `levels`."""
        return super().forward(x, mask, with_loss=with_loss, levels=levels)

    def _codes(self, level: int, indices: Tensor, partial: Tensor) -> Tensor:
        """Codes [n, d] of one level for indices [n] after partial sums [n, d]."""
        rows = F.embedding(indices, self.codebook[level])
        return rows if level == 0 else self.books_of[level - 1](rows, partial)

    @torch.no_grad()
    def _nearest(self, level: int, left: Tensor, partial: Tensor) -> Tensor:
        """Index [n] of the nearest code of one level to what is left."""
        book = self.codebook[level].detach()
        if level == 0:
            return nearest_codes(left, book)
        step = max(1, _CHUNK // (len(book) * max(2 * self.code_dim, self.hidden)))
        found = []
        for part, sums in zip(row_chunks(left, step), row_chunks(partial, step), strict=True):
            rows = book.repeat(part.shape[0], 1)
            codes = self.books_of[level - 1](rows, sums.repeat_interleave(len(book), dim=0)).unflatten(0, (-1, len(book)))
            found.append((codes - part[:, None]).square().sum(dim=-1).argmin(dim=1))
        return torch.cat(found)

    def _steps(self, z: Tensor, levels: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Level after level: (indices [n], partial sum [n, d]) of rows z [n, d] on the scale of the books."""
        partial = torch.zeros_like(z)
        for level in range(levels):
            indices = self._nearest(level, (z - partial).detach(), partial.detach())
            partial = partial + self._codes(level, indices, partial)
            yield indices, partial

    def _quantize(self, z: Tensor, keep: Tensor | None, levels: int | None = None) -> Choice:
        real, used = z if keep is None else z[keep], self._count(levels)
        if self.training and not self.frozen and not bool(self.initialised):
            self._start(real.detach(), 10)
        points = real / self.scale
        steps = list(self._steps(points, used))
        partials = [partial for _, partial in steps]
        found = [pulls(points, partial, self.commitment) for partial in partials]
        each = torch.stack([*(loss for loss, _ in found), *[z.new_zeros(())] * (self.levels - used)])
        total = partials[-1] * self.scale
        codes = rotation_trick(real, total) if self.estimator == "rotation" else straight_through(real, total)
        indices = torch.full((real.shape[0], self.levels), -1, device=z.device)
        indices[:, :used] = torch.stack([index for index, _ in steps], dim=-1)
        return Choice(spread(codes, keep), spread(indices, keep, -1), each.sum(), each, joined(terms for _, terms in found))

    def _encode(self, z: Tensor, levels: int) -> Tensor:
        return torch.stack([index for index, _ in self._steps(z / self.scale, levels)], dim=-1)

    def _lookup(self, indices: Tensor) -> Tensor:
        """What each level adds: [..., M, d]."""
        flat = indices.reshape(-1, indices.shape[-1])
        partial, parts = self.codebook.new_zeros(flat.shape[0], self.code_dim), []
        for level, index in enumerate(flat.unbind(-1)):
            codes = self._codes(level, index.clamp(min=0), partial).masked_fill((index < 0)[:, None], 0.0)
            partial = partial + codes
            parts.append(codes * self.scale)
        return torch.stack(parts, dim=-2).reshape((*indices.shape, self.code_dim))

    @torch.no_grad()
    def _start(self, z: Tensor, iterations: int) -> None:
        """Books by k-means of what is left, level after level; vectors are taken by their standard deviation."""
        if (rows := joined_rows(len(z), z.device)[1]) < self.codebook_size:
            raise ValueError(f"kmeans_init needs at least codebook_size={self.codebook_size} vectors, got {rows}")
        left, partial = z / self.scale, torch.zeros_like(z)
        for level in range(self.levels):
            generator = self._generator(-1 - level)
            book, _ = kmeans(left, self.codebook_size, iterations=iterations, generator=generator, reseed=True)
            self.codebook[level] = book
            codes = self._codes(level, self._nearest(level, left, partial), partial)
            left, partial = left - codes, partial + codes
        self.initialised.fill_(True)

    def fit(
        self, x: Tensor, *, steps: int = 1000, batch: int = 256, learning_rate: float = 1e-3, iterations: int = 25
    ) -> QINCo:
        """Start as RVQ on a bank x [N, D], then `steps` of AdamW on batches of it; returns self.

        Raises:
            ValueError: fewer vectors than codes.
        """
        bank = self.project_in(check_bank(x, self.dim, self.codebook_size)).detach()
        with torch.no_grad():
            self.scale.copy_(bank.std().clamp(min=torch.finfo(bank.dtype).tiny))
        self._start(bank, iterations)
        points = bank / self.scale

        def loss_of(step: int) -> Tensor:
            rows = torch.randint(len(points), (batch,), generator=self._generator(step)).to(points.device)
            part = points[rows]
            return torch.stack([F.mse_loss(partial, part) for _, partial in self._steps(part, self.levels)]).sum()

        maps = [p for map_ in (self.project_in, self.project_out) for p in map_.parameters()]
        learned = [p.requires_grad_(False) for p in maps if p.requires_grad]
        descend(self, loss_of, Plan(steps=steps, learning_rate=learning_rate, weight_decay=0.0))
        for p in learned:
            p.requires_grad_(True)
        return self


def _zero_linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
