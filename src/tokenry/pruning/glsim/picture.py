"""The saliency picture: similarity on the patch grid, drawn over the image."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.checks import check_choice, check_float, check_range, check_shape
from tokenry.hosts.vision import as_pair

_RAMP = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def saliency_map(
    similarity: Tensor,
    grid: int | tuple[int, int],
    image_size: int | tuple[int, int],
    *,
    transform: Literal["min_max", "square", "none"] = "min_max",
) -> Tensor:
    """Similarity [B,N] on its grid, stretched to the image: [B,H,W] float32.

    ``"min_max"`` scales each image's values to 0..1 (all equal: 0), ``"square"`` squares them, ``"none"`` leaves them.

    Raises:
        ValueError: a grid that does not hold N patches.
    """
    sizes = check_shape("similarity", check_float("similarity", similarity), "B N")
    check_choice("transform", transform, ("min_max", "square", "none"))
    rows, columns = as_pair("grid", grid)
    if rows * columns != sizes["N"]:
        raise ValueError(f"grid must hold the {sizes['N']} patches of similarity, got {rows} x {columns}")
    values = similarity.detach().float()
    if transform == "square":
        values = values.square()
    elif transform == "min_max":
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        values = (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)
    values = values.view(sizes["B"], 1, rows, columns)
    return F.interpolate(values, size=as_pair("image_size", image_size), mode="bilinear", align_corners=False)[:, 0]


def overlay(
    image: Tensor,
    saliency: Tensor,
    *,
    alpha: float = 0.5,
    box: Tensor | None = None,
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """The image under its saliency, as uint8 [H,W,3] (``PIL.Image.fromarray`` makes a picture of it).

    Args:
        image: [3,H,W] or [1,H,W]; after ``image * std + mean`` it must be in 0..1 (values outside are cut off for display).
        saliency: [H,W] in 0..1, from `saliency_map`.
        alpha: share of the saliency colours, 0..1.
        box: optional crop box (top, left, bottom, right), drawn as a white frame.
        mean: channel means that the image processor subtracted.
        std: channel deviations that it divided by.

    Raises:
        ValueError: sizes that do not agree, or `alpha` out of range.
    """
    sizes = check_shape("image", check_float("image", image), "C H W")
    check_shape("saliency", saliency, "H W", H=sizes["H"], W=sizes["W"])
    check_range("alpha", alpha, 0.0, 1.0)
    if sizes["C"] not in (1, 3):
        raise ValueError(f"image must have 1 or 3 channels, got {sizes['C']}")
    pixels = image.detach().float().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()
    pixels = np.clip(pixels * np.asarray(std) + np.asarray(mean), 0.0, 1.0) * 255.0
    heat = np.clip(saliency.detach().float().cpu().numpy(), 0.0, 1.0)
    places = np.linspace(0.0, 1.0, len(_RAMP))
    colours = np.stack([np.interp(heat, places, _RAMP[:, channel]) for channel in range(3)], axis=-1)
    picture = np.rint((1.0 - alpha) * pixels + alpha * colours).astype(np.uint8)
    if box is not None:
        top, left, bottom, right = (int(edge) for edge in box)
        picture[top:bottom, [left, right - 1]] = 255
        picture[[top, bottom - 1], left:right] = 255
    return picture
