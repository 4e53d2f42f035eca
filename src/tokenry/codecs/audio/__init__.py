"""Discrete audio tokens: one protocol over audio codecs, their taxonomy, metrics, token models, and a small codec to train."""

from __future__ import annotations

from typing import Any

from tokenry.lazy import lazy_exports

_HERE = "tokenry.codecs.audio"
_EXPORTS = {
    "AudioCodec": f"{_HERE}.codec",
    "AudioCodes": f"{_HERE}.codes",
    "bitrate": f"{_HERE}.codec",
    "CodecLayout": "tokenry.hosts.audio.layout",
    "HostedCodec": f"{_HERE}.hosted",
    "load_audio_codec": f"{_HERE}.hosted",
    "CodeStream": f"{_HERE}.streaming",
    "encode_in_chunks": f"{_HERE}.codec",
    "AudioTokenizer": f"{_HERE}.taxonomy",
    "audio_tokenizers": f"{_HERE}.taxonomy",
    "BookEmbedding": f"{_HERE}.embedding",
    "BookAttention": f"{_HERE}.embedding",
    "deduplicate": f"{_HERE}.delay",
    "reduplicate": f"{_HERE}.delay",
    "delay_books": f"{_HERE}.delay",
    "undelay_books": f"{_HERE}.delay",
    "flatten_books": f"{_HERE}.delay",
    "unflatten_books": f"{_HERE}.delay",
    "TokenProbe": f"{_HERE}.probes",
    "ProbeTraining": f"{_HERE}.probes",
    "equal_error_rate": f"{_HERE}.probes",
    "train_probe": f"{_HERE}.probes",
    "probe_accuracy": f"{_HERE}.probes",
    "LMTraining": f"{_HERE}.token_lm",
    "TokenLM": f"{_HERE}.token_lm",
    "train_token_lm": f"{_HERE}.token_lm",
    "bits_per_frame": f"{_HERE}.token_lm",
    "ConvAutoencoder": f"{_HERE}.small_codec",
    "ConvCodec": f"{_HERE}.small_codec",
    "ConvCodecConfig": f"{_HERE}.small_codec",
    "CodecTraining": f"{_HERE}.training",
    "train_codec": f"{_HERE}.training",
    "start_quantizer": f"{_HERE}.training",
    "posthoc_kmeans": f"{_HERE}.training",
    "ci_sdr": f"{_HERE}.metrics",
    "log_mel": f"{_HERE}.metrics",
    "mel_distance": f"{_HERE}.metrics",
    "multi_resolution_stft_distance": f"{_HERE}.metrics",
    "pesq": f"{_HERE}.metrics",
    "resample": f"{_HERE}.metrics",
    "sdr": f"{_HERE}.metrics",
    "si_sdr": f"{_HERE}.metrics",
    "si_snr": f"{_HERE}.metrics",
    "snr": f"{_HERE}.metrics",
    "stoi": f"{_HERE}.metrics",
    "metrics": f"{_HERE}.metrics",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of audio codecs is checked on: a small codec, causal and looking ahead, over two quantizers."""
    import torch

    from tokenry.codecs.audio.small_codec import ConvCodec, ConvCodecConfig
    from tokenry.codecs.audio.training import start_quantizer
    from tokenry.codecs.vq import FSQ, ResidualVQ

    found = {}
    for causal in (True, False):
        sizes = ConvCodecConfig(sample_rate=600, strides=(3, 5), channels=8, max_channels=16, dim=16, causal=causal)
        for name, quantizer in (("rvq", ResidualVQ(16, 3, 8)), ("fsq", FSQ((5, 5, 5), dim=16))):
            codec = ConvCodec(sizes, quantizer)
            start_quantizer(codec, 0.2 * torch.randn(40, 150))
            found[f"{name}{'' if causal else ' looking ahead'}"] = codec.eval()
    return found
