"""What one call of a vision tower was given: how many patches every image has, and in which grid they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from tokenry.core.checks import check_shape
from tokenry.hosts.vision.towers import VisionHost, image_size_of


class Images(NamedTuple):
    """`grids`: (rows, columns) of patches of every image; `total`: patches that each image has in the batch, with padding."""

    grids: tuple[tuple[int, int], ...]
    total: int


def images_of(host: VisionHost, call: Mapping[str, Any]) -> Images:
    """Read the images from the arguments of a forward, by name.

    Raises:
        ValueError, TypeError: pixels of another shape, sides that are not multiples of the patch side, or padded patches
            without the mask that marks them.
    """
    pixels = call.get("pixel_values")
    if not host.layout.packed:
        rows, columns = host.grid(image_size_of(pixels))
        return Images(((rows, columns),) * len(pixels), rows * columns)  # pyright: ignore[reportArgumentType]
    if not isinstance(pixels, Tensor):
        raise TypeError(f"pixel_values must be a torch.Tensor, got {type(pixels).__name__}")
    sizes = check_shape("pixel_values", pixels, "B N C")
    grids = tuple((int(rows), int(columns)) for rows, columns in call["spatial_shapes"].tolist())
    if call.get("pixel_attention_mask") is None and any(r * c != sizes["N"] for r, c in grids):
        raise ValueError(f"pixel_attention_mask must be given where images have fewer than {sizes['N']} patches, got None")
    return Images(grids, sizes["N"])
