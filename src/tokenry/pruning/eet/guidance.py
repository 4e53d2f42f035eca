"""Discriminative region guidance (EET, the DRG part): hide the patches that the teacher finds most important."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import check_device, check_float, check_int, check_shape
from tokenry.core.selection import top_k
from tokenry.hosts.vision import as_pair


@torch.no_grad()
def region_mask(
    importance: Tensor,
    count: int,
    grid: int | tuple[int, int],
    patch: int | tuple[int, int],
    transposed: bool = False,
) -> Tensor:
    """Pixel mask [B,1,H,W] float32 that is 0 on the `count` most important patches and 1 elsewhere; no gradient.

    Args:
        importance: [B,N]; patches in row-major order, N = rows x columns.
        count: patches to hide (w in the paper, 4 by default there), 1 <= count <= N. The lowest index wins ties.
        grid: patch rows and columns, or one number for both.
        patch: patch height and width in pixels, or one number for both.
        transposed: the released code's geometry: hide the patch mirrored at the diagonal of the grid instead of the intended
            one (square grids only).

    Raises:
        ValueError: a grid that does not hold N patches, `count` out of range, or `transposed` with a grid that is not square.
    """
    sizes = check_shape("importance", check_float("importance", importance), "B N")
    rows, columns = as_pair("grid", grid)
    height, width = as_pair("patch", patch)
    if rows * columns != sizes["N"]:
        raise ValueError(f"grid must hold the {sizes['N']} patches of importance, got {rows} x {columns}")
    if transposed and rows != columns:
        raise ValueError(f"transposed needs a square grid, got {rows} x {columns}")
    check_int("count", count, 1, sizes["N"])
    hidden = top_k(importance, count)
    mask = torch.ones(sizes["B"], sizes["N"], device=importance.device).scatter_(1, hidden, 0.0)
    mask = mask.view(sizes["B"], 1, rows, columns)
    if transposed:
        mask = mask.transpose(2, 3)
    return mask.repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)


def hide_regions(images: Tensor, importance: Tensor, count: int, grid: tuple[int, int], *, transposed: bool = False) -> Tensor:
    """`images` [B,C,H,W] with the `count` most important patches set to 0, the mean colour of normalised images.

    Raises:
        ValueError: image sides that the grid does not divide, or as `region_mask`.
    """
    sizes = check_shape("images", check_float("images", images), "B C H W", B=importance.shape[0])
    check_device("importance", importance, "images", images)
    if sizes["H"] % grid[0] or sizes["W"] % grid[1]:
        raise ValueError(f"images of {sizes['H']} x {sizes['W']} pixels are not divided by the grid {grid[0]} x {grid[1]}")
    patch = (sizes["H"] // grid[0], sizes["W"] // grid[1])
    return images * region_mask(importance, count, grid, patch, transposed).to(images.dtype)
