"""Loss terms by name: weighted, so that they add up to the loss."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from tokenry.core.codebooks.estimators import pull_together

Terms = dict[str, Tensor]
"""Name -> 0-dim tensor."""


def total(terms: Terms) -> Tensor:
    """Sum of the terms, of which there is at least one."""
    first, *rest = terms.values()
    for term in rest:
        first = first + term
    return first


def joined(parts: Iterable[Terms | None], shares: Iterable[float] | None = None) -> Terms | None:
    """Terms of several books added up by name, each book's times its share, without their graphs; None where one has none."""
    found: Terms = {}
    known = list(parts)
    if any(terms is None for terms in known):
        return None
    for terms, share in zip(known, [1.0] * len(known) if shares is None else shares, strict=True):
        for name, term in (terms or {}).items():
            term = term.detach() * share
            found[name] = found[name] + term if name in found else term
    return found


def pulls(z: Tensor, q: Tensor, commitment: float, codebook: float = 1.0) -> tuple[Tensor, Terms]:
    """Commitment mse(z, sg q) + codebook mse(sg z, q), and both by name, without their graphs."""
    loss = pull_together(z, q, commitment, codebook)
    return loss, pull_terms(loss, commitment, codebook)


def pull_terms(loss: Tensor, commitment: float, codebook: float = 1.0) -> Terms:
    """The two terms of such a loss by name, without their graphs: they have one value, each its weight."""
    value = loss.detach()
    if not codebook:
        return {"commitment": value}
    whole = commitment + codebook
    return {"commitment": value * (commitment / whole), "codebook": value * (codebook / whole)}


def nothing(like: Tensor) -> tuple[Tensor, Terms]:
    """A commitment of nothing."""
    zero = like.new_zeros(())
    return zero, {"commitment": zero}
