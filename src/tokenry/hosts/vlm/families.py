"""Which vision-language models are known, and what differs between them: where the parts are, and how a token is projected.

All of them encode images (and clips) into features that replace placeholders of the prompt, and hand the embedded prompt to a
language model. What they share is in `prompt`; what they do not is one row of the table here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.errors import ADD_A_FAMILY, UnsupportedModelError
from tokenry.hosts.vision import describe
from tokenry.hosts.vlm.projectors import Reader, grouped_patches, mistral3_groups, pooled_patches, single_tokens
from tokenry.hosts.wrappers import unwrapped

Shape = tuple[int, int, int]
"""Frames, rows and columns of tokens."""
Shapes = Callable[[Any, Mapping[str, Any], Sequence[int]], Sequence[Shape | None]]
"""(the model inside, arguments of the encoder, tokens per entry) -> the shape of every entry; None = no grid."""


def square_shapes(inner: Any, given: Mapping[str, Any], counts: Sequence[int]) -> list[Shape | None]:
    """Every entry is one square image, where its number of tokens is a square."""
    return [(1, isqrt(n), isqrt(n)) if isqrt(n) ** 2 == n else None for n in counts]


def grid_shapes(inner: Any, given: Mapping[str, Any], counts: Sequence[int]) -> list[Shape | None]:
    """Entries as ``image_grid_thw`` or ``video_grid_thw`` (in patches) say."""
    grids = next((value for name, value in given.items() if name.endswith("_grid_thw") and value is not None), None)
    if grids is None:
        return [None] * len(counts)
    unit = inner.visual.spatial_merge_size
    return [(t, rows // unit, columns // unit) for t, rows, columns in grids.tolist()]


def size_shapes(inner: Any, given: Mapping[str, Any], counts: Sequence[int]) -> list[Shape | None]:
    """Entries of ``image_sizes`` pixels, where the tower takes images of any size (Pixtral); else squares."""
    sizes = given.get("image_sizes")
    if sizes is None:
        return square_shapes(inner, given, counts)
    unit = inner.vision_tower.patch_size * getattr(inner.config, "spatial_merge_size", 1)
    return [(1, int(height) // unit, int(width) // unit) for height, width in sizes]


def window_order(inner: Any, grid_thw: Tensor) -> Tensor:
    """Raster order of tokens that Qwen2.5-VL projects in window order, as an index [n]."""
    from transformers.vision_utils import get_vision_window_index

    visual = inner.visual
    window, _ = get_vision_window_index(
        grid_thw,  # pyright: ignore[reportArgumentType]
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    return torch.argsort(window)


@dataclass(frozen=True)
class VLMFamily:
    """What a family of vision-language models does its own way; dotted names are relative to ``model.model``.

    Attributes:
        tower: the vision tower.
        projector: the module that turns what the tower says into tokens of the language model.
        language: the language model; it is called with ``inputs_embeds``, ``attention_mask``, ``position_ids`` and the cache.
        reader: how a call of the projector is read as a map of single tokens.
        entries: what one entry of ``get_image_features(...).pooler_output`` is: an ``"image"``; a ``"tile"``, where the tiles
            of an image follow each other in the prompt, its thumbnail last; or all tiles of a ``"row"`` of the batch, which
            count as images of their own.
        shapes: frames, rows and columns of the entries' tokens.
        order: where the projector sees tokens in another order than the language model, the index that puts them back.
        cls: whether a token is one patch, so that the attention of the tower's CLS token (where it has one) can be read.
        blocks: whether the tokens of an image see each other both ways, by masks made from ``token_type_ids``.
    """

    tower: str = "vision_tower"
    projector: str = "multi_modal_projector"
    language: str = "language_model"
    reader: Reader = single_tokens
    entries: Literal["image", "tile", "row"] = "image"
    shapes: Shapes = square_shapes
    order: Callable[[Any, Tensor], Tensor] | None = None
    cls: bool = False
    blocks: bool = False

    def __post_init__(self) -> None:
        check_choice("entries", self.entries, ("image", "tile", "row"))
        for name in ("reader", "shapes"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} must be a function, got {getattr(self, name)!r}")


_QWEN: dict[str, Any] = {
    "tower": "visual",
    "projector": "visual.merger",
    "reader": grouped_patches,
    "shapes": grid_shapes,
}
_IDEFICS = VLMFamily("vision_model", "connector.modality_projection", "text_model", entries="row")
_FAMILIES: dict[str, VLMFamily] = {
    "LlavaForConditionalGeneration": VLMFamily(shapes=size_shapes, cls=True),
    "LlavaNextForConditionalGeneration": VLMFamily(cls=True),
    "LlavaOnevisionForConditionalGeneration": VLMFamily(cls=True),
    "Qwen2VLForConditionalGeneration": VLMFamily(**_QWEN),
    "Qwen2_5_VLForConditionalGeneration": VLMFamily(**_QWEN, order=window_order),
    "Qwen3VLForConditionalGeneration": VLMFamily(**_QWEN),
    "Qwen3VLMoeForConditionalGeneration": VLMFamily(**_QWEN),
    "InternVLForConditionalGeneration": VLMFamily(entries="tile"),
    "Gemma3ForConditionalGeneration": VLMFamily(reader=pooled_patches, blocks=True),
    "Mistral3ForConditionalGeneration": VLMFamily(reader=mistral3_groups, shapes=size_shapes),
    "Idefics3ForConditionalGeneration": _IDEFICS,
    "SmolVLMForConditionalGeneration": _IDEFICS,
}
SUPPORTED: tuple[str, ...] = tuple(_FAMILIES)
_ADDED: dict[type[nn.Module], VLMFamily] = {}


def add_vlm_family(model: type[nn.Module], family: VLMFamily) -> None:
    """Let `model`, a class of one's own, and its subclasses be pruned like the known ones, in this process.

    Its instances need ``generate`` of transformers, ``config.image_token_id``, and a ``model.model`` whose
    ``get_image_features`` returns the features as ``pooler_output``, an entry [n,D] per image.

    Raises:
        TypeError: `model` is not a class of modules, or `family` not a `VLMFamily`.
    """
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise TypeError(f"model must be a subclass of torch.nn.Module, got {model!r}")
    if not isinstance(family, VLMFamily):
        raise TypeError(f"family must be a VLMFamily, got {family!r}")
    _ADDED[model] = family


def family_of(model: nn.Module) -> VLMFamily:
    """The row of `model`'s class, or of the nearest of its bases that has one.

    Raises:
        UnsupportedModelError: none has; the message names the nearest supported class and the page on adding one.
    """
    for cls in type(model).__mro__:
        family = _ADDED.get(cls) or _FAMILIES.get(cls.__name__)
        if family is not None:
            return family
    raise UnsupportedModelError.of(model, SUPPORTED, guide=f"{ADD_A_FAMILY}, Vision-language models")


def language_of(model: nn.Module) -> Any:
    """The language model inside a supported vision-language model, wrapped or not."""
    model = unwrapped(model)
    family = family_of(model)
    return part(model.model, family.language)


def has_cls(model: nn.Module) -> bool:
    """Whether attention of a CLS token to visual tokens can be read: the tower has one, and a token is one of its patches."""
    family, inner = family_of(model), model.model
    try:
        return family.cls and describe(part(inner, family.tower)).has_cls
    except UnsupportedModelError:
        return False


def part(inner: Any, name: str) -> Any:
    """The submodule of that dotted name, out of what may be wrapped around it.

    Raises:
        UnsupportedModelError: there is none; the row of this family is not right.
    """
    try:
        return unwrapped(inner.get_submodule(name))
    except AttributeError:
        raise UnsupportedModelError(
            f"{type(inner).__name__} has no submodule {name!r}, which its VLMFamily names; it has "
            f"{', '.join(found for found, _ in inner.named_children())} ({ADD_A_FAMILY})"
        ) from None
