"""What a book starts from: numbers drawn without data, or rows of the first batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.codebooks.ranks import draw_rows, joined_rows

STARTS = ("uniform", "kaiming", "batch")


def drawn_book(shape: Sequence[int], start: str, *, unit: bool, seed: int) -> Tensor:
    """A book [..., K, d]: uniform in +-1/K as VQ-VAE starts, in +-(6 / (K d))^1/2 for "kaiming", or rows of unit norm."""
    generator = torch.Generator().manual_seed(seed)
    codes, width = shape[-2:]
    book = torch.empty(*shape)
    if unit:
        return F.normalize(book.normal_(generator=generator), dim=-1)
    bound = (6 / (codes * width)) ** 0.5 if start == "kaiming" else 1 / codes
    return book.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def first_rows(x: Tensor, codes: int, generator: torch.Generator, *, way: float, dot: bool = False) -> Tensor:
    """Codes to start from [K, D]: random rows of `x` [N, D] of all ranks, at a share `way` of their way from the mean.

    In many dimensions a row is farther from any other row than from the mean, so that rows themselves would end as codes of
    one vector and leave the rest to a single code. Rows that are too few come again, at random distances up to that share.
    For dot products, rows as they are.
    """
    rows = draw_rows(x, codes, generator)
    if dot:
        return rows
    share = torch.full((codes, 1), way)
    if joined_rows(len(x), x.device)[1] < codes:
        share *= torch.rand(codes, 1, generator=generator)
    share = share.to(rows)
    return share * rows + (1 - share) * rows.mean(dim=0)
