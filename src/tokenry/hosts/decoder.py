"""Decoder-only language models of transformers: where their layers are, and which of them keep every token.

There is no table of families: whatever a decoder does before its attention function (fused projections, norms, partial or no
rotation, soft caps, sinks) is read after it is done (`tokenry.hosts.attention`). What a model must have is in `text_model`.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from tokenry.core.checks import check_choice
from tokenry.errors import ADD_A_FAMILY, UnsupportedModelError
from tokenry.hosts.attention import uses_interface

OnSliding = Literal["skip", "refuse"]

SUPPORTED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GraniteForCausalLM",
    "Starcoder2ForCausalLM",
    "StableLmForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "Olmo2ForCausalLM",
    "Olmo3ForCausalLM",
    "SmolLM3ForCausalLM",
    "Cohere2ForCausalLM",
    "Glm4ForCausalLM",
    "Ernie4_5ForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "GptOssForCausalLM",
    "LlavaForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)
"""Tested one by one against their own eager attention; other decoders of the same build are accepted too."""


def text_model(model: nn.Module) -> nn.Module:
    """The module inside `model` that owns the decoder layers and runs them (``LlamaModel`` and its like).

    Its ``layers`` each hold a ``self_attn`` that caches (has a ``layer_idx``), is causal, and looks its attention function up
    in the attention interface of transformers.

    Raises:
        UnsupportedModelError: no such module, or several (an encoder-decoder, a pair of models).
    """
    # a wrapper around a part of the model answers with the layers of what it wraps: the innermost one runs them
    found = list({id(m.layers): m for m in model.modules() if _caches(m)}.values())
    if len(found) != 1:
        reason = f"{len(found)} decoders in one model" if found else ""
        raise UnsupportedModelError.of(model, SUPPORTED, reason=reason, guide=f"{ADD_A_FAMILY}, Decoders")
    decoder: Any = found[0]
    for layer in decoder.layers:
        reason = _obstacle(layer.self_attn)
        if reason:
            raise UnsupportedModelError.of(model, SUPPORTED, reason=reason)
    return decoder


def _caches(module: nn.Module) -> bool:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        return False
    return all(isinstance(getattr(getattr(layer, "self_attn", None), "layer_idx", None), int) for layer in layers)


def _obstacle(attention: Any) -> str | None:
    if not getattr(attention, "is_causal", True):
        return "its attention is bidirectional"
    if getattr(attention, "is_kv_shared_layer", False):
        return "some of its layers read the cache of others"
    if not uses_interface(attention):
        return f"{type(attention).__name__} does not use the attention interface of transformers"
    return None


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a supported causal language model (or of the language model in a vision-language one), in order."""
    return list(text_model(model).layers)  # pyright: ignore[reportArgumentType]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The ``self_attn`` of every decoder layer, in order."""
    return [layer.self_attn for layer in decoder_layers(model)]  # pyright: ignore[reportReturnType]


def full_attention_indices(model: nn.Module, *, on_sliding: OnSliding = "skip") -> list[int]:
    """Numbers of the layers that cache every token, by what ``DynamicCache`` gives them (the others slide, and are bounded).

    Args:
        model: a supported model.
        on_sliding: ``"skip"`` leaves sliding-window layers out, ``"refuse"`` raises when there are any.

    Raises:
        UnsupportedModelError: unsupported model, only sliding layers, or sliding layers with ``"refuse"``.
    """
    check_choice("on_sliding", on_sliding, ("skip", "refuse"))
    decoder = text_model(model)
    layers = DynamicCache(config=decoder.config).layers  # pyright: ignore[reportArgumentType]
    full = [i for i, layer in enumerate(layers) if type(layer) is DynamicLayer]
    if len(full) == len(layers):
        return full
    if on_sliding == "refuse":
        reason = f"{len(layers) - len(full)} of {len(layers)} layers use sliding-window attention and on_sliding is 'refuse'"
        raise UnsupportedModelError.of(model, SUPPORTED, reason=reason)
    if not full:
        raise UnsupportedModelError(
            f"{type(model).__name__} has nothing to compress: every layer uses sliding-window attention, whose cache is "
            f"bounded already (sliding_window={getattr(decoder.config, 'sliding_window', None)}); use no method here"
        )
    return full
