"""Codebooks: nearest codes in O(chunk) memory, cluster sums, k-means; one book, float32 or float64 rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tokenry.core.codebooks.ranks import draw_rows, sum_over_ranks
from tokenry.core.codebooks.starts import first_rows

# Entries of one block of scores: small enough for a CPU cache, large enough to fill an accelerator.
_CPU_BLOCK, _DEVICE_BLOCK, _CODES_BLOCK = 1 << 19, 1 << 25, 1 << 14
# Rows of a block at least: a product lays the book out anew for every block.
_LEAST_ROWS = 256
_GROUP = 64


exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def row_chunks(x: Tensor, rows: int) -> Sequence[Tensor]:
    """Parts of x [N, ...] of up to `rows` rows; one part in an exported graph, which has to serve any N."""
    return [x] if exporting() else x.split(rows)


def code_bias(codebook: Tensor, *, dot: bool = False) -> Tensor:
    """||c||^2 [K], the part of ||z - c||^2 = ||z||^2 - 2 z.c + ||c||^2 that differs between codes; zeros for dot products."""
    return codebook.new_zeros(len(codebook)) if dot else codebook.square().sum(dim=-1)


def score_blocks(x: Tensor, codebook: Tensor, bias: Tensor, *, budget: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of ||c||^2 - 2 x.c [rows, K], lowest is nearest; a block is overwritten by the next one."""
    block = budget or (_CPU_BLOCK if x.device.type == "cpu" else _DEVICE_BLOCK)
    rows = min(len(x), max(_LEAST_ROWS, block // len(codebook))) or 1
    scores = x.new_empty(rows, len(codebook))
    table = codebook.t()
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        yield slice(start, start + len(part)), torch.addmm(bias, part, table, alpha=-2, out=scores[: len(part)])


@torch.no_grad()
def nearest_codes(x: Tensor, codebook: Tensor, *, dot: bool = False) -> Tensor:
    """Index [N] of the nearest row of `codebook` [K, D] for each row of `x` [N, D]; lowest index wins ties.

    Euclidean distance, or the largest dot product with `dot`; ties are those of the rounded scores. Memory O(block), flat
    in N and K.
    """
    x, codebook = x.detach(), codebook.detach()
    if exporting():  # blocks of rows would fix their number in the graph
        return _scores(x, codebook, dot).argmin(dim=1)
    if torch.compiler.is_compiling():
        return _opaque_nearest(x, codebook, dot)
    return _blockwise(x, codebook, dot)


def _blockwise(x: Tensor, codebook: Tensor, dot: bool) -> Tensor:
    if len(codebook) <= _CODES_BLOCK:
        return _nearest(x, codebook, dot)[0]
    best = index = None
    for start in range(0, len(codebook), _CODES_BLOCK):
        found, value = _nearest(x, codebook[start : start + _CODES_BLOCK], dot, values=True)
        if best is None or index is None:
            index, best = found, value
        else:
            closer = value < best  # strict: an earlier block keeps a tie
            index, best = torch.where(closer, found + start, index), torch.where(closer, value, best)
    assert index is not None
    return index


# One node of a compiled graph: the search stays blockwise and takes any number of rows.
@torch.library.custom_op("tokenry::nearest_codes", mutates_args=())
def _opaque_nearest(x: Tensor, codebook: Tensor, dot: bool) -> Tensor:
    return _blockwise(x, codebook, dot)


@_opaque_nearest.register_fake
def _(x: Tensor, codebook: Tensor, dot: bool) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.long)


def _scores(x: Tensor, codebook: Tensor, dot: bool) -> Tensor:
    return torch.addmm(code_bias(codebook, dot=dot), x, codebook.t(), alpha=-2)


def _nearest(x: Tensor, codebook: Tensor, dot: bool, values: bool = False) -> tuple[Tensor, Tensor]:
    index = torch.empty(len(x), dtype=torch.long, device=x.device)
    value = x.new_empty(len(x) if values else 0)
    for rows, scores in score_blocks(x, codebook, code_bias(codebook, dot=dot)):
        index[rows] = _lowest(scores)
        if values:
            value[rows] = scores.gather(1, index[rows, None]).squeeze(1)
    return index, value


@torch.no_grad()
def nearest_few(x: Tensor, codebook: Tensor, k: int, *, dot: bool = False) -> tuple[Tensor, Tensor]:
    """(indices [N, k], squared distances [N, k] ascending) of the k nearest rows of `codebook` [K, D] to those of `x` [N, D].

    With `dot` both have unit rows. Memory O(block + N k).
    """
    bias, found, scores = code_bias(codebook, dot=dot), [], []
    for _, block in score_blocks(x, codebook, bias):
        near = block.topk(k, dim=1, largest=False)
        found.append(near.indices)
        scores.append(near.values)
    norms = torch.full_like(x[:, :1], 2.0) if dot else x.square().sum(dim=1, keepdim=True)
    return torch.cat(found), (torch.cat(scores) + norms).clamp(min=0)


def _lowest(scores: Tensor) -> Tensor:
    """Column [rows] of the lowest score, the first of equal ones.

    A CPU finds a minimum many times faster than its place, so the minima of groups of codes say where to look.
    """
    rows, codes = scores.shape
    if scores.device.type != "cpu" or codes % _GROUP or codes < 4 * _GROUP:
        return scores.argmin(dim=1)
    groups = scores.view(rows, -1, _GROUP)
    best = groups.amin(dim=2).argmin(dim=1)
    inside = groups.flatten(0, 1).index_select(0, best + torch.arange(rows) * groups.shape[1])
    return best * _GROUP + inside.argmin(dim=1)


def squared_distances(x: Tensor, codebook: Tensor) -> Tensor:
    """||x||^2 - 2 x.c + ||c||^2 for all pairs, [N, D] x [K, D] -> [N, K], differentiable: memory O(N K)."""
    return torch.addmm(x.square().sum(dim=-1, keepdim=True) + code_bias(codebook), x, codebook.t(), alpha=-2)


def _sum_dtype(x: Tensor) -> torch.dtype:
    # float64 sums round to the same float32 in whatever order the rows come, so that ranks and one process agree
    return torch.float32 if x.device.type == "mps" else torch.float64


@torch.no_grad()
def local_sums(x: Tensor, indices: Tensor, codes: int) -> Tensor:
    """Sums of the rows of `x` [N, D] by their index, and in the last column their counts: [K, D + 1]; float64 where it is."""
    dtype = _sum_dtype(x)
    sums = torch.zeros(codes, x.shape[1] + 1, dtype=dtype, device=x.device)
    sums[:, :-1].index_add_(0, indices, x.detach().to(dtype))
    sums[:, -1].index_add_(0, indices, torch.ones_like(indices, dtype=dtype))
    return sums


@torch.no_grad()
def cluster_sums(x: Tensor, indices: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """(counts [K], sums [K, D]) of the rows of `x` [N, D] by their index, over all ranks."""
    sums = sum_over_ranks(local_sums(x, indices, codes))
    return sums[:, -1], sums[:, :-1]


@torch.no_grad()
def kmeans(
    x: Tensor,
    codes: int,
    *,
    iterations: int = 10,
    generator: torch.Generator,
    dot: bool = False,
    start: Tensor | None = None,
    reseed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm on the rows of `x` [N, D] of all ranks: (centres [K, D], counts [K]).

    Starts at `start` [K, D], or at `first_rows`, a quarter of their way. Spherical with `dot` (rows and centres of unit norm).
    An empty cluster keeps its centre, or moves to a random row with `reseed`; the counts are those of the last assignment.
    """
    x = x.detach()
    centres = first_rows(x, codes, generator, way=0.25, dot=dot) if start is None else start
    counts = x.new_zeros(codes)
    for _ in range(iterations):
        counts, sums = cluster_sums(x, nearest_codes(x, centres, dot=dot), codes)
        empty = counts == 0
        means = (sums / counts.clamp(min=1)[:, None]).to(x.dtype)
        if dot:
            means = torch.nn.functional.normalize(means, dim=-1)
        moved = torch.where(empty[:, None], centres, means)
        if reseed and bool(empty.any()):
            moved[empty] = draw_rows(x, int(empty.sum()), generator)
        centres = moved
    return centres, counts.to(x.dtype)
