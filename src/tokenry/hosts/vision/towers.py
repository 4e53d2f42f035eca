"""Which vision transformers of transformers are known, and where their parts are.

A *tower* is the module that turns pixels into tokens (``ViTModel``, ``CLIPVisionModel`` ...). Classifiers and projections built
around one tower are accepted too and resolved to it, as is what `tokenry.hosts.wrappers` takes off. Composite models
(``CLIPModel``, ``LlavaForConditionalGeneration``) are not: pass their vision sub-model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from tokenry.core.checks import check_int
from tokenry.errors import ADD_A_FAMILY, UnsupportedModelError
from tokenry.hosts.wrappers import unwrapped


@dataclass(frozen=True)
class ViTFamily:
    """Where a family of vision transformers keeps its parts; dotted names are relative to the tower.

    Attributes:
        name: what `VisionHost.family` says.
        blocks: the list of blocks; a block maps hidden states [B,N,D] (its first argument) to a tensor of that shape.
        attention: the attention inside a block, which holds ``q_proj`` and ``k_proj``, and ``scaling`` or ``scale``.
        output: the output projection inside the attention.
        prefix: tokens before the patches; None is one and the ``num_register_tokens`` of the config.
        has_cls: whether the first of them is a CLS token.
        final_norm: a norm that the tower does not apply to all tokens itself, where there is one.
        resize: whether other image sizes need ``interpolate_pos_encoding=True`` ("argument") or nothing ("automatic").
        bias: a module inside a block that makes a relative position bias [1,H,1+N,1+N], where there is one.
        packed: images come as patches [B,N,C*h*w] with ``spatial_shapes`` and ``pixel_attention_mask``.
        shuffled: the embeddings hide and shuffle patches and return ``(tokens, mask, ids_restore)``.
    """

    name: str
    blocks: str = "layers"
    attention: str = "attention"
    output: str = "o_proj"
    prefix: int | None = 1
    has_cls: bool = True
    final_norm: str | None = None
    resize: Literal["argument", "automatic"] = "argument"
    bias: str | None = None
    packed: bool = False
    shuffled: bool = False


_CLIP_LIKE: dict[str, Any] = {"blocks": "encoder.layers", "attention": "self_attn", "output": "out_proj"}
_DINO_LIKE: dict[str, Any] = {"blocks": "encoder.layer", "resize": "automatic"}
_TOWERS: dict[str, ViTFamily] = {
    "ViTModel": ViTFamily("vit"),
    "DeiTModel": ViTFamily("deit", prefix=2),
    "ViTMSNModel": ViTFamily("vit_msn"),
    "IJepaModel": ViTFamily("ijepa", prefix=0, has_cls=False),
    "ViTMAEModel": ViTFamily("vit_mae", shuffled=True),
    # Where BEiT averages patches, it normalises the average instead of the tokens.
    "BeitModel": ViTFamily("beit", final_norm="pooler.layernorm", resize="automatic", bias="relative_position_bias"),
    "Dinov2Model": ViTFamily("dinov2", **_DINO_LIKE),
    "Dinov2WithRegistersModel": ViTFamily("dinov2_with_registers", prefix=None, **_DINO_LIKE),
    "DINOv3ViTModel": ViTFamily("dinov3_vit", blocks="model.layer", prefix=None, resize="automatic"),
    # CLIP normalises only the pooled CLS token; its last_hidden_state is the raw output of the last block.
    "CLIPVisionModel": ViTFamily("clip", final_norm="post_layernorm", **_CLIP_LIKE),
    "SiglipVisionModel": ViTFamily("siglip", prefix=0, has_cls=False, **_CLIP_LIKE),
    "Siglip2VisionModel": ViTFamily("siglip2", prefix=0, has_cls=False, packed=True, resize="automatic", **_CLIP_LIKE),
}
_AROUND: dict[str, str] = {
    "ViTForImageClassification": "vit",
    "DeiTForImageClassification": "deit",
    "DeiTForImageClassificationWithTeacher": "deit",
    "ViTMSNForImageClassification": "vit",
    "IJepaForImageClassification": "ijepa",
    "BeitForImageClassification": "beit",
    "Dinov2ForImageClassification": "dinov2",
    "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
    "CLIPVisionModelWithProjection": "vision_model",
    "CLIPForImageClassification": "vision_model",
    "SiglipForImageClassification": "vision_model",
    "Siglip2ForImageClassification": "vision_model",
}
SUPPORTED: tuple[str, ...] = (*_TOWERS, *_AROUND)

_WINDOWS = "it attends within windows, which need the full grid of patches: none of them can be dropped on the way"
_STAGES = "its stages merge neighbouring patches, which needs the full grid: none of them can be dropped on the way"
_DECODER = "its decoder puts the tokens back into the grid and needs every one; pass its encoder, model.{}"
_WHY_NOT: dict[str, str] = {
    **dict.fromkeys(("swin", "swinv2", "swin2sr", "donut", "maskformer", "hiera"), _WINDOWS),
    **dict.fromkeys(("sam", "sam_hq", "sam2", "sam3", "vitdet"), _WINDOWS),
    **dict.fromkeys(("pvt", "pvt_v2", "cvt", "levit", "segformer", "glpn", "focalnet", "mobilevit", "mobilevitv2"), _STAGES),
}
"""Folder of transformers -> why its towers are refused."""
_ADDED: dict[type[nn.Module], ViTFamily] = {}


def add_family(tower: type[nn.Module], family: ViTFamily) -> None:
    """Let `tower`, a class of one's own, and its subclasses be pruned like the known towers, in this process.

    Its instances need a ``config`` with ``hidden_size``, ``num_attention_heads``, ``image_size`` and ``patch_size``, and a
    forward whose first argument is ``pixel_values``.

    Raises:
        TypeError: `tower` is not a class of modules, or `family` not a `ViTFamily`.
    """
    if not (isinstance(tower, type) and issubclass(tower, nn.Module)):
        raise TypeError(f"tower must be a subclass of torch.nn.Module, got {tower!r}")
    if not isinstance(family, ViTFamily):
        raise TypeError(f"family must be a ViTFamily, got {family!r}")
    _ADDED[tower] = family


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
    layout: ViTFamily = field(repr=False)
    whole: nn.Module = field(repr=False)

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
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError.of(model, SUPPORTED)
    model = unwrapped(model)
    names = _class_names(model)
    tower = next((model.get_submodule(_AROUND[name]) for name in names if name in _AROUND), model)
    family = _family(tower)
    if family is None:
        raise UnsupportedModelError.of(model, SUPPORTED, reason=_why_not(model), guide=f"{ADD_A_FAMILY}, Vision transformers")
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
        image_size=_trained_size(config, family),
        width=config.hidden_size,
        heads=config.num_attention_heads,
        final_norm=_submodule(tower, family.final_norm),
        layout=family,
        whole=model,
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


def _family(tower: nn.Module) -> ViTFamily | None:
    added = (_ADDED[cls] for cls in type(tower).__mro__ if cls in _ADDED)
    return next(added, None) or next((_TOWERS[name] for name in _class_names(tower) if name in _TOWERS), None)


def _trained_size(config: Any, family: ViTFamily) -> tuple[int, int]:
    if not family.packed:
        return as_pair("image_size", config.image_size)
    side = int(config.num_patches**0.5) * config.patch_size  # a square of patches, however the images are shaped
    return side, side


def _submodule(tower: nn.Module, name: str | None) -> nn.Module | None:
    """The named module; None where it is absent, or None, in this instance."""
    return None if name is None else dict(tower.named_modules()).get(name)


def _class_names(model: nn.Module) -> list[str]:
    # By name, so that describing a model imports no model file of transformers.
    return [c.__name__ for c in type(model).__mro__ if c.__module__.startswith("transformers.models.")]


def _why_not(model: nn.Module) -> str:
    """The reason for refusing `model`, where there is a better one than that nobody has written it down."""
    for cls in type(model).__mro__:
        folder = cls.__module__.removeprefix("transformers.models.").partition(".")[0]
        if cls.__module__.startswith("transformers.models.") and folder in _WHY_NOT:
            return _WHY_NOT[folder]
    if type(model).__name__.endswith(("ForPreTraining", "ForMaskedImageModeling")):
        inner = next((name for name, child in model.named_children() if _family(child) is not None), None)
        return _DECODER.format(inner) if inner else ""
    parts = ("vision_model", "vision_tower", "visual")
    inner = next((name for name in parts if isinstance(getattr(model, name, None), nn.Module)), None)
    return f"pass its vision sub-model, for example model.{inner}" if inner else ""
