"""Health of a codebook: perplexity, usage and dead codes of a batch of indices, computed when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from tokenry.core.checks import check_int, check_tensor
from tokenry.core.codebooks.terms import Terms

# Above this many codes counts are taken from sorted indices: memory O(N) instead of O(K).
_DENSE_CODES = 1 << 20


class CodebookStats:
    """Perplexity, usage and dead codes of `indices`; unpacks as ``perplexity, usage, dead``.

    Every figure is a 0-dim tensor for one book and [M] for several, and costs nothing until it is read; index -1 (masked
    or dropped) counts nowhere. Books may differ in size K. p_k = n_k / sum n over the vectors seen here:

    - `perplexity` exp(-sum p ln p), in [1, min(K, vectors)]; NaN without vectors
    - `usage` share of codes that were used, at most vectors / K
    - `dead` number of codes that were not used
    - `losses` loss of each book, where the quantizer has one, without its graph
    - `terms` the weighted terms of the loss by name, where it has any, without their graphs
    """

    def __init__(
        self,
        indices: Tensor,
        codebook_size: int | Sequence[int],
        *,
        books: bool = False,
        losses: Tensor | None = None,
        terms: Terms | None = None,
    ):
        self.indices = indices
        self.codebook_sizes = (codebook_size,) if isinstance(codebook_size, int) else tuple(codebook_size)
        self.codebook_size = max(self.codebook_sizes)
        self.books = books
        self.losses = _without_graph(losses)
        self.terms = None if terms is None else {name: _without_graph(term) for name, term in terms.items()}

    @cached_property
    def _counts(self) -> Tensor:
        """Counts [M, K], or [M, N] (runs of equal indices) for an implicit book too large to be laid out."""
        flat = self.indices.detach().reshape(-1, self.indices.shape[-1] if self.books else 1).t()
        size = self.codebook_size if self.codebook_size <= _DENSE_CODES else flat.shape[1]
        if self.codebook_size > _DENSE_CODES:
            ordered = flat.sort(dim=1).values
            fresh = torch.ones_like(ordered)
            fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
            slots = torch.where(ordered < 0, -1, fresh.cumsum(dim=1) - 1)
        else:
            slots = flat
        counts = torch.zeros(len(flat), size + 1, device=flat.device)  # the extra slot takes the dropped ones
        ones = torch.ones_like(slots, dtype=counts.dtype)
        return counts.scatter_add_(1, torch.where(slots < 0, size, slots), ones)[:, :size]

    def _shape(self, figure: Tensor) -> Tensor:
        return figure if self.books else figure[0]

    def _sizes(self, dtype: torch.dtype | None = None) -> Tensor:
        """K of each book: [M], or [1] where all are equal."""
        return torch.tensor(self.codebook_sizes, dtype=dtype, device=self.indices.device)

    @property
    def counts(self) -> Tensor:
        """How often each code was used: [K], or [M, K] for several books (K of the largest).

        Raises:
            ValueError: the book has more than 2^20 codes.
        """
        if self.codebook_size > _DENSE_CODES:
            raise ValueError(f"counts need a book of at most {_DENSE_CODES} codes, got {self.codebook_size}")
        return self._shape(self._counts)

    @cached_property
    def vectors(self) -> Tensor:
        """Number of vectors that got a code: usage cannot exceed vectors / K."""
        return self._shape(self._counts.sum(dim=1))

    @cached_property
    def entropy(self) -> Tensor:
        """-sum p ln p in nats."""
        shares = self._counts / self._counts.sum(dim=1, keepdim=True)
        return self._shape(-torch.special.xlogy(shares, shares).sum(dim=1))

    @property
    def perplexity(self) -> Tensor:
        """exp(entropy)."""
        return self.entropy.exp()

    @cached_property
    def usage(self) -> Tensor:
        """Share of the codes that were used."""
        return self._shape((self._counts > 0).sum(dim=1) / self._sizes(torch.float32))

    @cached_property
    def dead(self) -> Tensor:
        """Number of codes that were not used."""
        return self._shape(self._sizes() - (self._counts > 0).sum(dim=1))

    @property
    def normalized_perplexity(self) -> Tensor:
        """Perplexity / K."""
        return self.perplexity / self._shape(self._sizes(torch.float32))

    @property
    def normalized_entropy(self) -> Tensor:
        """Entropy / ln K."""
        return self.entropy / self._shape(self._sizes(torch.float32)).log()

    def joint_usage(self) -> tuple[int, int]:
        """(distinct index tuples seen, vectors whose every book has an index)."""
        tuples = self.indices.detach().reshape(-1, self.indices.shape[-1] if self.books else 1)
        tuples = tuples[(tuples >= 0).all(dim=1)]
        return len(tuples.unique(dim=0)), len(tuples)

    def to_dict(self) -> dict[str, float | list[float]]:
        """The figures as plain numbers, for a log (one transfer each)."""
        names = ("perplexity", "usage", "dead", "vectors")
        figures = {name: getattr(self, name).tolist() for name in names}
        figures |= {} if self.losses is None else {"losses": self.losses.detach().tolist()}
        return figures | {name: float(term) for name, term in (self.terms or {}).items()}

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.perplexity, self.usage, self.dead))

    def __repr__(self) -> str:
        return f"CodebookStats({', '.join(f'{name}={value}' for name, value in self.to_dict().items())})"


def _without_graph(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _of_leaves(indices: Tensor, losses: Tensor | None, terms: Terms | None, sizes: Sequence[int], books: bool) -> CodebookStats:
    return CodebookStats(indices, sizes, books=books, losses=losses, terms=terms)


# an exported module returns its statistics like an eager one
_pytree.register_pytree_node(
    CodebookStats,
    lambda stats: ([stats.indices, stats.losses, stats.terms], (stats.codebook_sizes, stats.books)),
    lambda leaves, sizes: _of_leaves(*leaves, *sizes),
    serialized_type_name="tokenry.CodebookStats",
)


def usage(indices: Tensor, codebook_size: int, *, books: bool = False) -> CodebookStats:
    """Perplexity, usage and dead codes of `indices` [...] (or [..., M] with `books`) over a book of `codebook_size` codes.

    Index -1 (masked or dropped) counts nowhere.

    Raises:
        TypeError: indices are not integers. ValueError: an index outside -1 ... codebook_size - 1.
    """
    check_indices("indices", indices, check_int("codebook_size", codebook_size, 1))
    return CodebookStats(indices.long(), codebook_size, books=books)


def check_indices(name: str, indices: Tensor, codebook_size: int | Sequence[int]) -> Tensor:
    """Return `indices` if it is an integer tensor with entries in -1 ... codebook_size - 1, else raise.

    With several sizes each book, a column of indices [..., M], has its own.
    """
    sizes = (codebook_size,) if isinstance(codebook_size, int) else tuple(codebook_size)
    if len(set(sizes)) > 1:
        for book, size in enumerate(sizes):
            check_indices(f"{name} of book {book}", check_tensor(name, indices)[..., book], size)
        return indices
    codebook_size = sizes[0]
    check_tensor(name, indices)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {indices.dtype}")
    if torch.compiler.is_compiling() or not indices.numel():
        return indices
    low, high = (int(end) for end in indices.aminmax())
    if low < -1 or high >= codebook_size:
        bad = low if low < -1 else high
        raise ValueError(f"{name} must be in 0 ... {codebook_size - 1} (or -1 for a masked or dropped one), got {bad}")
    return indices


def soft_perplexity(probabilities: Tensor) -> Tensor:
    """Exp of the entropy of the mean soft distribution, [N, K] -> 0-dim; summed over books for [N, M, K].

    What wav2vec 2.0 logs (on noise-free probabilities); not the perplexity of hard indices.
    """
    mean = probabilities.float().mean(dim=0)
    return torch.special.xlogy(mean, mean).sum(dim=-1).neg().exp().sum()
