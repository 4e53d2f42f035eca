"""Tiny random-weight models of the real transformers classes, for tests and examples that must run anywhere in a moment."""

from __future__ import annotations

from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice
from tokenry.core.seeding import seeded

_TOKENS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63}
_TEXT = {
    **_TOKENS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
IMAGE_TOKEN, VIDEO_TOKEN = 60, 59

_DECODER = {**_TEXT, "num_hidden_layers": 2}
_VISION = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 24,
    "patch_size": 4,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_PACKED = {**{key: value for key, value in _VISION.items() if key != "image_size"}, "num_patches": 36}
_GPT2 = {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_MAMBA = {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 2}
_ENCODEC = {
    "sampling_rate": 1000, "upsampling_ratios": [5, 2, 2], "num_filters": 4, "hidden_size": 16, "codebook_size": 16,
    "target_bandwidths": [0.8, 1.6], "num_lstm_layers": 1,
}  # fmt: skip
_DAC = {
    "sampling_rate": 1000, "downsampling_ratios": [2, 4, 5], "encoder_hidden_size": 4, "decoder_hidden_size": 32,
    "n_codebooks": 4, "codebook_size": 16, "codebook_dim": 4,
}  # fmt: skip
_MIMI = {
    "sampling_rate": 1000, "upsampling_ratios": [5, 2], "num_filters": 4, "hidden_size": 16, "codebook_size": 16,
    "codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_quantizers": 4, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32, "sliding_window": 6, "upsample_groups": 16,
}  # fmt: skip
_PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _DECODER),
    "mistral": ("MistralForCausalLM", _DECODER),
    "qwen2": ("Qwen2ForCausalLM", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", {**_DECODER, "head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", _DECODER),
    "gemma3": ("Gemma3ForCausalLM", {**_DECODER, "head_dim": 8}),
    "mixtral": ("MixtralForCausalLM", {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**_DECODER, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gemma": ("GemmaForCausalLM", {**_DECODER, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", {**_DECODER, "head_dim": 8}),
    "granite": ("GraniteForCausalLM", _DECODER),
    "starcoder2": ("Starcoder2ForCausalLM", _DECODER),
    "stablelm": ("StableLmForCausalLM", _DECODER),
    "phi": ("PhiForCausalLM", _DECODER),
    "olmo2": ("Olmo2ForCausalLM", _DECODER),
    "olmo3": ("Olmo3ForCausalLM", _DECODER),
    "smollm3": ("SmolLM3ForCausalLM", _DECODER),
    "cohere2": ("Cohere2ForCausalLM", {**_DECODER, "head_dim": 8}),
    "glm4": ("Glm4ForCausalLM", {**_DECODER, "head_dim": 8}),
    "ernie4_5": ("Ernie4_5ForCausalLM", _DECODER),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", {**_DECODER, "head_dim": 8}),
    "gpt_oss": ("GptOssForCausalLM", {**_DECODER, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "mamba": ("MambaForCausalLM", _MAMBA),
    "bert": ("BertModel", _DECODER),
    "vit": ("ViTModel", {**_VISION, "add_pooling_layer": False}),
    "deit": ("DeiTModel", _VISION),
    "dinov2": ("Dinov2Model", _VISION),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", _VISION),
    "clip": ("CLIPVisionModel", _VISION),
    "vit_msn": ("ViTMSNModel", _VISION),
    "vit_mae": ("ViTMAEModel", _VISION),
    "ijepa": ("IJepaModel", _VISION),
    "beit": ("BeitModel", {**_VISION, "use_relative_position_bias": True}),
    "dinov3": ("DINOv3ViTModel", {**_VISION, "num_register_tokens": 2}),
    "siglip": ("SiglipVisionModel", _VISION),
    "siglip2": ("Siglip2VisionModel", _PACKED),
    "encodec": ("EncodecModel", _ENCODEC),
    "dac": ("DacModel", _DAC),
    "mimi": ("MimiModel", _MIMI),
}
"""Name -> class of transformers and its sizes."""
_POSITIONS = ("position_embeddings", "relative_position_bias_table")
"""Tables that some classes start at zero: all patches of such a model would stand at the same place."""


def tiny(name: str, *, seed: int = 0, **overrides: Any) -> Any:
    """A tiny model of a transformers class with random weights from `seed`, in evaluation mode.

    Args:
        name: a decoder (llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, gemma, gemma2, gemma3, granite, starcoder2,
            stablelm, phi, phi3, olmo2, olmo3, smollm3, cohere2, glm4, ernie4_5, hunyuan, gpt_oss, gpt2, mamba), an encoder
            (bert), a vision tower (vit, deit, vit_msn, vit_mae, ijepa, beit, dinov2, dinov2_with_registers, dinov3, clip,
            siglip, siglip2), an audio codec of 1 kHz (encodec, dac, mimi), or a vision-language model (llava, onevision,
            qwen2_5_vl).
        seed: of the weights; the global random state is left as it was.
        overrides: fields of the config, and further arguments of the class (``add_pooling_layer``); for vision-language
            models ``layers`` of the decoder and ``attention``.

    Raises:
        ValueError: no such name.
    """
    if check_choice("name", name, NAMES) in _WHOLE:
        return _WHOLE[name](seed=seed, **overrides)
    import transformers

    class_name, sizes = _PLAIN[name]
    cls: Any = getattr(transformers, class_name)
    fields = {**sizes, **overrides}
    arguments = {key: fields.pop(key) for key in signature(cls).parameters if key in fields}
    with seeded(seed):
        model = cls(cls.config_class(**fields), **arguments)
        for key, table in model.named_parameters():
            if key.endswith(_POSITIONS) and not table.any():
                torch.nn.init.normal_(table, std=0.02)
    return model.eval()


def _built(cls: Any, config: Any, attention: str, seed: int) -> Any:
    with seeded(seed):
        model = cls(config)
    model.set_attn_implementation(attention)
    return model.eval()


def tiny_llava(*, layers: int = 4, attention: Literal["sdpa", "eager"] = "sdpa", seed: int = 0) -> Any:
    """A ``LlavaForConditionalGeneration``: CLIP tower of 36 patches (48 x 48 pixels), Llama decoder, random weights."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=48, patch_size=8
    )
    text = LlamaConfig(num_hidden_layers=layers, **_TEXT)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, image_seq_length=36)
    return _built(LlavaForConditionalGeneration, config, attention, seed)


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
        text_config=Qwen2Config(num_hidden_layers=layers, **_TEXT),
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return _built(LlavaOnevisionForConditionalGeneration, config, attention, seed)


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
    text = {"num_hidden_layers": layers, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}, **_TEXT}
    config = Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=61,
        vision_end_token_id=62,
    )
    return _built(Qwen2_5_VLForConditionalGeneration, config, attention, seed)


_WHOLE = {"llava": tiny_llava, "onevision": tiny_onevision, "qwen2_5_vl": tiny_qwen}
NAMES = (*_PLAIN, *_WHOLE)
"""What `tiny` builds."""


def _ids(rows: list[list[int]]) -> dict[str, Tensor]:
    """Left-padded ids and mask."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _prompt(images: list[int], words: int, offset: int) -> list[int]:
    """``BOS word (image words)*``: `images` holds the number of placeholders of every image of the prompt."""
    row = [1, 5 + offset]
    for count in images:
        row += [IMAGE_TOKEN] * count + [(7 + offset + 3 * i) % 50 + 2 for i in range(words)]
    return row if images else row + [(7 + offset + 3 * i) % 50 + 2 for i in range(words)]


def llava_inputs(
    images_per_row: tuple[int, ...] = (1,), *, words: tuple[int, ...] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """What a processor would give `tiny_llava`: rows with 0, 1 or more images, left-padded."""
    words = words or (4,) * len(images_per_row)
    inputs = _ids([_prompt([36] * n, w, i) for i, (n, w) in enumerate(zip(images_per_row, words, strict=True))])
    count = sum(images_per_row)
    if count:
        inputs["pixel_values"] = torch.randn(count, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return inputs


def siglip2_inputs(grids: tuple[tuple[int, int], ...] = ((6, 6), (4, 5)), *, seed: int = 0) -> dict[str, Tensor]:
    """What a processor would give `tiny("siglip2")`: an image per (rows, columns) of patches, padded to the largest."""
    counts = [rows * columns for rows, columns in grids]
    pixels = torch.zeros(len(grids), max(counts), 3 * 4 * 4)
    for i, count in enumerate(counts):
        pixels[i, :count] = torch.randn(count, 3 * 4 * 4, generator=torch.Generator().manual_seed(seed + i))
    mask = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long()
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(grids)}


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
    inputs = _ids([_prompt([len(f)], 4, i) for i, f in enumerate(features)])
    return {**inputs, "pixel_values": pixels, "image_sizes": image_sizes}


def qwen_inputs(grids: tuple[tuple[tuple[int, int], ...], ...] = (((8, 12),),), *, seed: int = 0) -> dict[str, Tensor]:
    """What a processor would give `tiny_qwen`: per row the (height, width) in patches of its images."""
    rows = []
    for i, grid in enumerate(grids):
        row = [1, 5 + i]
        for height, width in grid:
            row += [61] + [IMAGE_TOKEN] * (height * width // 4) + [62, 9 + i, 11, 13 + i]
        rows.append(row if grid else [*row, 9, 11, 13])
    inputs = _ids(rows)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE_TOKEN).int()
    flat = [g for grid in grids for g in grid]
    if flat:
        patches = sum(h * w for h, w in flat)
        inputs["pixel_values"] = torch.randn(patches, 3 * 2 * 16, generator=torch.Generator().manual_seed(seed))
        inputs["image_grid_thw"] = torch.tensor([[1, h, w] for h, w in flat])
    return inputs
