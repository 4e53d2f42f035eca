"""Vision transformers: towers, signals, removing patches between blocks, checkpoints."""

from tokenry.hosts.vision.checkpoint import fill, load_vision_module, save_vision_module
from tokenry.hosts.vision.signals import (
    BlockSignals,
    ClsAttention,
    Dropped,
    Merged,
    Selected,
    Selector,
    as_pair,
    capture_cls_row,
    cls_attention,
    describe,
    drop_after,
    final_tokens,
    global_and_patches,
    image_size_of,
    merge_after,
)
from tokenry.hosts.vision.towers import ViTFamily, add_family

__all__ = [
    "BlockSignals",
    "ClsAttention",
    "Dropped",
    "Merged",
    "Selected",
    "Selector",
    "ViTFamily",
    "add_family",
    "as_pair",
    "capture_cls_row",
    "cls_attention",
    "describe",
    "drop_after",
    "fill",
    "final_tokens",
    "global_and_patches",
    "image_size_of",
    "load_vision_module",
    "merge_after",
    "save_vision_module",
]
