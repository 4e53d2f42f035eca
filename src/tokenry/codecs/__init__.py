"""The codecs wing: discrete and continuous tokens for signals, from vector quantizers to whole codecs."""

from __future__ import annotations

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "Quantized": "tokenry.codecs.vq",
    "Quantizer": "tokenry.codecs.vq",
    "CodebookStats": "tokenry.codecs.vq",
    "usage": "tokenry.codecs.vq",
    "VectorQuantizer": "tokenry.codecs.vq",
    "ResidualVQ": "tokenry.codecs.vq",
    "ProductVQ": "tokenry.codecs.vq",
    "AdditiveVQ": "tokenry.codecs.vq",
    "SimVQ": "tokenry.codecs.vq",
    "FSQ": "tokenry.codecs.vq",
    "LFQ": "tokenry.codecs.vq",
    "BSQ": "tokenry.codecs.vq",
    "CodeTokens": "tokenry.codecs.vq",
    "GraphAnchorTokenizer": "tokenry.codecs.vq",
    "audio": "tokenry.codecs.audio",
    "vq": "tokenry.codecs.vq",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
