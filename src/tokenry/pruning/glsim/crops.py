"""The crop module of GLSim: the box around the most similar patches, and the crop zoomed to the size of the image."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import check_device, check_float, check_int, check_shape
from tokenry.core.selection import top_k
from tokenry.hosts.vision import as_pair
from tokenry.pruning.glsim.similarity import Metric, best_first


@torch.no_grad()
def crop_boxes(
    similarity: Tensor,
    top: int,
    grid: int | tuple[int, int],
    patch: int | tuple[int, int],
    image_size: int | tuple[int, int],
    *,
    inclusive: bool = False,
    metric: Metric = "cosine",
    min_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Pixel boxes [B,4] (top, left, bottom, right; the last two exclusive) around the `top` best patches of [B,N].

    With r0..r1 and c0..c1 the rows and columns of those patches and P the patch side: top = r0 P, left = c0 P, and
    bottom = r1 P, right = c1 P, raised to at least one patch. So the last row and column are left out when there is more than
    one: this is what the released code does. ``inclusive=True`` ends at (r1+1) P and (c1+1) P instead.

    Args:
        similarity: [B,N] from `global_local_similarity`, patches in row-major order.
        top: number of patches O (8 in the paper), 1 <= top <= N; the lowest index wins ties.
        grid: patch rows and columns, or one number for both; likewise `patch` and `image_size` in pixels.
        patch: patch sides.
        image_size: size of the image that was fed to the network.
        inclusive: keep the last selected row and column.
        metric: says whether large (cosine) or small (l1, l2) is best.
        min_size: smallest box sides in pixels; smaller boxes grow around their centre and are moved into the image.

    Raises:
        ValueError: a grid that does not hold N patches or does not fit the image, or `top` or `min_size` out of range.
    """
    sizes = check_shape("similarity", check_float("similarity", similarity), "B N")
    rows, columns = as_pair("grid", grid)
    sides, limits = as_pair("patch", patch), as_pair("image_size", image_size)
    if rows * columns != sizes["N"]:
        raise ValueError(f"grid must hold the {sizes['N']} patches of similarity, got {rows} x {columns}")
    if (limits[0] // sides[0], limits[1] // sides[1]) != (rows, columns):
        raise ValueError(f"image_size {limits} with patch {sides} does not make a grid of {rows} x {columns}")
    check_int("top", top, 1, sizes["N"])
    index = top_k(best_first(similarity, metric), top)
    smallest = sides if min_size is None else as_pair("min_size", min_size)
    spans = [
        _span(where, side, limit, least, inclusive)
        for where, side, limit, least in zip((index // columns, index % columns), sides, limits, smallest, strict=True)
    ]
    return torch.stack([spans[0][0], spans[1][0], spans[0][1], spans[1][1]], dim=1)


def _span(where: Tensor, side: int, limit: int, least: int, inclusive: bool) -> tuple[Tensor, Tensor]:
    if least > limit:
        raise ValueError(f"min_size must be at most the image side {limit}, got {least}")
    first, last = where.amin(dim=1), where.amax(dim=1)
    low, high = first * side, (last + 1 if inclusive else last) * side
    high = torch.maximum(high, low + side).clamp(max=limit)
    missing = (least - (high - low)).clamp(min=0)
    low = (low - missing // 2).clamp(min=0)
    high = torch.maximum(high, (low + least)).clamp(max=limit)
    low = torch.minimum(low, (high - least).clamp(min=0))
    return low, high


def crop_images(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image's box, stretched to the size of the image: bilinear with aligned corners; aspect ratio is not kept.

    The gradient flows through the pixels. Half precision is interpolated in float32.

    Args:
        images: [B,C,H,W] float, the very batch that was fed to the network.
        boxes: [B,4] integer top, left, bottom, right in pixels.

    Returns:
        [B,C,H,W] in the dtype of `images`; a box of the whole image returns it unchanged.

    Raises:
        TypeError: images that are not floating-point (uint8 cannot be interpolated) or boxes that are not integers.
        ValueError: an empty box or one outside the image.
    """
    sizes = check_shape("images", check_float("images", images), "B C H W")
    check_shape("boxes", boxes, "B 4", B=sizes["B"])
    check_device("boxes", boxes, "images", images)
    if boxes.is_floating_point() or boxes.dtype == torch.bool:
        raise TypeError(f"boxes must hold integer pixels, got {boxes.dtype}")
    top, left, bottom, right = boxes.unbind(dim=1)
    height, width = sizes["H"], sizes["W"]
    bad = (top < 0) | (left < 0) | (bottom > height) | (right > width) | (top >= bottom) | (left >= right)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"boxes[{row}] = {boxes[row].tolist()} is empty or outside the {height} x {width} image")
    pixels = images if images.dtype == torch.float64 else images.float()
    pixels = _stretch(pixels, top, bottom, dim=2)
    return _stretch(pixels, left, right, dim=3).to(images.dtype)


def _stretch(x: Tensor, low: Tensor, high: Tensor, dim: int) -> Tensor:
    """Linear interpolation of ``x[low:high]`` to the full length of axis `dim` (2 or 3), ends aligned."""
    size = x.shape[dim]
    step = (high - low - 1).to(x.dtype) / max(size - 1, 1)
    place = torch.arange(size, device=x.device, dtype=x.dtype) * step[:, None]
    # The last place is the end by definition; rounding must not push it past the end or just before it.
    place[:, -1] = (high - low - 1).to(x.dtype) if size > 1 else 0.0
    before = place.floor()
    weight = place - before
    first = low[:, None] + before.long()
    second = torch.minimum(first + 1, high[:, None] - 1)
    shape = [x.shape[0], 1, 1, 1]
    shape[dim] = size
    full = [x.shape[0], *x.shape[1:]]
    a = x.gather(dim, first.view(shape).expand(full))
    b = x.gather(dim, second.view(shape).expand(full))
    return a + (b - a) * weight.view(shape)
