"""Encoders of additive codes: z ~ sum_m C_m[k_m] with unconstrained books is an integer problem, solved four ways.

E(k) = ||z||^2 - 2 sum_m <z, C_m[k_m]> + sum_m ||C_m[k_m]||^2 + 2 sum_{m<l} <C_m[k_m], C_l[k_l]>

With the same books: exhaustive <= beam <= greedy, and no ICM sweep ever raises E. Rows z [N, D], books C [M, K, D],
indices [N, M]; memory is bounded by working on chunks of rows.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.codebooks.codebooks import nearest_codes, row_chunks

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
    found = torch.cat([_beam_rows(part, codebook, products, width) for part in row_chunks(z, rows)])
    simple = greedy(z, codebook)
    better = errors(z, found, codebook) < errors(z, simple, codebook)
    return torch.where(better[:, None], found, simple)


def _beam_rows(z: Tensor, codebook: Tensor, products: Tensor, width: int) -> Tensor:
    n, (books, codes, _) = z.shape[0], codebook.shape
    flat = codebook.flatten(0, 1)
    # what each code would add to E of a partial sum: ||c||^2 - 2 <z, c> + 2 <sum, c>; infinite for books in use
    extra = (flat.square().sum(dim=-1) - 2 * z @ flat.t())[:, None]
    energy = z.new_zeros(n, 1)
    chosen = torch.full((n, 1, books), -1, device=z.device)
    for step in range(1, books + 1):
        scores = (energy[..., None] + extra).flatten(1)
        # a set of `step` codes has up to `step` parents in the beam: so many times the width holds `width` distinct sets
        lowest, place = _lowest(scores, min(width * step, scores.shape[1]))
        parent, code = place // (books * codes), place % (books * codes)
        paths = _rows(chosen, parent)
        paths.scatter_(2, (code // codes)[..., None], (code % codes)[..., None])
        kept = _distinct(paths, lowest, codes).topk(min(width, paths.shape[1]), dim=1, largest=False)
        # with fewer distinct sets than places an infinite energy marks a place that holds nothing
        energy, chosen = kept.values, _rows(paths, kept.indices)
        parent, code = parent.gather(1, kept.indices), code.gather(1, kept.indices)
        extra = _rows(extra, parent).add_(F.embedding(code, products), alpha=2)
        used = (code // codes)[..., None, None].expand(-1, -1, 1, codes)
        extra.view(n, -1, books, codes).scatter_(2, used, float("inf"))
    return chosen[torch.arange(n, device=z.device), energy.argmin(dim=1)]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [n, b, d] at index [n, c]: [n, c, d]."""
    first = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return F.embedding(index + first, x.flatten(0, 1))  # whole rows: several times faster than gathering numbers


def _lowest(scores: Tensor, count: int, group: int = 16) -> tuple[Tensor, Tensor]:
    """The `count` lowest of each row [n, s], ascending, and their places: (values, places) [n, count].

    They lie in the `count` groups of lowest minimum, so that only those are sorted.
    """
    if scores.shape[1] % group or scores.shape[1] <= 4 * count:
        found = scores.topk(count, dim=1, largest=False)
        return found.values, found.indices
    groups = scores.unflatten(1, (-1, group))
    best = groups.amin(dim=2).topk(min(count, groups.shape[1]), dim=1, largest=False).indices
    found = _rows(groups, best).flatten(1).topk(count, dim=1, largest=False)
    return found.values, best.gather(1, found.indices // group) * group + found.indices % group


def _distinct(paths: Tensor, energy: Tensor, codes: int) -> Tensor:
    """Energies [n, b] with all but the lowest of equal paths [n, b, M] set to infinity; ascending energies come in."""
    # paths as numbers of base K + 1 (modulo 2^64); a stable sort puts equal ones side by side, the lowest first
    powers = (codes + 1) ** torch.arange(paths.shape[2], device=paths.device)
    keys, order = ((paths + 1) * powers).sum(dim=-1).sort(dim=1, stable=True)
    repeated = torch.zeros_like(keys, dtype=torch.bool)
    repeated[:, 1:] = keys[:, 1:] == keys[:, :-1]
    return energy.masked_fill(repeated.scatter(1, order, repeated), float("inf"))


def icm(z: Tensor, codebook: Tensor, indices: Tensor, sweeps: int = 3) -> Tensor:
    """Iterated conditional modes from `indices`: book by book the best code given all others; E never rises.

    Scores come from tables: ||c||^2 - 2 <z, c> of every code, and 2 <c, c'> of every pair. A row that a sweep leaves as it
    is is finished.
    """
    pairs = _pairs(codebook)
    chunks = _chunks(z, codebook, indices)
    return torch.cat([_sweep(_unary(part, codebook), pairs, start.clone(), sweeps)[0] for part, start in chunks])


def perturbed_icm(
    z: Tensor,
    codebook: Tensor,
    *,
    sweeps: int,
    restarts: int,
    seed: int = 0,
    start: Tensor | None = None,
    changes: int = 2,
) -> Tensor:
    """ICM from `start` (the greedy code), then `restarts` times from the best code so far with `changes` codes moved.

    The iterated local search of LSQ; never worse than `start`. A restart moves the same books by the same numbers of codes
    in every row, so that the code of a vector does not depend on the others.
    """
    books, codes = codebook.shape[:2]
    pairs, found, draw = _pairs(codebook), [], random.Random(seed)
    moves = [[0] * books for _ in range(restarts)]
    for move in moves:
        for book in draw.sample(range(books), min(changes, books)):
            move[book] = draw.randrange(1, codes)
    shifts = torch.tensor(moves, device=z.device).view(restarts, books)
    for part, first in _chunks(z, codebook, greedy(z, codebook) if start is None else start):
        unary = _unary(part, codebook)
        best, lowest = _sweep(unary, pairs, first.clone(), sweeps)
        for shift in shifts:
            trial, energy = _sweep(unary, pairs, (best + shift) % codes, sweeps)
            better = energy < lowest
            best, lowest = torch.where(better[:, None], trial, best), torch.where(better, energy, lowest)
        found.append(best)
    return torch.cat(found)


def _chunks(z: Tensor, codebook: Tensor, indices: Tensor) -> zip[tuple[Tensor, Tensor]]:
    rows = max(1, _CHUNK // codebook[:, :, 0].numel())
    return zip(row_chunks(z, rows), row_chunks(indices, rows), strict=True)


def _unary(z: Tensor, codebook: Tensor) -> Tensor:
    """||c||^2 - 2 <z, c>: [n, M, K]."""
    flat = codebook.flatten(0, 1)
    return torch.addmm(flat.square().sum(dim=-1), z, flat.t(), alpha=-2).unflatten(1, codebook.shape[:2])


def _pairs(codebook: Tensor) -> Tensor:
    """2 <c, c'> for each book m and its codes c, against the codes c' of all books: [M, M K, K]; zero within a book."""
    books, codes = codebook.shape[:2]
    flat = codebook.flatten(0, 1)
    table = (2 * flat @ flat.t()).view(books * codes, books, codes)
    own = torch.arange(books, device=codebook.device)
    table.view(books, codes, books, codes)[own, :, own] = 0
    return table.transpose(0, 1).contiguous()


def _sweep(unary: Tensor, pairs: Tensor, indices: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """(indices [n, M], E - ||z||^2 [n]) after `sweeps` rounds over all books, from `indices`, which are overwritten."""
    books, codes = unary.shape[1:]
    first = torch.arange(books, device=unary.device) * codes
    open_rows = None
    for _ in range(sweeps):
        local = indices if open_rows is None else indices[open_rows]
        terms = unary if open_rows is None else unary[open_rows]
        before = local.clone()
        for book in range(books):
            scores = terms[:, book] + F.embedding_bag(local + first, pairs[book], mode="sum")
            lowest, code = scores.min(dim=1)
            old = local[:, book]
            # equal codes are not swapped
            local[:, book] = torch.where(lowest < scores.gather(1, old[:, None])[:, 0], code, old)
        if open_rows is not None:
            indices[open_rows] = local
        if torch.compiler.is_compiling():
            continue  # a graph has one way for all inputs
        moved = (local != before).any(dim=1)
        if not bool(moved.any()):
            break
        open_rows = moved.nonzero()[:, 0] if open_rows is None else open_rows[moved]
    return indices, _energy(unary, pairs, indices)


def _energy(unary: Tensor, pairs: Tensor, indices: Tensor) -> Tensor:
    """E - ||z||^2 of each row."""
    books, codes = unary.shape[1:]
    slots = indices + torch.arange(books, device=indices.device) * codes
    total = unary.gather(2, indices[..., None]).sum(dim=(1, 2))
    for book in range(books):
        # each pair is met twice
        total += 0.5 * pairs[book][slots, indices[:, book, None]].sum(dim=1)
    return total


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
