"""Encoders of additive codes: z ~ sum_m C_m[k_m] with unconstrained books is an integer problem, solved four ways.

E(k) = ||z||^2 - 2 sum_m <z, C_m[k_m]> + sum_m ||C_m[k_m]||^2 + 2 sum_{m<l} <C_m[k_m], C_l[k_l]>

With the same books: exhaustive <= beam <= greedy, and no ICM sweep ever raises E. Rows z [N, D], books C [M, K, D],
indices [N, M]; memory is bounded by working on chunks of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.codebooks import nearest_codes

ENCODERS = ("greedy", "beam", "icm", "exhaustive")

# Combinations an exhaustive search may try.
MAX_COMBINATIONS = 100_000

_CHUNK = 1 << 22


def decode(indices: Tensor, codebook: Tensor) -> Tensor:
    """sum_m C_m[k_m]: indices [N, M] -> [N, D]."""
    return torch.stack([F.embedding(k, book) for k, book in zip(indices.unbind(-1), codebook, strict=True)]).sum(dim=0)


def errors(z: Tensor, indices: Tensor, codebook: Tensor) -> Tensor:
    """Squared error E of each row: [N]."""
    return (z - decode(indices, codebook)).square().sum(dim=-1)


def greedy(z: Tensor, codebook: Tensor) -> Tensor:
    """Book after book, the nearest code to what is left: RVQ's rule."""
    indices = []
    for book in codebook:
        indices.append(nearest_codes(z, book))
        z = z - F.embedding(indices[-1], book)
    return torch.stack(indices, dim=-1)


def beam(z: Tensor, codebook: Tensor, width: int = 16) -> Tensor:
    """The `width` best partial codes, each extended by every code of every unused book; never worse than greedy."""
    books, codes = codebook.shape[:2]
    products = torch.einsum("akd,bld->akbl", codebook, codebook).reshape(books * codes, books * codes)
    # room for the widest step: width x (M K) scores a row
    rows = max(1, _CHUNK // (width * books * codes))
    found = torch.cat([_beam_rows(part, codebook, products, width) for part in z.split(rows)])
    simple = greedy(z, codebook)
    better = errors(z, found, codebook) < errors(z, simple, codebook)
    return torch.where(better[:, None], found, simple)


def _beam_rows(z: Tensor, codebook: Tensor, products: Tensor, width: int) -> Tensor:
    n, (books, codes, _) = len(z), codebook.shape
    flat = codebook.flatten(0, 1)
    # what a code adds to E of the empty sum
    alone = flat.square().sum(dim=-1) - 2 * z @ flat.t()
    energy = z.new_zeros(n, 1)
    cross = z.new_zeros(n, 1, books * codes)  # 2 <sum so far, each code>
    chosen = torch.full((n, 1, books), -1, device=z.device)
    for step in range(1, books + 1):
        scores = energy[..., None] + alone[:, None] + cross
        used = (chosen >= 0).repeat_interleave(codes, dim=-1)
        scores = scores.masked_fill(used, float("inf")).flatten(1)
        # a set of `step` codes has up to `step` parents in the beam: so many times the width holds `width` distinct sets
        top = scores.topk(min(width * step, scores.shape[1]), dim=1, largest=False)
        parent, code = top.indices // (books * codes), top.indices % (books * codes)
        paths = chosen.gather(1, parent[..., None].expand(-1, -1, books)).clone()
        paths.scatter_(2, (code // codes)[..., None], (code % codes)[..., None])
        kept = _distinct(paths, top.values).topk(min(width, paths.shape[1]), dim=1, largest=False)
        energy, chosen = kept.values, _rows(paths, kept.indices)
        parent, code = parent.gather(1, kept.indices), code.gather(1, kept.indices)
        cross = _rows(cross, parent) + 2 * products[code]
        # fewer distinct sets than places: an infinite energy marks a place that holds nothing
    return chosen[torch.arange(n, device=z.device), energy.argmin(dim=1)]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [n, b, d] at index [n, c]: [n, c, d]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _distinct(paths: Tensor, energy: Tensor) -> Tensor:
    """Energies with all but the first of equal paths [n, b, M] set to infinity."""
    equal = (paths[:, :, None] == paths[:, None]).all(dim=-1)
    earlier = equal.tril(diagonal=-1).any(dim=-1)
    return energy.masked_fill(earlier, float("inf"))


def icm(z: Tensor, codebook: Tensor, indices: Tensor, sweeps: int = 3) -> Tensor:
    """Iterated conditional modes from `indices`: book by book the best code given all others; E never rises.

    Stops early when a sweep changes nothing.
    """
    indices = indices.clone()
    left = z - decode(indices, codebook)
    for _ in range(sweeps):
        before = indices.clone()
        for book, rows in enumerate(codebook):
            target = left + F.embedding(indices[:, book], rows)
            code = nearest_codes(target, rows)
            new, old = target - F.embedding(code, rows), left
            better = new.square().sum(dim=-1) < old.square().sum(dim=-1)  # rounding must not swap equal codes
            indices[:, book] = torch.where(better, code, indices[:, book])
            left = torch.where(better[:, None], new, old)
        if torch.equal(before, indices):
            break
    return indices


def perturbed_icm(z: Tensor, codebook: Tensor, *, sweeps: int, restarts: int, generator: torch.Generator) -> Tensor:
    """ICM from the greedy code, then `restarts` times from a random change of two books of the best code so far."""
    books, codes = codebook.shape[:2]
    best = icm(z, codebook, greedy(z, codebook), sweeps)
    lowest = errors(z, best, codebook)
    for _ in range(restarts):
        trial = best.clone()
        for _ in range(min(2, books)):
            book = torch.randint(books, (len(z), 1), generator=generator).to(z.device)
            trial.scatter_(1, book, torch.randint(codes, (len(z), 1), generator=generator).to(z.device))
        trial = icm(z, codebook, trial, sweeps)
        energy = errors(z, trial, codebook)
        better = energy < lowest
        best, lowest = torch.where(better[:, None], trial, best), torch.where(better, energy, lowest)
    return best


def exhaustive(z: Tensor, codebook: Tensor) -> Tensor:
    """The best of all K^M combinations; of equal ones that with the lowest index of book 0, then 1, ...

    Raises:
        ValueError: K^M exceeds 100,000.
    """
    books, codes = codebook.shape[:2]
    if codes**books > MAX_COMBINATIONS:
        raise ValueError(f"encoder='exhaustive' tries at most {MAX_COMBINATIONS} combinations, got {codes}^{books}; use 'beam'")
    sums = codebook.new_zeros(1, codebook.shape[2])
    for book in codebook:
        sums = (sums[:, None] + book).flatten(0, 1)
    packed = nearest_codes(z, sums)
    powers = codes ** torch.arange(books - 1, -1, -1, device=z.device)
    return packed[:, None] // powers % codes
