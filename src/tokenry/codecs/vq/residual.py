"""RVQ: each level quantizes what the levels before it left over.

r_0 = z; for m = 1 ... M: k_m = nearest(C_m, r_{m-1}), q_m = C_m[k_m], r_m = r_{m-1} - sg(q_m); z_q = sum q_m. The gradient
estimator acts once, on the total. The loss is the sum over levels of each level's loss; `stats.losses` holds them.
A prefix of levels decodes to a coarser code; dropped levels have index -1 and decode to zero.

Quantizer dropout: per batch a random prefix is kept (vector-quantize-pytorch); `dropout_scope="sample"` draws it for
each sample (DAC); `allowed_levels` restricts the lengths (EnCodec's bandwidths). k-means starts level m on the residuals
of the already started level m - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.vq.asymmetric import AdditiveSearch
from tokenry.codecs.vq.base import Choice, Quantized, spread
from tokenry.codecs.vq.lookup import LookupOptions, LookupQuantizer
from tokenry.codecs.vq.prefixes import LevelPrefixes
from tokenry.codecs.vq.single import check_bank, fit_book
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.codebooks.codebooks import code_bias, nearest_codes, row_chunks
from tokenry.core.codebooks.estimators import SOFT_ESTIMATORS
from tokenry.core.codebooks.pending import in_backward
from tokenry.core.codebooks.ranks import joined_rows, own_rank
from tokenry.core.codebooks.terms import joined

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ResidualVQ(LevelPrefixes, AdditiveSearch, LookupQuantizer):
    """M codebooks in a row: x [..., D] -> codes [..., D], indices [..., M]; `codebook` is [M, K, d].

    Args:
        dim: width D.
        levels: number of codebooks M.
        codebook_size: K of each.
        quantizer_dropout: probability, in training, that only a random prefix of the levels is used.
        dropout_scope: draw once per "batch" (each rank its own), once for the batch "joined" over ranks, or for each "sample"
            (entry of the first axis).
        allowed_levels: lengths a prefix may have; 1 ... M by default.
        beam: number of partial sums kept at each level; 1 is greedy.
        shared: one book for all levels (RQ-VAE), `codebook` [1, K, d]; it learns once a step, from all of them.
        options: as for `VectorQuantizer`, level by level (distance, ema, decay, ..., seed, channels_first). With "cosine" a
            level compares directions and gives out unit rows.

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: section 3.2 of the survey.
    """

    def __init__(
        self,
        dim: int,
        levels: int,
        codebook_size: int,
        *,
        quantizer_dropout: float = 0.0,
        dropout_scope: Literal["batch", "joined", "sample"] = "batch",
        allowed_levels: Sequence[int] | None = None,
        beam: int = 1,
        shared: bool = False,
        **options: Unpack[LookupOptions],
    ) -> None:
        super().__init__(dim, codebook_size, books=check_int("levels", levels, 1), shared=shared, **options)
        self.levels = levels
        self.quantizer_dropout = check_range("quantizer_dropout", quantizer_dropout, 0, 1)
        self.dropout_scope = check_choice("dropout_scope", dropout_scope, ("batch", "joined", "sample"))
        lengths = range(1, levels + 1) if allowed_levels is None else allowed_levels
        self.allowed_levels = tuple(check_int("allowed_levels", n, 1, levels) for n in lengths)
        self.beam = check_int("beam", beam, 1)
        if beam > 1 and (self._dot or self.estimator in SOFT_ESTIMATORS):
            given_options = f"distance={self.distance!r}, estimator={self.estimator!r}"
            raise ValueError(f"beam={beam} minimises Euclidean error with hard codes, got {given_options}")

    def forward(
        self, x: Tensor, mask: Tensor | None = None, levels: int | None = None, *, with_loss: bool | None = None
    ) -> Quantized:
        """Quantize x [..., D] with all levels, or the first `levels`."""
        samples = x.shape[0] if isinstance(x, Tensor) and x.dim() > 1 else 1
        return super().forward(x, mask, with_loss=with_loss, samples=samples, levels=levels)

    def _quantize(self, z: Tensor, keep: Tensor | None, samples: int = 1, levels: int | None = None) -> Choice:
        used = self._count(levels)
        step = self._next_step(z)
        lengths = self._dropped(z.shape[0], samples, used, step, z.device)
        planned = self._beam(z, used) if self.beam > 1 and not self._must_start() else None
        residual, total, soft = z, torch.zeros_like(z), None
        indices, losses, terms = torch.full((z.shape[0], self.levels), -1, device=z.device), [], []
        for level in range(used):
            active = _both(keep, None if lengths is None else lengths > level)
            if active is not None and not bool(active.any()):
                losses.append(self._idle(z, level, step))
                continue
            given = None if planned is None else planned[:, level]
            stage = self._answer(residual, active, level, step, given)
            total = total + stage.rows
            soft = stage.soft if soft is None or stage.soft is None else soft + stage.soft
            indices[:, level] = stage.indices
            losses.append(stage.loss)
            terms.append(stage.terms)
            residual = residual - stage.rows.detach()
        if self.shared and self.training and self.statistics == "forward":
            self._take_pending(step)
        each = torch.stack([*losses, *[z.new_zeros(())] * (self.levels - used)])
        apart = self._orthogonality_terms()
        loss = each.sum() + apart["orthogonality"] if apart else each.sum()
        if keep is not None and self.estimator == "diveq":
            # noise is drawn for real rows alone
            codes = spread(self._codes(z[keep], total[keep], None, step), keep)
        else:
            codes = self._codes(z, total, soft, step)
        return Choice(codes, indices, loss, each, (joined(terms) or {}) | apart)

    def _questions(self, z: Tensor, given: Tensor) -> Iterator[tuple[int, Tensor]]:
        for level in range(given.shape[1]):
            yield level, self._prepare(z)
            rows = F.embedding(given[:, level].clamp(min=0), self._emitted(level)).detach()
            z = z - rows.masked_fill((given[:, level] < 0)[:, None], 0.0)

    def _must_start(self) -> bool:
        if not (self.training and self._starts_on_data) or self.frozen:
            return False
        # a repeated pass takes the way of the first one
        return not bool(self.initialised.all()) or (self._just_started and in_backward())

    @property
    def _draws(self) -> bool:
        return super()._draws or self.quantizer_dropout > 0

    def _dropped(self, rows: int, samples: int, used: int, step: int, device: torch.device) -> Tensor | None:
        """Number of levels each row may use [N], or None for all."""
        if not self.training or not self.quantizer_dropout or self._must_start():
            return None
        manual, scope = self.statistics == "manual", self.dropout_scope
        offset, draws, own = 0, samples if scope == "sample" else 1, scope != "joined"
        if scope == "joined" and manual:
            step = int(self.steps)  # one draw for all passes of an optimizer step
        elif scope == "sample" and not manual:
            (offset, draws), own = joined_rows(samples, device), False  # as one process draws for the joined batch
        generator = self._generator(step * 1009 + 503 + own_rank() * 4099 * own)
        drop = torch.rand(draws, generator=generator) < self.quantizer_dropout
        allowed = torch.tensor(self.allowed_levels)
        prefix = allowed[torch.randint(len(allowed), (draws,), generator=generator)]
        lengths = torch.where(drop, prefix, self.levels).clamp(max=used)[offset : offset + samples]
        return lengths.repeat_interleave(rows // len(lengths)).to(device)

    def _encode(self, z: Tensor, levels: int) -> Tensor:
        if self.beam > 1:
            return self._beam(z, levels)
        indices = []
        for level in range(levels):
            rows = self._compared(level)
            indices.append(nearest_codes(z, rows, dot=self._dot))
            z = z - F.embedding(indices[-1], rows)
        return torch.stack(indices, dim=-1)

    @torch.no_grad()
    def _beam(self, z: Tensor, levels: int) -> Tensor:
        return beam_search(z.detach(), self.codebook.detach().expand(self.levels, -1, -1)[:levels], self.beam)

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int = 25) -> ResidualVQ:
        """Set the books by k-means on a bank x [N, D], level after level on the residuals; returns self."""
        residual = self.project_in(check_bank(x, self.dim, self.codebook_size))
        if self.shared:
            return self._fit_shared(residual, iterations)
        for level in range(self.levels):
            real = self._prepare(residual)
            fit_book(self, level, real, iterations)
            rows = self._compared(level)
            residual = residual - F.embedding(nearest_codes(real, rows, dot=self._dot), rows)
        return self

    def _fit_shared(self, z: Tensor, iterations: int) -> ResidualVQ:
        """k-means of what all levels see: of the vectors first, then of the vectors and all remainders together."""
        seen = self._prepare(z)
        for round_ in range(iterations):
            fit_book(self, 0, seen, iterations if round_ == 0 else 1, warm=round_ > 0)
            left, parts, rows = z, [], self._compared(0)
            for _ in range(self.levels):
                parts.append(self._prepare(left))
                left = left - F.embedding(nearest_codes(parts[-1], rows, dot=self._dot), rows)
            seen = torch.cat(parts)
        return self


class _Beam(NamedTuple):
    """Partial sums of each row: what is left [N, B, D], indices so far [N, B, m]."""

    residual: Tensor
    indices: Tensor


def beam_search(z: Tensor, codebook: Tensor, width: int) -> Tensor:
    """Indices [N, M] of rows z [N, D] for books [M, K, D]: at each level the `width` partial sums of least squared error."""
    rows = max(1, (1 << 22) // (width * codebook.shape[1]))
    return torch.cat([_beam_rows(part, codebook, width) for part in row_chunks(z, rows)])


def _beam_rows(z: Tensor, codebook: Tensor, width: int) -> Tensor:
    beam = _Beam(z[:, None], torch.zeros(z.shape[0], 1, 0, dtype=torch.long, device=z.device))
    for book in codebook:
        n, b, _ = beam.residual.shape
        # ||r - c||^2 = ||r||^2 + (||c||^2 - 2 r.c): rows differ in ||r||^2, so it counts here
        scores = torch.addmm(code_bias(book), beam.residual.flatten(0, 1), book.t(), alpha=-2).view(n, b, -1)
        scores = (scores + beam.residual.square().sum(dim=-1, keepdim=True)).flatten(1)
        best = scores.topk(min(width, scores.shape[1]), dim=1, largest=False, sorted=True).indices
        parent, code = best // len(book), best % len(book)
        left = beam.residual.gather(1, parent[..., None].expand(-1, -1, z.shape[1])) - F.embedding(code, book)
        path = beam.indices.gather(1, parent[..., None].expand(-1, -1, beam.indices.shape[2]))
        beam = _Beam(left, torch.cat([path, code[..., None]], dim=2))
    final = beam.residual.square().sum(dim=-1).argmin(dim=1)
    return beam.indices[torch.arange(z.shape[0], device=z.device), final]


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b
