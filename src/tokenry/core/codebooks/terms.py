"""Loss terms by name: weighted, so that they add up to the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

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


def zero(like: Tensor) -> Terms:
    """A commitment of nothing."""
    return {"commitment": torch.zeros((), dtype=like.dtype, device=like.device)}
