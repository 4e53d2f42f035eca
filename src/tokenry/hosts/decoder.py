"""Decoder-only language models of transformers: their attention layers, queries and keys, whatever the family.

Supported: Llama, Mistral, Qwen2, Qwen3, Gemma 3 (text), Phi-3, and the language models inside LLaVA, LLaVA-OneVision and
Qwen2.5-VL. Differences between the families (fused qkv, q/k norm, partial rotation, logit scale) are settled here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.errors import UnsupportedModelError

OnSliding = Literal["skip", "refuse"]
PositionEmbeddings = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Family:
    """How one attention class makes its queries and keys.

    Attributes:
        fused: one ``qkv_proj`` instead of ``q_proj`` and ``k_proj``.
        normed: ``q_norm`` and ``k_norm`` act on every head before the rotation.
    """

    fused: bool = False
    normed: bool = False


FAMILIES: dict[str, Family] = {
    "LlamaAttention": Family(),
    "MistralAttention": Family(),
    "Qwen2Attention": Family(),
    "Qwen2_5_VLAttention": Family(),
    "Qwen3Attention": Family(normed=True),
    "Gemma3Attention": Family(normed=True),
    "Phi3Attention": Family(fused=True),
}
SUPPORTED = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "LlavaForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)


@dataclass(frozen=True)
class AttentionFacts:
    """What a computation on one attention layer needs to know besides queries and keys."""

    index: int
    query_heads: int
    kv_heads: int
    head_size: int
    scale: float
    sliding_window: int | None
    soft_cap: float | None = None


def family(attention: nn.Module) -> Family | None:
    """The family of a transformers attention module (subclasses count), or None when it is not a supported one."""
    for cls in type(attention).__mro__:
        found = FAMILIES.get(cls.__name__)
        if found is not None:
            return found
    return None


def text_model(model: nn.Module) -> nn.Module:
    """The module inside `model` that owns the decoder layers and runs them (``LlamaModel`` and its like).

    Raises:
        UnsupportedModelError: no such module, or several (an encoder-decoder, a pair of models).
    """
    found = [m for m in model.modules() if _is_decoder(m)]
    if len(found) != 1:
        reason = "no supported decoder layers" if not found else f"{len(found)} decoders in one model"
        raise UnsupportedModelError.of(model, SUPPORTED, reason=reason)
    return found[0]


def _is_decoder(module: nn.Module) -> bool:
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        return False
    return all(family(getattr(layer, "self_attn", layer)) is not None for layer in layers)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a supported causal language model (or of the language model in a vision-language one), in order."""
    return list(text_model(model).layers)  # pyright: ignore[reportArgumentType]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """The ``self_attn`` of every decoder layer, in order."""
    return [layer.self_attn for layer in decoder_layers(model)]  # pyright: ignore[reportReturnType]


def attention_facts(attention: nn.Module) -> AttentionFacts:
    """Sizes, logit scale and window of one attention layer.

    Raises:
        UnsupportedModelError: not a supported attention class, or attention that is not causal.
    """
    if family(attention) is None:
        raise UnsupportedModelError.of(attention, sorted(FAMILIES))
    if not getattr(attention, "is_causal", True):
        raise UnsupportedModelError.of(attention, SUPPORTED, reason="its attention is bidirectional")
    config: Any = attention.config
    head_size = int(attention.head_dim)  # pyright: ignore[reportArgumentType]
    return AttentionFacts(
        index=int(attention.layer_idx),  # pyright: ignore[reportArgumentType]
        query_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=head_size,
        scale=float(attention.scaling),  # pyright: ignore[reportArgumentType]
        sliding_window=_sliding_window(attention, config),
    )


def _sliding_window(attention: nn.Module, config: Any) -> int | None:
    """The window of a layer; Mistral and Phi-3 keep it in the configuration, the others on the layer."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # pyright: ignore[reportReturnType]
    return getattr(config, "sliding_window", None)


def full_attention_indices(model: nn.Module, *, on_sliding: OnSliding = "skip") -> list[int]:
    """Numbers of the layers with full (not sliding-window) attention.

    Args:
        model: a supported model.
        on_sliding: ``"skip"`` leaves sliding-window layers out, ``"refuse"`` raises when there are any.

    Raises:
        UnsupportedModelError: unsupported model, only sliding layers, or sliding layers with ``"refuse"``.
    """
    check_choice("on_sliding", on_sliding, ("skip", "refuse"))
    modules = attention_modules(model)
    full = [i for i, attention in enumerate(modules) if attention_facts(attention).sliding_window is None]
    if len(full) == len(modules):
        return full
    if on_sliding == "refuse":
        reason = f"{len(modules) - len(full)} of {len(modules)} layers use sliding-window attention and on_sliding is 'refuse'"
        raise UnsupportedModelError.of(model, SUPPORTED, reason=reason)
    if not full:
        reason = "every layer uses sliding-window attention, whose cache is bounded already"
        raise UnsupportedModelError.of(model, SUPPORTED, reason=reason)
    return full


def query_source(attention: nn.Module) -> nn.Module:
    """The linear layer whose output holds the queries: hook it to get them without a second projection."""
    kind = family(attention)
    if kind is None:
        raise UnsupportedModelError.of(attention, sorted(FAMILIES))
    return attention.qkv_proj if kind.fused else attention.q_proj  # pyright: ignore[reportReturnType]


def queries_from(attention: nn.Module, projected: Tensor, position_embeddings: PositionEmbeddings) -> Tensor:
    """Rotated queries [B,Hq,T,d] from the output [B,T,.] of `query_source`."""
    facts = attention_facts(attention)
    flat = projected[..., : facts.query_heads * facts.head_size]
    heads = flat.unflatten(-1, (facts.query_heads, facts.head_size))
    return rotate(_normed(attention, "q_norm", heads).transpose(1, 2), position_embeddings)


def queries_keys(attention: nn.Module, hidden_states: Tensor, position_embeddings: PositionEmbeddings) -> tuple[Tensor, Tensor]:
    """Queries [B,Hq,T,d] and keys [B,Hkv,T,d] as the layer itself makes them (normed, rotated; before any cache).

    Args:
        attention: the ``self_attn`` of a supported decoder layer.
        hidden_states: [B,T,D], its input (after the input norm).
        position_embeddings: the (cos, sin) that the layer was called with; multimodal rotation is already folded in.
    """
    facts = attention_facts(attention)
    projected = query_source(attention)(hidden_states)
    queries = queries_from(attention, projected, position_embeddings)
    kind = family(attention)
    if kind is not None and kind.fused:
        start = facts.query_heads * facts.head_size
        flat = projected[..., start : start + facts.kv_heads * facts.head_size]
    else:
        flat = attention.k_proj(hidden_states)  # pyright: ignore[reportCallIssue]
    heads = flat.unflatten(-1, (facts.kv_heads, facts.head_size))
    return queries, rotate(_normed(attention, "k_norm", heads).transpose(1, 2), position_embeddings)


def _normed(attention: nn.Module, name: str, heads: Tensor) -> Tensor:
    kind = family(attention)
    norm: Callable[[Tensor], Tensor] = getattr(attention, name) if kind is not None and kind.normed else _same
    return norm(heads)


def _same(x: Tensor) -> Tensor:
    return x


def rotate(x: Tensor, position_embeddings: PositionEmbeddings) -> Tensor:
    """Rotary embedding of x [B,H,T,d] by (cos, sin) [B or 1,T,r]; channels from r on pass unrotated (partial rotation)."""
    cos, sin = (part.unsqueeze(1) for part in position_embeddings)
    size = cos.shape[-1]
    turning, passing = x[..., :size], x[..., size:]
    half = torch.cat((-turning[..., size // 2 :], turning[..., : size // 2]), dim=-1)
    turned = turning * cos + half * sin
    return turned if passing.shape[-1] == 0 else torch.cat((turned, passing), dim=-1)
