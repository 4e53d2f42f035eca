"""Tiny LLaVA-1.5, LLaVA-OneVision and Qwen2.5-VL models, and prompts of images for them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.testing.zoo.parts import IMAGE_TOKEN, TEXT, VIDEO_TOKEN, built, ids, prompt


def tiny_llava(*, layers: int = 4, attention: Literal["sdpa", "eager"] = "sdpa", seed: int = 0) -> Any:
    """A ``LlavaForConditionalGeneration``: CLIP tower of 36 patches (48 x 48 pixels), Llama decoder, random weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=48, patch_size=8
    )
    text = LlamaConfig(num_hidden_layers=layers, **TEXT)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=36)
    return built(LlavaForConditionalGeneration, config, attention, seed)


def tiny_onevision(*, layers: int = 4, attention: Literal["sdpa", "eager"] = "sdpa", seed: int = 0) -> Any:
    """A ``LlavaOnevisionForConditionalGeneration``: SigLIP tower of 16 patches a crop, Qwen2 decoder, random weights."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    vision.vision_use_head = False
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(num_hidden_layers=layers, **TEXT),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return built(LlavaOnevisionForConditionalGeneration, config, attention, seed)


def tiny_qwen(*, layers: int = 4, attention: Literal["sdpa", "eager"] = "sdpa", seed: int = 0) -> Any:
    """A ``Qwen2_5_VLForConditionalGeneration`` with windowed vision blocks and 3-D positions, random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": 4,
        "window_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "fullatt_block_indexes": [1],
    }
    text = {"num_hidden_layers": layers, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}, **TEXT}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=61,
        vision_end_token_id=62,
    )
    return built(Qwen2_5_VLForConditionalGeneration, config, attention, seed)


def llava_inputs(
    images_per_row: tuple[int, ...] = (1,), *, words: tuple[int, ...] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """What a processor would give `tiny_llava`: rows with 0, 1 or more images, left-padded."""
    words = words or (4,) * len(images_per_row)
    inputs = ids([prompt([36] * n, w, i) for i, (n, w) in enumerate(zip(images_per_row, words, strict=True))])
    count = sum(images_per_row)
    if count:
        inputs["pixel_values"] = torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return inputs


def onevision_inputs(sizes: tuple[tuple[int, int], ...] = ((64, 64),), *, seed: int = 0) -> dict[str, Tensor]:
    """What a processor would give `tiny_onevision`: a row per image of `sizes` (height, width), tiled as needed."""
    from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

    model = tiny_onevision(layers=1)
    pins = model.config.image_grid_pinpoints
    crops = [image_size_to_num_patches(list(size), pins, 32) for size in sizes]
    pixels = torch.zeros(len(sizes), max(crops), 3, 32, 32)
    for i, count in enumerate(crops):
        pixels[i, :count] = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed + i))
    image_sizes = torch.tensor(sizes)
    with torch.no_grad():
        features = model.model.get_image_features(pixels, image_sizes).pooler_output
    inputs = ids([prompt([len(f)], 4, i) for i, f in enumerate(features)])
    return {**inputs, "pixel_values": pixels, "image_sizes": image_sizes}


def qwen_inputs(grids: tuple[tuple[tuple[int, int], ...], ...] = (((8, 12),),), *, seed: int = 0) -> dict[str, Tensor]:
    """What a processor would give `tiny_qwen`: per row the (height, width) in patches of its images."""
    rows = []
    for i, grid in enumerate(grids):
        row = [1, 5 + i]
        for height, width in grid:
            row += [61] + [IMAGE_TOKEN] * (height * width // 4) + [62, 9 + i, 11, 13 + i]
        rows.append(row if grid else [*row, 9, 11, 13])
    inputs = ids(rows)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    flat = [g for grid in grids for g in grid]
    if flat:
        patches = sum(h * w for h, w in flat)
        inputs["pixel_values"] = torch.randn(patches, 3 * 2 * 16, generator=torch.Generator().manual_seed(seed))
        inputs["image_grid_thw"] = torch.tensor([[1, h, w] for h, w in flat])
    return inputs
