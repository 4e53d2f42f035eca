"""Tiny vision-language models of every supported family, and prompts of images and clips as their processors make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice
from tokenry.core.seeding import seeded
from tokenry.testing.zoo.llava import tiny_llava, tiny_onevision, tiny_qwen
from tokenry.testing.zoo.parts import IMAGE_TOKEN, TEXT, VIDEO_TOKEN, built, ids

Item = Literal["image", "video"]

_BEGIN, _END = 61, 62
_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_CLIP = {"model_type": "clip_vision_model", **_TOWER, "image_size": 32, "patch_size": 8}
_SIGLIP = {"model_type": "siglip_vision_model", **_TOWER, "image_size": 48, "patch_size": 8, "vision_use_head": False}
_PIXTRAL = {"model_type": "pixtral", **_TOWER, "head_dim": 8, "image_size": 48, "patch_size": 4}
_INTERN = {"model_type": "internvl_vision", **_TOWER, "image_size": [48, 48], "patch_size": [8, 8]}
_PINS = [[32, 32], [32, 64], [64, 32], [64, 64]]
_QWEN_TOWER = {
    "depth": 3,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_QWEN = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN, "vision_start_token_id": 61, "vision_end_token_id": 62}
_QWEN3 = {
    "vision_config": {
        **_QWEN_TOWER,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    },
    **_QWEN,
}
_IDEFICS = {"vision_config": {**_TOWER, "image_size": 24, "patch_size": 4}, "scale_factor": 2, "image_token_id": IMAGE_TOKEN}

_MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llava_next": (
        "LlavaNextForConditionalGeneration",
        {"vision_config": _CLIP, "image_token_index": IMAGE_TOKEN, "image_grid_pinpoints": _PINS},
        {"model_type": "llama"},
    ),
    "llava_pixtral": (
        "LlavaForConditionalGeneration",
        {
            "vision_config": _PIXTRAL,
            "image_token_index": IMAGE_TOKEN,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        {"model_type": "mistral", "sliding_window": None},
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {"vision_config": {**_QWEN_TOWER, "embed_dim": 32, "mlp_ratio": 2}, **_QWEN},
        {"model_type": "qwen2_vl_text", **_ROPE},
    ),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", _QWEN3, {"model_type": "qwen3_vl_text", "head_dim": 8, **_ROPE}),
    "qwen3_vl_moe": (
        "Qwen3VLMoeForConditionalGeneration",
        _QWEN3,
        {
            "model_type": "qwen3_vl_moe_text",
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            **_ROPE,
        },
    ),
    "internvl": (
        "InternVLForConditionalGeneration",
        {"vision_config": _INTERN, "image_token_id": IMAGE_TOKEN, "image_seq_length": 9},
        {"model_type": "qwen2"},
    ),
    "gemma3_vlm": (
        "Gemma3ForConditionalGeneration",
        {
            "vision_config": _SIGLIP,
            "mm_tokens_per_image": 9,
            "image_token_index": IMAGE_TOKEN,
            "boi_token_index": 61,
            "eoi_token_index": 62,
        },
        {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 12},
    ),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {"vision_config": _PIXTRAL, "image_token_index": IMAGE_TOKEN, "spatial_merge_size": 2},
        {"model_type": "mistral", "sliding_window": None},
    ),
    "idefics3": ("Idefics3ForConditionalGeneration", _IDEFICS, {"model_type": "llama"}),
    "smolvlm": ("SmolVLMForConditionalGeneration", _IDEFICS, {"model_type": "llama"}),
}
VLM_NAMES = ("llava", "onevision", "qwen2_5_vl", *_MODELS)
"""The vision-language models of the zoo."""
VIDEO_NAMES = ("onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Those of them that have an encoder for clips; others take frames as images."""


def tiny_vlm(name: str, *, layers: int = 4, attention: Literal["sdpa", "eager"] = "sdpa", seed: int = 0) -> Any:
    """The tiny vision-language model `name` of `VLM_NAMES` with random weights, in evaluation mode.

    Raises:
        ValueError: no such name.
    """
    first = {"llava": tiny_llava, "onevision": tiny_onevision, "qwen2_5_vl": tiny_qwen}
    if check_choice("name", name, VLM_NAMES) in first:
        return first[name](layers=layers, attention=attention, seed=seed)
    import transformers

    class_name, fields, text = _MODELS[name]
    cls: Any = getattr(transformers, class_name)
    text = {**TEXT, **text, "num_hidden_layers": layers}
    if name == "gemma3_vlm":
        text["layer_types"] = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    model = built(cls, cls.config_class(text_config=text, **fields), attention, seed)
    if name == "gemma3_vlm":  # starts at zero: all visual tokens would be the same
        with seeded(seed), torch.no_grad():
            model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.5)
    return model


def vlm_inputs(name: str, rows: Sequence[Sequence[Item]] = (("image",),), *, first_row: int = 0) -> dict[str, Tensor]:
    """What the processor of `tiny_vlm(name)` would give: a left-padded batch of prompts.

    Args:
        name: a name of `VLM_NAMES`.
        rows: for each prompt its images and clips in order, such as ``(("image", "video"), ())``. Sizes alternate.
        first_row: number of the first row: row r of a batch is the same prompt as ``rows[r:r + 1]`` with ``first_row=r``.

    Raises:
        ValueError: no such name, or clips for a family that takes frames as images.
    """
    check_choice("name", name, VLM_NAMES)
    if name not in VIDEO_NAMES and any("video" in row for row in rows):
        raise ValueError(f"rows must hold images alone for {name!r}; clips are known to {', '.join(VIDEO_NAMES)}")
    batch = _Batch(name)
    for number, items in enumerate(rows, start=first_row):
        batch.start(number)
        for place, item in enumerate(items):
            batch.add(item, number + place, torch.Generator().manual_seed(101 * number + place))
    return batch.inputs()


class _Batch:
    """Prompts under construction, and what their items look like to the encoder."""

    def __init__(self, name: str) -> None:
        self.name, self.qwen = name, name.startswith("qwen")
        self.rows: list[list[int]] = []
        self.number: list[int] = []
        self.pixels: dict[Item, list[Tensor]] = {"image": [], "video": []}
        self.sizes: dict[Item, list[tuple[int, ...]]] = {"image": [], "video": []}
        self.owner: list[int] = []

    def start(self, number: int) -> None:
        """Begin a row."""
        self.rows.append([1, 5 + number])
        self.number.append(number)

    def add(self, item: Item, size: int, generator: torch.Generator) -> None:
        """An item and two words behind it."""
        row, number = self.rows[-1], self.number[-1]
        pixels, shape = self._look(item, size % 2, generator)
        row += self._placeholders(item, pixels, shape)
        row += [9 + number, 11 + len(row) % 30]
        self.pixels[item].append(pixels)
        self.sizes[item].append(shape)
        self.owner.append(len(self.rows) - 1)

    def _look(self, item: Item, odd: int, generator: torch.Generator) -> tuple[Tensor, tuple[int, ...]]:
        """Pixels of one item and its size: grid, (height, width), or tiles."""

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        if self.qwen:
            grid = ((1, 8, 12), (1, 4, 8)) if item == "image" else ((3, 4, 8), (2, 8, 4))
            time, height, width = grid[odd]
            return noise(time * height * width, 3 * 2 * 16), grid[odd]
        if self.name in ("llava_next", "onevision"):
            if item == "video":
                return noise(3, 3, 32, 32), (3,)
            return noise((5, 3)[odd], 3, 32, 32), ((64, 64), (20, 60))[odd]
        if self.name in ("mistral3", "llava_pixtral"):
            size = ((16, 24), (24, 24))[odd]
            return noise(3, *size), size
        tiles = (1, 3)[odd] if self.name in ("internvl", "idefics3", "smolvlm") else 1
        side = 24 if self.name in ("idefics3", "smolvlm") else 48
        return noise(tiles, 3, side, side), (tiles,)

    def _placeholders(self, item: Item, pixels: Tensor, shape: tuple[int, ...]) -> list[int]:
        if self.qwen:
            count = shape[1] * shape[2] // 4
            if item == "image":
                return [_BEGIN, *[IMAGE_TOKEN] * count, _END]
            if self.name.startswith("qwen3"):  # a time stamp before every frame
                return [t for i in range(shape[0]) for t in (20 + i, _BEGIN, *[VIDEO_TOKEN] * count, _END)]
            return [_BEGIN, *[VIDEO_TOKEN] * (shape[0] * count), _END]
        if self.name in ("llava_next", "onevision"):
            if item == "video":
                return [VIDEO_TOKEN] * (shape[0] * 4 + 1)
            model = tiny_vlm(self.name, layers=1)
            with torch.no_grad():
                features = model.model.get_image_features(pixels[None], torch.tensor([shape])).pooler_output
            return [IMAGE_TOKEN] * len(features[0])
        if self.name in ("mistral3", "llava_pixtral"):
            unit = 8 if self.name == "mistral3" else 4
            line = [*[IMAGE_TOKEN] * (shape[1] // unit), _BEGIN]
            return [*(line * (shape[0] // unit))[:-1], _END]
        if self.name in ("idefics3", "smolvlm"):
            return [*([_BEGIN, *[IMAGE_TOKEN] * 9] * shape[0]), _END]
        return [_BEGIN, *[IMAGE_TOKEN] * (36 if self.name == "llava" else 9 * shape[0]), _END]

    def inputs(self) -> dict[str, Tensor]:
        """Everything that ``generate`` takes."""
        inputs = ids(self.rows)
        types = (inputs["input_ids"] == IMAGE_TOKEN).long() + 2 * (inputs["input_ids"] == VIDEO_TOKEN).long()
        if self.qwen:
            inputs["mm_token_type_ids"] = types.int()
        if self.name == "gemma3_vlm":
            inputs["token_type_ids"] = types
        names: dict[Item, str] = {"image": "pixel_values", "video": "pixel_values_videos"}
        for item, key in names.items():
            if self.pixels[item]:
                inputs[key] = self._stacked(item)
                if self.qwen:
                    inputs[f"{item}_grid_thw"] = torch.tensor(self.sizes[item])
        if self.pixels["image"] and self.name in ("llava_next", "onevision", "mistral3", "llava_pixtral"):
            inputs["image_sizes"] = torch.tensor(self.sizes["image"])
        if self.pixels["video"] and self.name == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor([0.25 * frames for frames, *_ in self.sizes["video"]])
        return inputs

    def _stacked(self, item: Item) -> Tensor:
        """Pixels of all items, padded with zeros where the family stacks them."""
        pixels = self.pixels[item]
        if self.name in ("idefics3", "smolvlm"):
            of_row = [[p for p, row in zip(pixels, self.owner, strict=True) if row == r] for r in range(len(self.rows))]
            pixels = [torch.cat(own) if own else torch.zeros(0, 3, 24, 24) for own in of_row]
        elif self.qwen or self.name in ("llava", "internvl", "gemma3_vlm"):
            return torch.cat(pixels)
        stacked = torch.zeros(len(pixels), *(max(p.shape[d] for p in pixels) for d in range(pixels[0].dim())))
        for i, p in enumerate(pixels):
            stacked[(i, *map(slice, p.shape))] = p
        return stacked
