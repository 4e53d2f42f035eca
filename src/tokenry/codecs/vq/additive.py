"""AQ: a code is the sum of one row of each of M full-width books, chosen together.

Encoders, from worst to best: greedy (RVQ's rule), ICM, beam search, exhaustive search. Books for given codes are a least
squares problem: with the one-hot design B [N, M K], min ||Z - B C||^2 + lambda ||C||^2; the ridge is needed, since the
blocks of B sum to one each. `fit` starts from RVQ and alternates the two. Inside a network the books learn by gradient.
The ridge of 1e-4 is our choice; the literature states none.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenry.codecs.vq.asymmetric import AdditiveSearch
from tokenry.codecs.vq.base import Choice, spread
from tokenry.codecs.vq.lookup import LookupQuantizer
from tokenry.codecs.vq.single import check_bank, fit_book
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.codebooks import additive as encoders
from tokenry.core.codebooks.moving_average import move_counts
from tokenry.core.codebooks.ranks import draw_rows, sum_over_ranks


class AdditiveVQ(AdditiveSearch, LookupQuantizer):
    """Sums of rows of M books: x [..., D] -> codes [..., D], indices [..., M]; `codebook` is [M, K, d], a parameter.

    Args:
        dim: width D.
        books: number of codebooks M.
        codebook_size: K of each.
        encoder: "greedy", "beam", "icm" or "exhaustive" (K^M at most 100,000).
        beam: partial codes kept by the beam search.
        sweeps: rounds of ICM over all books.
        restarts: perturbed restarts of ICM.
        ridge: lambda of the least-squares update.
        commitment: weight of ||z - sg(z_q)||^2, beside ||sg(z) - z_q||^2.
        estimator: "straight_through" or "rotation", on the sum.
        start: "batch" (default; the first training batch sets book after book by rows of what is left), "uniform" or "kaiming".
        kmeans_init: k-means of what is left does.
        reset_threshold: a code whose running count (decay `decay`) falls below it becomes a random remainder z - z_q.
        reset_count: count given to such a code.
        code_dim: width of the code space; linear maps lead in and out.
        seed: of the books and of all draws.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: section 3.4 of the survey.
    """

    def __init__(
        self,
        dim: int,
        books: int,
        codebook_size: int,
        *,
        encoder: Literal["greedy", "beam", "icm", "exhaustive"] = "beam",
        beam: int = 16,
        sweeps: int = 3,
        restarts: int = 0,
        ridge: float = 1e-4,
        commitment: float = 1.0,
        estimator: Literal["straight_through", "rotation"] = "straight_through",
        start: Literal["uniform", "kaiming", "batch"] | None = None,
        kmeans_init: bool = False,
        kmeans_iterations: int = 10,
        decay: float = 0.8,
        reset_threshold: float = 0.0,
        reset_count: float | None = None,
        code_dim: int | None = None,
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        check_choice("estimator", estimator, ("straight_through", "rotation"))
        super().__init__(
            dim, codebook_size, books=check_int("books", books, 1), ema=False, decay=decay, commitment=commitment,
            estimator=estimator, start=start, kmeans_init=kmeans_init, kmeans_iterations=kmeans_iterations,
            reset_threshold=reset_threshold, reset_count=reset_count, code_dim=code_dim, seed=seed,
            channels_first=channels_first,
        )  # fmt: skip
        self.encoder = check_choice("encoder", encoder, encoders.ENCODERS)
        self.beam = check_int("beam", beam, 1)
        self.sweeps = check_int("sweeps", sweeps, 1)
        self.restarts = check_int("restarts", restarts, 0)
        self.ridge = check_range("ridge", ridge, 0, low_open=True)
        if encoder == "exhaustive" and codebook_size**books > encoders.MAX_COMBINATIONS:
            raise ValueError(
                f"encoder='exhaustive' tries at most {encoders.MAX_COMBINATIONS} combinations, got {codebook_size}^{books}"
            )

    _without_repetition = "use reset_threshold=0, or "

    def _combine(self, codes: Tensor) -> Tensor:
        return codes.sum(dim=-2)

    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        real = z if keep is None else z[keep]
        step = self._next_step(z)
        if self.training and self._starts_on_data and not bool(self.initialised.all()):
            self._start_books(real.detach())
        indices = self._encode(real)
        rows = encoders.decode(indices, self.codebook.clone())  # codes may be reset before the backward pass
        codes, loss = self._codes(real, rows), self._loss(real, rows)
        if self.training and self.reset_threshold:
            self._revive((real - rows).detach(), indices, step)
        return Choice(spread(codes, keep), spread(indices, keep, -1), loss)

    @torch.no_grad()
    def _start_books(self, residual: Tensor) -> None:
        for book in range(len(self.codebook)):
            self._start(residual, book)
            rows = self.codebook[book]
            residual = residual - rows[encoders.greedy(residual, rows[None])[:, 0]]

    @torch.no_grad()
    def _revive(self, remainder: Tensor, indices: Tensor, step: int) -> None:
        """Dead codes become random remainders of the batch."""
        for book in range(len(self.codebook)):
            seen = torch.bincount(indices[:, book], minlength=self.codebook_size).to(self.counts.dtype)
            counts = self.counts[book]
            move_counts(counts, sum_over_ranks(seen), self.decay)
            dead = counts < self.reset_threshold
            if bool(dead.any()):
                self.codebook[book, dead] = draw_rows(remainder, int(dead.sum()), self._generator(step * 1009 + book))
                counts[dead] = self.reset_count

    @torch.no_grad()
    def _encode(self, z: Tensor) -> Tensor:
        z, books = z.detach(), self.codebook.detach()
        if self.encoder == "greedy":
            return encoders.greedy(z, books)
        if self.encoder == "beam":
            return encoders.beam(z, books, self.beam)
        if self.encoder == "exhaustive":
            return encoders.exhaustive(z, books)
        return encoders.perturbed_icm(z, books, sweeps=self.sweeps, restarts=self.restarts, seed=self.seed)

    @torch.no_grad()
    def update(self, x: Tensor, indices: Tensor) -> None:
        """Set the books to the ridge least-squares solution for rows x [N, D] coded as `indices` [N, M], over all ranks.

        The normal equations are counted, never laid out as a one-hot design: memory O((M K)^2).
        """
        z = self.project_in(check_bank(x, self.dim, 1)).double()
        books, codes, width = self.codebook.shape
        slots = indices + torch.arange(books, device=indices.device) * codes
        total = books * codes
        gram = torch.zeros(total * total, dtype=torch.float64, device=z.device)
        for left in range(books):
            pairs = slots[:, left, None] * total + slots
            gram.index_add_(0, pairs.flatten(), torch.ones_like(pairs.flatten(), dtype=torch.float64))
        moments = torch.zeros(total, width, dtype=torch.float64, device=z.device)
        for book in range(books):
            moments.index_add_(0, slots[:, book], z)
        gram = sum_over_ranks(gram).view(total, total)
        gram.diagonal().add_(self.ridge)
        solved = torch.cholesky_solve(sum_over_ranks(moments), torch.linalg.cholesky(gram))
        self.codebook.copy_(solved.view(books, codes, width))

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int = 25, rounds: int = 10) -> AdditiveVQ:
        """Start as RVQ (`iterations` of k-means a book), then `rounds` of encoding and least squares; returns self.

        The books of the best round are kept.
        """
        bank = check_bank(x, self.dim, self.codebook_size)
        z = self.project_in(bank)
        residual = z
        for book in range(len(self.codebook)):
            fit_book(self, book, residual, iterations)
            rows = self.codebook[book]
            residual = residual - rows[encoders.greedy(residual, rows[None])[:, 0]]
        best, lowest = self.codebook.clone(), float("inf")
        indices = self._encode(z)
        for _ in range(rounds):
            self.update(bank, indices)
            indices = encoders.icm(
                z, self.codebook, indices, self.sweeps
            )  # never worse than the codes the books were fitted to
            fresh = self._encode(z)
            better = encoders.errors(z, fresh, self.codebook) < encoders.errors(z, indices, self.codebook)
            indices = torch.where(better[:, None], fresh, indices)
            error = float(encoders.errors(z, fresh, self.codebook).mean())
            if error < lowest:
                best, lowest = self.codebook.clone(), error
        self.codebook.copy_(best)
        return self
