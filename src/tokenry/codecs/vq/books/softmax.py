"""The softmax over a book: soft estimators, drawn codes, entropies, the loss of given codes; and the nearest few codes.

Logits are -||z - c||^2 (the dot product for cosine), p = softmax(logits / temperature). A drawn code follows
softmax(logits / sample_temperature) (RQ-VAE, Lee et al., 2022). With `entropy_rows` the entropies are those of so many rows
drawn from the batch, so that memory is O(rows K).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.vq.base import Quantizer
from tokenry.core.checks import check_int, check_tensor
from tokenry.core.codebooks.codebooks import nearest_few, squared_distances
from tokenry.core.codebooks.entropy import entropy
from tokenry.core.codebooks.estimators import SOFT_ESTIMATORS, gumbel_softmax, index_backprop, straight_through
from tokenry.core.codebooks.ranks import joined_mean, own_rank
from tokenry.core.codebooks.stats import check_indices
from tokenry.core.codebooks.terms import Terms, total


class BookAnswer(NamedTuple):
    """One book's answer for rows z [n, d]: rows q [n, d], indices [n], loss and its terms; `soft` is q with a soft gradient."""

    rows: Tensor
    indices: Tensor
    loss: Tensor
    terms: Terms
    soft: Tensor | None = None


class BookSoftmax(Quantizer):
    """Shared by quantizers that look up codes in learned books."""

    estimator: str
    temperature: float
    sample_temperature: float
    entropy_weight: float
    entropy_rows: int | None
    diversity: float
    _dot: bool

    def _compared(self, book: int) -> Tensor:
        """Rows that inputs are compared with: [K, d]."""
        raise NotImplementedError

    def _emitted(self, book: int) -> Tensor:
        """Rows that are given out: [K, d]."""
        raise NotImplementedError

    def _prepare(self, z: Tensor) -> Tensor:
        """Rows as they are compared."""
        raise NotImplementedError

    def _loss(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Terms]:
        """Loss of rows z and their codes, and its terms."""
        raise NotImplementedError

    def _judged(self, z: Tensor, rows: Tensor, indices: Tensor, extra: Terms, soft: Tensor | None = None) -> BookAnswer:
        """An answer with its loss, to which the terms `extra` are added."""
        loss, terms = self._loss(z, rows)
        return BookAnswer(rows, indices, loss + total(extra) if extra else loss, terms | extra, soft)

    @property
    def _needs_logits(self) -> bool:
        """Whether a training step takes the logits of all rows."""
        entropies = self.entropy_weight > 0 and self.entropy_rows is None
        return self.training and (self.estimator in SOFT_ESTIMATORS or self.sample_temperature > 0 or entropies)

    @property
    def _draws(self) -> bool:
        """Whether a training step draws noise."""
        sampled = self.entropy_weight > 0 and self.entropy_rows is not None
        return self.estimator == "gumbel" or self.sample_temperature > 0 or sampled

    def _logits(self, z: Tensor, compared: Tensor) -> Tensor:
        return z @ compared.t() if self._dot else -squared_distances(z, compared)

    def _soft_stage(self, z: Tensor, book: int, step: int) -> BookAnswer:
        """Answer with the logits of all codes: for soft estimators, drawn codes and the entropy term. Memory O(n K)."""
        compared, emitted = self._compared(book), self._emitted(book)
        logits = self._logits(z, compared)
        extra = self._entropy_terms(logits) if self.entropy_rows is None else self._some_entropies(z, book, step)
        if self.estimator not in SOFT_ESTIMATORS:
            picked = logits.detach()
            if self.sample_temperature:
                _, indices = gumbel_softmax(picked / self.sample_temperature, 1.0, self._noise(step, book, z.device))
            else:
                indices = picked.argmax(dim=-1)
            rows = F.embedding(indices, emitted)
            return self._judged(z, rows, indices, extra)
        if self.estimator == "gumbel":
            weights, indices = gumbel_softmax(logits, self.temperature, self._noise(step, book, z.device))
        else:
            weights, indices = index_backprop(logits, self.temperature)
        codes, rows = weights @ emitted, F.embedding(indices, emitted)
        return self._judged(z, rows, indices, extra, straight_through(codes, rows))

    def _noise(self, step: int, book: int, device: torch.device) -> torch.Generator:
        return self._generator((step * 1009 + book) * 4099 + own_rank() + 1, device)

    def _some_entropies(self, z: Tensor, book: int, step: int) -> Terms:
        """The entropy terms of `entropy_rows` rows drawn from z [n, d], all of them where n is less."""
        if not self.entropy_weight:
            return {}
        if self.entropy_rows is not None and len(z) > self.entropy_rows:
            order = torch.randperm(len(z), generator=self._noise(step, book + 499, torch.device("cpu")))
            z = z[order[: self.entropy_rows].to(z.device)]
        return self._entropy_terms(self._logits(z, self._compared(book)))

    def _entropy_terms(self, logits: Tensor) -> Terms:
        """Weight E_z[H(p)] and -weight diversity H(E_z[p]) with p = softmax(logits / temperature), over all ranks."""
        if not self.entropy_weight:
            return {}
        shares = (logits / self.temperature).softmax(dim=-1)
        sums = torch.cat([shares.sum(dim=0), entropy(shares).sum()[None]])
        means = joined_mean(sums, float(len(logits)))
        batch = -self.entropy_weight * self.diversity * entropy(means[:-1])
        return {"sample_entropy": self.entropy_weight * means[-1], "batch_entropy": batch}

    # -- calls beside forward ------------------------------------------------------------------------------------------------

    def code_loss(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> Tensor:
        """Cross-entropy of given codes, -log p(k | what their book sees), mean over vectors and books; nothing learns.

        Books see what they would have seen with the given codes: a residual level what the given codes before it leave over.
        x [..., D], indices [...] or [..., M] (the first levels are enough where a prefix can be decoded); -1 does not count.

        Raises:
            TypeError: indices are no integers. ValueError: shapes do not fit, an index out of range, or none to count.

        Source: the CE-RVQ loss of NaturalSpeech 2 (arXiv 2304.09116).
        """
        z, keep, shape = self._enter(x, mask)
        books = check_tensor("indices", indices).shape[len(shape) :]
        fits = not books if self.books is None else len(books) == 1 and self._fits_books(books[0])
        if indices.shape[: len(shape)] != shape or not fits:
            wanted = [*shape] if self.books is None else [*shape, self.books]
            raise ValueError(f"indices must have shape {wanted}, got {list(indices.shape)}")
        given = check_indices("indices", indices, self.codebook_size).long().reshape(len(z), -1)
        if keep is not None:
            z, given = z[keep], given[keep]
        if not bool((given >= 0).any()):
            raise ValueError("indices must hold at least one code that counts, got -1 alone")
        loss = z.new_zeros(())
        with torch.autocast(z.device.type, enabled=False):
            for book, points in self._questions(z, given):
                logits = self._logits(points, self._compared(book)) / self.temperature
                loss = loss + F.cross_entropy(logits, given[:, book], ignore_index=-1, reduction="sum")
        return loss / (given >= 0).sum()

    def _questions(self, z: Tensor, given: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(book, what it sees [n, d]) for rows z [n, d] and given indices [n, M]."""
        yield 0, self._prepare(z)

    @torch.no_grad()
    def top_codes(self, x: Tensor, k: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(indices [..., k], squared distances [..., k] ascending) of the k nearest codes of x [..., D].

        `decode(indices)` gives their codes [..., k, D]. Distances are those of the code space; -1 and inf where masked.

        Raises:
            ValueError: k > K, or a quantizer of several books, whose best sums a beam finds.
        """
        if self.books is not None:
            raise ValueError(f"top_codes is for one book, {type(self).__name__} has {self.books}: use its beam")
        z, keep, shape = self._enter(x, mask)
        found, distances = nearest_few(
            self._prepare(z), self._compared(0), check_int("k", k, 1, self.codebook_size), dot=self._dot
        )
        if keep is not None:
            found, distances = found.masked_fill(~keep[:, None], -1), distances.masked_fill(~keep[:, None], float("inf"))
        return found.reshape(*shape, k), distances.reshape(*shape, k)
