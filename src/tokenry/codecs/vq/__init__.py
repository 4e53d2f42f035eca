"""Eight vector quantizers behind one protocol (Discrete Tokenization for Multimodal LLMs, arXiv 2507.22920)."""

from __future__ import annotations

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "Quantized": "tokenry.codecs.vq.base",
    "Quantizer": "tokenry.codecs.vq.base",
    "CodebookStats": "tokenry.core.codebooks.stats",
    "usage": "tokenry.core.codebooks.stats",
    "soft_perplexity": "tokenry.core.codebooks.stats",
    "annealed_temperature": "tokenry.core.codebooks.estimators",
    "VectorQuantizer": "tokenry.codecs.vq.single",
    "ResidualVQ": "tokenry.codecs.vq.residual",
    "ProductVQ": "tokenry.codecs.vq.product",
    "AdditiveVQ": "tokenry.codecs.vq.additive",
    "SimVQ": "tokenry.codecs.vq.simvq",
    "FSQ": "tokenry.codecs.vq.scalar",
    "LFQ": "tokenry.codecs.vq.binary",
    "BSQ": "tokenry.codecs.vq.binary",
    "CodeTokens": "tokenry.codecs.vq.code_tokens",
    "from_host": "tokenry.codecs.vq.hosted",
    "to_host": "tokenry.codecs.vq.hosted",
    "GraphAnchorTokenizer": "tokenry.codecs.vq.graph_anchors",
    "NodeHashEmbedding": "tokenry.codecs.vq.graph_embedding",
    "ReservedNodeEmbedding": "tokenry.codecs.vq.graph_reserved",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
