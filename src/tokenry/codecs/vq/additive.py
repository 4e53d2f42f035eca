"""AQ: a code is the sum of one row of each of M full-width books, chosen together.

Encoders: greedy (RVQ's rule), ICM with restarts (the local search of LSQ), beam search, exhaustive search. Books for given
codes are a least squares problem: with the one-hot design B [N, M K], min ||Z - B C||^2 + lambda ||C||^2; the ridge is needed,
since the blocks of B sum to one each. Where none is given it is the one of a normal prior on the rows of C whose variance the
data tell, M (1 - e) / e with e the share of the energy that the codes explain (our choice; LSQ's is 0.01).

`fit` starts from RVQ and alternates the two. With ICM the books are moved by noise before each encoding, of the vectors'
standard deviation times T / M, T = sqrt(1 - round / rounds): the stochastic relaxation SR-D of LSQ++ (Martinez et al., 2018).
Inside a network the books learn by gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        restarts: restarts of ICM from the best code with some of its codes moved; 0 is one descent from the greedy code.
        ridge: lambda of the least-squares update; None estimates it.
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
        restarts: int = 16,
        ridge: float | None = None,
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
        self.ridge = None if ridge is None else check_range("ridge", ridge, 0, low_open=True)
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
        if self.training and self._starts_on_data and not self.frozen and not bool(self.initialised.all()):
            self._start_books(real.detach())
        indices = self._encode(real)
        rows = encoders.decode(indices, self.codebook.clone())  # codes may be reset before the backward pass
        codes, (loss, terms) = self._codes(real, rows), self._loss(real, rows)
        if self.training and self._counts_vectors:
            self._revive((real - rows).detach(), indices, step)
        return Choice(spread(codes, keep), spread(indices, keep, -1), loss, terms=terms)

    def _questions(self, z: Tensor, given: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Each book sees what all others leave over."""
        parts = self._lookup(given).detach()
        left = z - parts.sum(dim=-2)
        for book in range(given.shape[1]):
            yield book, left + parts[:, book]

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
        return self._search(z, books, restarts=self.restarts, seed=self.seed)

    def _search(self, z: Tensor, books: Tensor, *, restarts: int, seed: int, start: Tensor | None = None) -> Tensor:
        """ICM with restarts, which move up to three books."""
        changes = min(3, len(books))
        return encoders.perturbed_icm(
            z, books, sweeps=self.sweeps, restarts=restarts, seed=seed, start=start, changes=changes
        )  # fmt: skip

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
        gram, moments = sum_over_ranks(gram).view(total, total), sum_over_ranks(moments)
        ridge = self.ridge
        if ridge is None:
            solved = _solve(gram, moments, 1e-4)
            energy = float(sum_over_ranks(z.square().sum()))
            explained = float((2 * moments * solved - solved * (gram @ solved)).sum()) / max(energy, 1e-300)
            ridge = books * (1 - explained) / max(explained, 1e-6) + 1e-4
        self.codebook.copy_(_solve(gram, moments, ridge).view(books, codes, width))

    @torch.no_grad()
    def fit(self, x: Tensor, *, iterations: int = 25, rounds: int | None = None) -> AdditiveVQ:
        """Start as RVQ (`iterations` of k-means a book), then `rounds` of encoding and least squares; returns self.

        By default 25 rounds for ICM and 10 for the other encoders, whose best round is kept.
        """
        bank = check_bank(x, self.dim, self.codebook_size)
        z = self.project_in(bank)
        residual = z
        for book in range(len(self.codebook)):
            fit_book(self, book, residual, iterations)
            rows = self.codebook[book]
            residual = residual - rows[encoders.greedy(residual, rows[None])[:, 0]]
        if self.encoder == "icm":
            self._relax(bank, z, 25 if rounds is None else rounds)
        else:
            self._alternate(bank, z, 10 if rounds is None else rounds)
        return self

    def _relax(self, bank: Tensor, z: Tensor, rounds: int) -> None:
        """Local search under noise that cools down."""
        books = len(self.codebook)
        sums = sum_over_ranks(torch.stack([torch.ones_like(z), z, z.square()]).double().sum(dim=1))
        spread_of = (sums[2] / sums[0] - (sums[1] / sums[0]).square()).clamp(min=0).sqrt().to(z.dtype)
        indices = encoders.greedy(z, self.codebook)
        for round_ in range(rounds):
            self.update(bank, indices)
            heat = (1 - (round_ + 1) / rounds) ** 0.5 / books
            noise = torch.randn(self.codebook.shape, generator=self._generator(round_ + 1)).to(z)
            moved = self.codebook + heat * spread_of * noise
            indices = self._search(z, moved, restarts=(self.restarts + 3) // 4, seed=self.seed + round_ + 1, start=indices)
        self.update(bank, indices)

    def _alternate(self, bank: Tensor, z: Tensor, rounds: int) -> None:
        """Codes by the encoder or ICM, whichever is better for a vector; the books of the best round stay."""
        best, lowest = self.codebook.clone(), float("inf")
        indices = self._encode(z)
        for _ in range(rounds):
            self.update(bank, indices)
            # never worse than the codes the books were fitted to
            indices = encoders.icm(z, self.codebook, indices, self.sweeps)
            fresh = self._encode(z)
            better = encoders.errors(z, fresh, self.codebook) < encoders.errors(z, indices, self.codebook)
            indices = torch.where(better[:, None], fresh, indices)
            error = float(encoders.errors(z, fresh, self.codebook).mean())
            if error < lowest:
                best, lowest = self.codebook.clone(), error
        self.codebook.copy_(best)


def _solve(gram: Tensor, moments: Tensor, ridge: float) -> Tensor:
    """(B^T B + ridge I)^-1 B^T Z."""
    with_ridge = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(moments, torch.linalg.cholesky(with_ridge))
