"""Which vision transformers of transformers are known, and where their parts are.

A *tower* is the module that turns pixels into tokens (``ViTModel``, ``CLIPVisionModel`` ...). Classifiers and projections built
around one tower are accepted too and resolved to it. Composite models (``CLIPModel``, ``LlavaForConditionalGeneration``) are
not: pass their vision sub-model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from tokenry.core.checks import check_int
from tokenry.errors import UnsupportedModelError


@dataclass(frozen=True)
class _Family:
    """Where a family keeps its parts; dotted names are relative to the tower."""

    name: str
    blocks: str
    attention: str
    output: str
    patches: str
    prefix: int | None
    has_cls: bool
    final_norm: str | None
    resize: Literal["argument", "automatic"]


_VIT = _Family("vit", "layers", "attention", "o_proj", "embeddings.patch_embeddings.projection", 1, True, None, "argument")
_DEIT = _Family("deit", "layers", "attention", "o_proj", "embeddings.patch_embeddings.projection", 2, True, None, "argument")
_DINO = _Family(
    "dinov2", "encoder.layer", "attention", "o_proj", "embeddings.patch_embeddings.projection", 1, True, None, "automatic"
)
_DINO_REGISTERS = _Family(
    "dinov2_with_registers",
    "encoder.layer",
    "attention",
    "o_proj",
    "embeddings.patch_embeddings.projection",
    None,
    True,
    None,
    "automatic",
)
# CLIP normalises only the pooled CLS token; its last_hidden_state is the raw output of the last block.
_CLIP = _Family(
    "clip", "encoder.layers", "self_attn", "out_proj", "embeddings.patch_embedding", 1, True, "post_layernorm", "argument"
)
_SIGLIP = _Family("siglip", "encoder.layers", "self_attn", "out_proj", "embeddings.patch_embedding", 0, False, None, "argument")

_TOWERS: dict[str, _Family] = {
    "ViTModel": _VIT,
    "DeiTModel": _DEIT,
    "Dinov2Model": _DINO,
    "Dinov2WithRegistersModel": _DINO_REGISTERS,
    "CLIPVisionModel": _CLIP,
    "SiglipVisionModel": _SIGLIP,
}
_AROUND: dict[str, str] = {
    "ViTForImageClassification": "vit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "CLIPVisionModelWithProjection": "vision_model",
    "CLIPForImageClassification": "vision_model",
    "SiglipForImageClassification": "vision_model",
}
SUPPORTED: tuple[str, ...] = (*_TOWERS, *_AROUND)


@dataclass(frozen=True)
class VisionHost:
    """The parts of one vision tower.

    `prefix` counts the tokens before the patches (CLS, distillation token, registers): they are never pruned. `image_size` and
    `patch` are (height, width) in pixels; `image_size` is the size the position embeddings were made for.
    """

    model: nn.Module = field(repr=False)
    family: str
    blocks: tuple[nn.Module, ...] = field(repr=False)
    attentions: tuple[nn.Module, ...] = field(repr=False)
    outputs: tuple[nn.Module, ...] = field(repr=False)
    prefix: int
    has_cls: bool
    patch: tuple[int, int]
    image_size: tuple[int, int]
    width: int
    heads: int
    final_norm: nn.Module | None = field(repr=False)
    resize: Literal["argument", "automatic"]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def scale(self, layer: int) -> float:
        """Factor on the query-key products of block `layer`."""
        attention: Any = self.attentions[layer]
        return float(attention.scaling if hasattr(attention, "scaling") else attention.scale)

    def grid(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Patch rows and columns of an image of `image_size` pixels (height, width); default the model's own size.

        Raises:
            ValueError: a side is not a multiple of the patch side (the model would silently leave out the rest).
        """
        height, width = self.image_size if image_size is None else as_pair("image_size", image_size)
        if height % self.patch[0] or width % self.patch[1]:
            raise ValueError(f"image_size must be a multiple of the patch size {self.patch}, got {(height, width)}")
        return height // self.patch[0], width // self.patch[1]

    def block(self, layer: int) -> int:
        """`layer` as a non-negative block index; negative values count from the end.

        Raises:
            ValueError: no such block.
        """
        check_int("layer", layer, -self.depth, self.depth - 1)
        return layer % self.depth

    def require_cls(self, what: str) -> None:
        """Raise `UnsupportedModelError` if this family has no CLS token."""
        if not self.has_cls:
            having = [name for name, family in _TOWERS.items() if family.has_cls]
            raise UnsupportedModelError.of(self.model, having, reason=f"it has no CLS token, which {what} needs")


def as_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """``n`` or ``(h, w)`` as a pair of positive ints."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    return check_int(name, pair[0], 1), check_int(name, pair[1], 1)


def describe(model: nn.Module) -> VisionHost:
    """Find the vision tower in `model` and say where its parts are.

    Raises:
        UnsupportedModelError: not a known vision tower or a head around one; the message lists the supported classes.
    """
    tower = _tower(model)
    names = _class_names(tower)
    family = next((_TOWERS[name] for name in names if name in _TOWERS), None)
    if family is None:
        vision = next((n for n in ("vision_model", "vision_tower", "visual") if _reaches(model, n)), None)
        reason = f"pass its vision sub-model, for example model.{vision}" if vision else ""
        raise UnsupportedModelError.of(model, SUPPORTED, reason=reason)
    config: Any = tower.config
    blocks = tuple(tower.get_submodule(family.blocks).children())
    attentions = tuple(block.get_submodule(family.attention) for block in blocks)
    return VisionHost(
        model=tower,
        family=family.name,
        blocks=blocks,
        attentions=attentions,
        outputs=tuple(attention.get_submodule(family.output) for attention in attentions),
        prefix=1 + config.num_register_tokens if family.prefix is None else family.prefix,
        has_cls=family.has_cls,
        patch=as_pair("patch_size", config.patch_size),
        image_size=as_pair("image_size", config.image_size),
        width=config.hidden_size,
        heads=config.num_attention_heads,
        final_norm=None if family.final_norm is None else tower.get_submodule(family.final_norm),
        resize=family.resize,
    )


def image_size_of(pixel_values: Any) -> tuple[int, int]:
    """Height and width of a batch of images [B,C,H,W].

    Raises:
        ValueError, TypeError: not such a batch.
    """
    if not isinstance(pixel_values, torch.Tensor):
        raise TypeError(f"pixel_values must be a torch.Tensor, got {type(pixel_values).__name__}")
    if pixel_values.dim() != 4:
        raise ValueError(f"pixel_values must have shape [B, C, H, W], got {list(pixel_values.shape)}")
    return pixel_values.shape[2], pixel_values.shape[3]


def _tower(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError.of(model, SUPPORTED)
    for name in _class_names(model):
        if name in _AROUND:
            return model.get_submodule(_AROUND[name])
    return model


def _class_names(model: nn.Module) -> list[str]:
    # By name, so that describing a model imports no model file of transformers.
    return [c.__name__ for c in type(model).__mro__ if c.__module__.startswith("transformers.models.")]


def _reaches(model: object, name: str) -> bool:
    return isinstance(getattr(model, name, None), nn.Module)
