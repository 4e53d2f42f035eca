"""Sums and draws over the joined batch of all ranks of `torch.distributed`; without a process group, over this process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of ranks; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Number of this rank; 0 without an initialised process group."""
    return dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum `x` over ranks in place and return it: bit-equal on every rank."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


class _JoinedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_over_ranks(x.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_ranks(grads[0].clone(memory_format=torch.contiguous_format))


def joined_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks with a gradient: that of the losses of all ranks, whose mean over ranks DDP takes.

    Every rank has to call it, and to use the result in its loss.
    """
    return x if world_size() == 1 else _JoinedSum.apply(x)  # type: ignore[return-value]


def joined_mean(total: Tensor, count: Tensor | float) -> Tensor:
    """`total` / `count`, both summed over ranks first, in one exchange."""
    if world_size() == 1:
        return total / count
    sums = joined_sum(torch.cat([total.flatten(), torch.as_tensor(count).to(total).reshape(1)]))
    return (sums[:-1] / sums[-1]).view(total.shape)


def joined_rows(count: int, device: torch.device) -> tuple[int, int]:
    """(number of rows on the ranks before this one, rows in the joined batch), for `count` rows here."""
    if world_size() == 1:
        return 0, count
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[dist.get_rank()] = count
    sizes = sum_over_ranks(counts).tolist()
    return sum(sizes[: dist.get_rank()]), sum(sizes)


def take_joined(x: Tensor, positions: Tensor, offset: int) -> Tensor:
    """Rows `positions` [P] of the joined batch whose rows `offset`, `offset + 1`, ... are `x` [n, D] -> [P, D].

    Every rank gets the same rows, in the order of the batch joined by rank.
    """
    local = positions.to(x.device) - offset
    here = (local >= 0) & (local < len(x))
    rows = x.new_zeros(len(positions), x.shape[1])
    rows[here] = x[local[here]]
    return sum_over_ranks(rows)


@torch.no_grad()
def draw_rows(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` rows of the batch joined over ranks, [count, D]: distinct rows while there are enough, then with replacement."""
    offset, total = joined_rows(len(x), x.device)
    if count <= total:
        positions = torch.randperm(total, generator=generator)[:count]
    else:
        positions = torch.randint(total, (count,), generator=generator)
    return take_joined(x.detach(), positions, offset)
