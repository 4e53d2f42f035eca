"""Codebooks that are looked up: nearest code, EMA or gradient learning, k-means start, dead-code reset, per book."""

from __future__ import annotations

import warnings
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.codecs.vq.base import spread
from tokenry.codecs.vq.books.softmax import BookAnswer, BookSoftmax
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.codebooks.codebooks import cluster_sums, exporting, kmeans, nearest_codes
from tokenry.core.codebooks.estimators import ESTIMATORS, SOFT_ESTIMATORS, directional, rotation_trick, straight_through
from tokenry.core.codebooks.moving_average import SMOOTHINGS, move_counts, move_rows, smoothed
from tokenry.core.codebooks.pending import PendingCounts, eagerly, in_backward
from tokenry.core.codebooks.ranks import draw_rows, joined_rows, sum_over_ranks, world_size
from tokenry.core.codebooks.starts import STARTS, drawn_book, first_rows
from tokenry.core.codebooks.terms import Terms, nothing, pulls, total

Distance = Literal["euclidean", "cosine"]
Estimator = Literal["straight_through", "rotation", "gumbel", "index_backprop", "diveq"]


class LookupOptions(TypedDict, total=False):
    """Options of every look-up quantizer; `VectorQuantizer` says what they mean."""

    distance: Distance
    ema: bool
    decay: float
    epsilon: float
    smoothing: Literal["laplace", "clamp"]
    commitment: float
    estimator: Estimator
    temperature: float
    noise_variance: float
    sample_temperature: float
    start: Literal["uniform", "kaiming", "batch"] | None
    kmeans_init: bool
    kmeans_iterations: int
    reset_threshold: float
    reset_count: float | None
    code_dim: int | None
    entropy_weight: float
    entropy_rows: int | None
    diversity: float
    orthogonality: float
    statistics: Literal["forward", "manual"]
    seed: int
    channels_first: bool


class LookupQuantizer(BookSoftmax):
    """Shared by the variants with learned books; `codebook` is [K, d], or [M, K, d] for several books.

    EMA books keep, besides the book, `counts` n_k and `mass`: the running sum m_k of a code is c_k mass_k, so that the
    state is consistent whatever book is loaded.
    """

    codebook: Tensor
    counts: Tensor
    mass: Tensor
    initialised: Tensor
    steps: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        books: int | None = None,
        book_dim: int | None = None,
        shared: bool = False,
        code_dim: int | None = None,
        distance: Distance = "euclidean",
        ema: bool = True,
        decay: float = 0.8,
        epsilon: float = 1e-5,
        smoothing: Literal["laplace", "clamp"] = "laplace",
        commitment: float = 1.0,
        estimator: Estimator = "straight_through",
        temperature: float = 1.0,
        noise_variance: float = 1e-3,
        sample_temperature: float = 0.0,
        start: Literal["uniform", "kaiming", "batch"] | None = None,
        kmeans_init: bool = False,
        kmeans_iterations: int = 10,
        reset_threshold: float = 0.0,
        reset_count: float | None = None,
        entropy_weight: float = 0.0,
        entropy_rows: int | None = None,
        diversity: float = 1.0,
        orthogonality: float = 0.0,
        statistics: Literal["forward", "manual"] = "forward",
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        codebook_size = check_int("codebook_size", codebook_size, 2)
        super().__init__(dim, code_dim or dim, books, codebook_size, channels_first=channels_first, seed=seed)
        self.distance = check_choice("distance", distance, ("euclidean", "cosine"))
        self.ema = ema
        self.decay = check_range("decay", decay, 0, 1, high_open=True)
        self.epsilon = check_range("epsilon", epsilon, 0, low_open=True)
        self.smoothing = check_choice("smoothing", smoothing, SMOOTHINGS)
        self.commitment = check_range("commitment", commitment, 0)
        self.estimator = check_choice("estimator", estimator, ESTIMATORS)
        self.temperature = check_range("temperature", temperature, 0, low_open=True)
        self.noise_variance = check_range("noise_variance", noise_variance, 0)
        self.sample_temperature = check_range("sample_temperature", sample_temperature, 0)
        self.kmeans_iterations = check_int("kmeans_iterations", kmeans_iterations, 1)
        self.reset_threshold = check_range("reset_threshold", reset_threshold, 0)
        self.reset_count = check_range("reset_count", reset_threshold if reset_count is None else reset_count, 0)
        self.entropy_weight = check_range("entropy_weight", entropy_weight, 0)
        self.entropy_rows = None if entropy_rows is None else check_int("entropy_rows", entropy_rows, 1)
        self.diversity = check_range("diversity", diversity, 0)
        self.orthogonality = check_range("orthogonality", orthogonality, 0)
        if orthogonality and ema:
            raise ValueError(f"orthogonality={orthogonality} is a gradient on the book and needs ema=False")
        if estimator == "diveq" and ema:
            raise ValueError("estimator='diveq' learns the book by the gradient of the codes and needs ema=False, got ema=True")
        if sample_temperature and estimator in SOFT_ESTIMATORS:
            raise ValueError(
                f"sample_temperature={sample_temperature} draws codes, which estimator={estimator!r} does by itself"
            )
        self.statistics = check_choice("statistics", statistics, ("forward", "manual"))
        self.shared = shared
        self._pending = [PendingCounts(codebook_size, self.reset_threshold > 0) for _ in range(1 if shared else books or 1)]
        self._just_started = False
        self.start = check_choice("start", start or ("uniform" if ema else "batch"), STARTS)
        self._starts_with_kmeans = kmeans_init
        self._starts_on_data = kmeans_init or self.start == "batch"
        self._add_book(book_dim or self.code_dim)

    def _first_book(self, width: int) -> Tensor:
        lead = () if self.books is None else (1 if self.shared else self.books,)
        return drawn_book((*lead, self.codebook_size, width), self.start, unit=self._dot, seed=self.seed)

    def _add_book(self, width: int) -> None:
        lead = () if self.books is None else (1 if self.shared else self.books,)
        book = self._first_book(width)
        if self.ema:
            self.register_buffer("codebook", book)
        else:
            self.codebook = nn.Parameter(book)
        self.register_buffer("counts", torch.ones(*lead, self.codebook_size))
        self.register_buffer("mass", torch.ones(*lead, self.codebook_size))
        self.register_buffer("initialised", torch.full(lead, not self._starts_on_data))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    # -- one book ----------------------------------------------------------------------------------------------------------

    def _dtype(self, x: Tensor) -> torch.dtype:
        return self.codebook.dtype

    @property
    def _dot(self) -> bool:
        return self.distance == "cosine"

    def _state(self, name: str, book: int) -> Tensor:
        """The part of a buffer that belongs to one book: a view."""
        whole = getattr(self, name)
        return whole if self.books is None else whole[0 if self.shared else book]

    def _rows(self, book: int) -> Tensor:
        """Rows of a book for the graph [K, d]: a copy, since the book may be written before the backward pass reads them."""
        rows = self._state("codebook", book)
        return rows.clone() if torch.is_grad_enabled() else rows

    def _compared(self, book: int) -> Tensor:
        """Rows that inputs are compared with: [K, d], of unit norm for cosine."""
        return F.normalize(self._rows(book), dim=-1) if self._dot else self._rows(book)

    def _emitted(self, book: int) -> Tensor:
        """Rows that are given out: [K, d]."""
        return self._compared(book)

    def _prepare(self, z: Tensor) -> Tensor:
        """Unit rows for cosine (a zero row stays zero), z itself otherwise."""
        return F.normalize(z, dim=-1) if self._dot else z

    def _stage(self, z: Tensor, book: int, step: int, given: Tensor | None = None) -> BookAnswer:
        """Choose codes for real rows z [n, d] from one book (or take the `given` ones); in training the book learns."""
        if self.training and self._starts_on_data and not self.frozen:
            self._start(z.detach(), book)
        if given is None and self._needs_logits:
            stage = self._soft_stage(z, book, step)
        else:
            indices = nearest_codes(z, self._compared(book), dot=self._dot) if given is None else given
            rows = F.embedding(indices, self._emitted(book))
            extra = self._some_entropies(z, book, step) if given is None and self.training else {}
            stage = self._judged(z, rows, indices, extra)
        if self.training:
            self._learn(z.detach(), stage.indices, book, step)
        return stage

    def _answer(self, z: Tensor, keep: Tensor | None, book: int, step: int, given: Tensor | None = None) -> BookAnswer:
        """`_stage` for all rows z [N, d]: zero codes and index -1 where `keep` [N] is False."""
        if keep is None:
            return self._stage(self._prepare(z), book, step, given)
        stage = self._stage(self._prepare(z[keep]), book, step, None if given is None else given[keep])
        soft = None if stage.soft is None else spread(stage.soft, keep)
        return BookAnswer(spread(stage.rows, keep), spread(stage.indices, keep, -1), stage.loss, stage.terms, soft)

    def _codes(self, z: Tensor, rows: Tensor, soft: Tensor | None = None, step: int = 0, book: int = 0) -> Tensor:
        """The rows with the estimator's gradient, and in training DiVeQ's noise."""
        if soft is not None:
            return soft
        if self.estimator == "diveq":
            return directional(z, rows, self.noise_variance, self._noise(step, book, z.device) if self.training else None)
        return rotation_trick(z, rows) if self.estimator == "rotation" else straight_through(z, rows)

    def _loss(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Terms]:
        """Commitment ||z - sg(q)||^2, and for a book that learns by gradient ||sg(z) - q||^2, means over all elements.

        DiVeQ has neither.
        """
        return nothing(z) if self.estimator == "diveq" else pulls(z, rows, self.commitment, 0.0 if self.ema else 1.0)

    def _orthogonality_terms(self) -> Terms:
        return {"orthogonality": self._orthogonality()} if self.orthogonality else {}

    def _orthogonality(self) -> Tensor:
        """Weight (mean over pairs of cos^2 - 1/K), summed over books; through the d x d Gram matrix."""
        unit = F.normalize(self.codebook.clone(), dim=-1)
        gram = unit.transpose(-1, -2) @ unit
        return self.orthogonality * (gram.square().sum(dim=(-2, -1)) / self.codebook_size**2 - 1 / self.codebook_size).sum()

    # -- learning ----------------------------------------------------------------------------------------------------------

    @eagerly
    @torch.no_grad()
    def _start(self, z: Tensor, book: int) -> None:
        """k-means or rows of the first batch of all ranks become the book."""
        if bool(self._state("initialised", book)):
            return
        generator, size = self._generator(-1 - book), self.codebook_size
        if self._starts_with_kmeans:
            total = joined_rows(len(z), z.device)[1]
            if total < size:
                raise ValueError(f"kmeans_init needs at least codebook_size={size} vectors in the first batch, got {total}")
            centres, counts = kmeans(z, size, iterations=self.kmeans_iterations, generator=generator, dot=self._dot)
            self._replace(book, centres, counts)
        elif self._is_first(book):
            if (count := joined_rows(len(z), z.device)[1]) < size:
                warnings.warn(
                    f"the first batch has {count} vectors for {size} codes: books that start from it crowd together; "
                    "start with a larger batch, or start='uniform'",
                    stacklevel=2,
                )
            self._state("codebook", book).copy_(first_rows(z, size, generator, way=0.5, dot=self._dot))
        self._state("initialised", book).fill_(True)
        self._just_started = True

    def _is_first(self, book: int) -> bool:
        """Whether a book is the one of the constructor: one that was put in its place stays."""
        first = self._first_book(self.codebook.shape[-1])
        return torch.equal(self._state("codebook", book), (first if self.books is None else first[book]).to(self.codebook))

    def _replace(self, book: int, centres: Tensor, counts: Tensor) -> None:
        """Set one book and the counts behind it."""
        self._state("codebook", book).copy_(centres)
        self._state("counts", book).copy_(counts)
        self._state("mass", book).copy_(smoothed(self._state("counts", book), self.epsilon, self.smoothing))

    @torch.no_grad()
    def _learn(self, z: Tensor, indices: Tensor, book: int, step: int) -> None:
        """EMA update of one book with rows z [n, d] of all ranks, then replacement of its dead codes."""
        if not self._counts_vectors:
            return
        if self.statistics == "forward" and not self.shared:
            self._update(*cluster_sums(z, indices, self.codebook_size), z, book, step)
        elif not in_backward():
            self._pending[0 if self.shared else book].add(z, indices)

    @torch.no_grad()
    def update_books(self) -> None:
        """Let the books learn from the forward passes since the last call, as from one joined batch; once per optimizer step.

        For `statistics="manual"`, on every rank; what is pending is not part of the state that is saved.
        """
        if self.statistics != "manual":
            raise ValueError(f"update_books() is for statistics='manual', got {self.statistics!r}: forward updates the books")
        self.steps += 1
        self._take_pending(int(self.steps))

    @torch.no_grad()
    def _take_pending(self, step: int) -> None:
        for book, pending in enumerate(self._pending if self._counts_vectors else ()):
            sums, rows = pending.take(self.codebook.shape[-1], self.codebook)
            sum_over_ranks(sums)
            self._update(sums[:, -1], sums[:, :-1], rows, book, step)

    def _update(self, seen: Tensor, sums: Tensor, z: Tensor, book: int, step: int) -> None:
        counts, rows = self._state("counts", book), self._state("codebook", book)
        if not len(z) and not bool(seen.any()):
            return  # no rank used this book
        move_counts(counts, seen, self.decay)
        if self.ema:
            average = {"decay": self.decay, "epsilon": self.epsilon, "smoothing": self.smoothing, "dot": self._dot}
            move_rows(rows, self._state("mass", book), counts, sums, **average)
        if self.reset_threshold:
            self._reset(z, book, step)

    def _idle(self, z: Tensor, book: int, step: int) -> Tensor:
        """This rank has nothing for a book that other ranks may be using: take part in their sums, and in their loss."""
        if not (self.training and world_size() > 1):
            return z.new_zeros(())
        terms = self._entropy_terms(z[:0] @ self._compared(book).t())
        self._learn(z[:0].detach(), torch.empty(0, dtype=torch.long, device=z.device), book, step)
        return total(terms) if terms else z.new_zeros(())

    def _reset(self, z: Tensor, book: int, step: int) -> None:
        """Codes whose running count fell below the threshold become random rows of the batch."""
        counts = self._state("counts", book)
        dead = counts < self.reset_threshold
        count = int(dead.sum())
        if not count:
            return
        rows = draw_rows(z, count, self._generator(step * 1009 + book))
        self._state("codebook", book)[dead] = rows.to(self.codebook.dtype)
        counts[dead] = self.reset_count
        self._state("mass", book)[dead] = self.reset_count

    def _check_rows(self, rows: Tensor, z: Tensor, keep: Tensor | None) -> None:
        if not exporting():
            self._check_eagerly(rows, z, keep)

    @eagerly
    def _check_eagerly(self, rows: Tensor, z: Tensor, keep: Tensor | None) -> None:
        """A book that learns is worth a break of the graph."""
        super()._check_rows(rows, z, keep)

    @property
    def _joins_ranks(self) -> bool:
        # with manual statistics ranks may have different numbers of batches
        starts = self._starts_on_data and not bool(self.initialised.all())
        return self.statistics == "forward" or self.entropy_weight > 0 or starts

    @property
    def _counts_vectors(self) -> bool:
        return not self.frozen and (self.ema or self.reset_threshold > 0)

    @property
    def _draws(self) -> bool:
        return super()._draws or (self.estimator == "diveq" and self.noise_variance > 0)

    def _next_step(self, z: Tensor) -> int:
        """Seed of the draws of a training step on rows z (0 in evaluation): its number, or with manual statistics of z.

        Raises:
            RuntimeError: activation checkpointing repeats a pass that has moved the books or drawn noise.
        """
        if not self.training:
            return 0
        repeated = in_backward()
        if self.statistics == "manual":
            self._just_started = self._just_started and repeated
            # the same when the pass is repeated, another for other vectors
            return int(z.detach().double().sum().view(torch.long)) if self._draws else 0
        if repeated and (self._counts_vectors or self._draws):
            raise RuntimeError(
                f"activation checkpointing repeats the forward pass of {type(self).__name__}, which has moved its books or "
                f"drawn noise since: {self._without_repetition}keep it out of the checkpointed part"
            )
        self._just_started = self._just_started and repeated
        self.steps += not repeated
        return int(self.steps)

    _without_repetition = "use statistics='manual' and update_books(), or "

    def _lookup(self, indices: Tensor) -> Tensor:
        if self.books is None:
            codes = F.embedding(indices.clamp(min=0), self._emitted(0))
        else:
            each = [F.embedding(indices[..., m].clamp(min=0), self._emitted(m)) for m in range(indices.shape[-1])]
            codes = torch.stack(each, dim=-2)
        return codes.masked_fill((indices < 0)[..., None], 0.0)
