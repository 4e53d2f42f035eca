"""Tiny random-weight models of the real transformers classes, for tests and examples that must run anywhere in a moment."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tokenry.core.checks import check_choice
from tokenry.core.seeding import seeded
from tokenry.testing.zoo.llava import llava_inputs, onevision_inputs, qwen_inputs, tiny_llava, tiny_onevision, tiny_qwen
from tokenry.testing.zoo.parts import IMAGE_TOKEN, TEXT, TOKENS, VIDEO_TOKEN
from tokenry.testing.zoo.vlm import VLM_NAMES, tiny_vlm, vlm_inputs

__all__ = [
    "IMAGE_TOKEN",
    "NAMES",
    "VIDEO_TOKEN",
    "VLM_NAMES",
    "llava_inputs",
    "onevision_inputs",
    "qwen_inputs",
    "siglip2_inputs",
    "tiny",
    "tiny_llava",
    "tiny_onevision",
    "tiny_qwen",
    "tiny_vlm",
    "vlm_inputs",
]

_DECODER = {**TEXT, "num_hidden_layers": 2}
_VISION = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 24,
    "patch_size": 4,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_PACKED = {**{key: value for key, value in _VISION.items() if key != "image_size"}, "num_patches": 36}
_GPT2 = {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_MAMBA = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2}
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
    "ernie4_5": ("Ernie4_5ForCausalLM", {**_DECODER, "head_dim": 8}),
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
            qwen2_5_vl, llava_next, llava_pixtral, qwen2_vl, qwen3_vl, qwen3_vl_moe,
            internvl, gemma3_vlm, mistral3, idefics3, smolvlm).
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


_WHOLE = {name: partial(tiny_vlm, name) for name in VLM_NAMES} | {
    "llava": tiny_llava, "onevision": tiny_onevision, "qwen2_5_vl": tiny_qwen,
}  # fmt: skip
NAMES = (*_PLAIN, *_WHOLE)
"""What `tiny` builds."""


def siglip2_inputs(grids: tuple[tuple[int, int], ...] = ((6, 6), (4, 5)), *, seed: int = 0) -> dict[str, Tensor]:
    """What a processor would give `tiny("siglip2")`: an image per (rows, columns) of patches, padded to the largest."""
    counts = [rows * columns for rows, columns in grids]
    pixels = torch.zeros(len(grids), max(counts), 3 * 4 * 4)
    for i, count in enumerate(counts):
        pixels[i, :count] = torch.randn(count, 3 * 4 * 4, generator=torch.Generator().manual_seed(seed + i))
    mask = (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long()
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": torch.tensor(grids)}
