"""VQ (VQ-VAE): one codebook of K codes, the nearest one wins.

k* = argmin_k ||z - c_k||, ties to the lowest k; z_q = c_k*. The loss is beta ||z - sg(z_q)||^2, plus ||sg(z) - z_q||^2
for a book that learns by gradient, means over all elements. An EMA book follows

    n_k <- g n_k + (1 - g) count_k,   m_k <- g m_k + (1 - g) sum of its z,   c_k = m_k / n~_k,
    n~_k = (n_k + eps) / (sum n + K eps) * sum n

and the output of a step uses the book before its update. Defaults g = 0.8, eps = 1e-5, beta = 1 are those of
vector-quantize-pytorch; VQ-VAE itself used beta = 0.25. Variants of released code are options: Mimi's update
(`smoothing="clamp"`, decay 0.99), DAC's codes (`distance="cosine"`, `code_dim=8`, `ema=False`, `emit="row"`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.vq.base import Choice, spread
from tokenry.codecs.vq.lookup import LookupOptions, LookupQuantizer
from tokenry.core.checks import check_choice, check_finite, check_int, check_shape
from tokenry.core.codebooks.codebooks import kmeans, nearest_codes

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VectorQuantizer(LookupQuantizer):
    """One codebook: x [..., D] -> codes [..., D], indices [...]; `codebook` is [K, d].

    Args:
        dim: width D.
        codebook_size: K, at least 2.
        emit: "unit" or "row": with cosine, give out unit rows or the rows as they are ("row" needs ema=False).
        options: the options below (with their defaults), shared by all quantizers with learned books.

    Options:
        - distance ("euclidean"): or "cosine": rows and codes of unit norm, the largest dot product wins.
        - ema (True): the book follows a moving average of its vectors; False: it learns by gradient.
        - decay (0.8): g of the moving average.
        - epsilon (1e-5): of Laplace smoothing.
        - smoothing ("laplace"): or "clamp" (n~ = max(n, eps)).
        - commitment (1.0): weight of ||z - sg(z_q)||^2.
        - estimator ("straight_through"): gradient through the choice; or "rotation", "gumbel", "index_backprop", "diveq" (which
          trains the book by the gradient of the codes, without any loss of its own; ema=False).
        - temperature (1.0): of the softmax over codes (soft estimators, entropy term); an attribute that may be annealed.
        - noise_variance (1e-3): of DiVeQ's noise in training; 0 for the codes themselves.
        - sample_temperature (0.0): in training codes are drawn with p = softmax(-distance^2 / it); 0 takes the nearest. An
          attribute that may be annealed.
        - start: of the book: "uniform" in +-1/K (default with EMA), "kaiming" in +-(6 / (K d))^1/2 (both unit rows for cosine),
          or "batch" (default of books that learn by gradient): rows of the first training batch, halfway from its mean.
        - kmeans_init (False): the first training batch sets the book by `kmeans_iterations` (10) rounds of k-means.
        - reset_threshold (0.0): a code whose running count falls below it becomes a random vector of the batch; 0 = never.
        - reset_count: count given to such a code, `reset_threshold` by default.
        - code_dim (`dim`): width of the code space; linear maps lead in and out.
        - entropy_weight (0.0): weight of E[H(p)] - `diversity` (1.0) H(E[p]), p = softmax over the codes.
        - entropy_rows (all): so many vectors drawn from the batch for these entropies: memory O(entropy_rows K).
        - orthogonality (0.0): weight of mean cos^2 between codes (ema=False).
        - statistics ("forward"): every training pass moves the book; "manual": `update_books()` does, once per optimizer step
          (gradient accumulation, activation checkpointing).
        - seed (0): of the book and of all draws.
        - channels_first (False): inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: VQ-VAE; section 3.1 of the survey.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        emit: Literal["unit", "row"] = "unit",
        **options: Unpack[LookupOptions],
    ) -> None:
        super().__init__(dim, codebook_size, **options)
        self.emit = check_choice("emit", emit, ("unit", "row"))
        if emit == "row" and (self.ema or not self._dot):
            got = f"distance={self.distance!r}, ema={self.ema}"
            raise ValueError(f"emit='row' is for distance='cosine' with ema=False, got {got}")

    def _emitted(self, book: int) -> Tensor:
        return self._rows(book) if self.emit == "row" else self._compared(book)

    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        real = z if keep is None else z[keep]
        step = self._next_step(z)
        points = real if self.emit == "row" else self._prepare(real)
        stage = self._stage(points, 0, step)
        codes = self._codes(points, stage.rows, stage.soft, step)
        apart = self._orthogonality_terms()
        loss = stage.loss + apart["orthogonality"] if apart else stage.loss
        return Choice(spread(codes, keep), spread(stage.indices, keep, -1), loss, terms=stage.terms | apart)

    def _encode(self, z: Tensor) -> Tensor:
        return nearest_codes(z, self._compared(0), dot=self._dot)

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int = 25) -> VectorQuantizer:
        """Set the book by k-means on a bank of vectors x [N, D] (empty clusters move to random rows); returns self.

        Raises:
            ValueError: fewer vectors than codes.
        """
        fit_book(self, 0, self._prepare(self.project_in(check_bank(x, self.dim, self.codebook_size))), iterations)
        return self


def check_bank(x: Tensor, dim: int, codes: int) -> Tensor:
    """Return the bank x [N, dim] in float32 if it is finite and holds at least `codes` vectors, else raise."""
    sizes = check_shape("x", x, "N D", D=check_int("dim", dim))
    check_finite("x", x)
    if sizes["N"] < codes:
        raise ValueError(f"x must hold at least codebook_size={codes} vectors, got {sizes['N']}")
    return x if x.dtype == torch.float64 else x.float()


def fit_book(quantizer: LookupQuantizer, book: int, z: Tensor, iterations: int, warm: bool = False) -> None:
    """Set one book of `quantizer` by k-means on rows z [N, d]; `warm` starts from the book as it is."""
    start = quantizer._compared(book).clone() if warm else None
    centres, counts = kmeans(
        z, quantizer.codebook_size, iterations=iterations, generator=quantizer._generator(-1 - book), dot=quantizer._dot,
        start=start, reseed=True,
    )  # fmt: skip
    quantizer._replace(book, F.normalize(centres, dim=-1) if quantizer._dot else centres, counts)
    quantizer._state("initialised", book).fill_(True)
