"""Contract checks that a system can run against itself, one per kind of system, and tiny models to run them on."""

from __future__ import annotations

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "AUDIO_CODEC_CHECKS": "tokenry.testing.audio_codecs",
    "check_audio_codec": "tokenry.testing.audio_codecs",
    "PRUNER_CHECKS": "tokenry.testing.pruners",
    "check_pruner": "tokenry.testing.pruners",
    "check_quantizer": "tokenry.testing.quantizers",
    "check_cache_method": "tokenry.testing.cache_methods",
    "check_contract": "tokenry.testing.contract",
    "contract_instances": "tokenry.testing.contract",
    "check_patch_pruner": "tokenry.testing.patch_pruners",
    "VISUAL_PRUNER_CHECKS": "tokenry.testing.visual_pruners",
    "check_visual_pruner": "tokenry.testing.visual_pruners",
    "check_probe": "tokenry.testing.probes",
    "check_byte_model": "tokenry.testing.byte_models",
    "check_language_model": "tokenry.testing.language_models",
    "check_tokenizer": "tokenry.testing.tokenizers",
    "llava_inputs": "tokenry.testing.zoo",
    "onevision_inputs": "tokenry.testing.zoo",
    "qwen_inputs": "tokenry.testing.zoo",
    "siglip2_inputs": "tokenry.testing.zoo",
    "tiny": "tokenry.testing.zoo",
    "tiny_llava": "tokenry.testing.zoo",
    "tiny_onevision": "tokenry.testing.zoo",
    "tiny_qwen": "tokenry.testing.zoo",
    "tiny_vlm": "tokenry.testing.zoo",
    "vlm_inputs": "tokenry.testing.zoo",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
