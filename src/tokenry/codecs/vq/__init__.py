"""Eight vector quantizers behind one protocol (Discrete Tokenization for Multimodal LLMs, arXiv 2507.22920)."""

from __future__ import annotations

from typing import Any

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
    "ResidualStack": "tokenry.codecs.vq.stacks.residual",
    "residual_fsq": "tokenry.codecs.vq.stacks.residual",
    "residual_lfq": "tokenry.codecs.vq.stacks.residual",
    "Grouped": "tokenry.codecs.vq.stacks.blocks",
    "SharedHeads": "tokenry.codecs.vq.stacks.blocks",
    "QINCo": "tokenry.codecs.vq.stacks.implicit",
    "CodeTokens": "tokenry.codecs.vq.code_tokens",
    "from_host": "tokenry.codecs.vq.hosted",
    "to_host": "tokenry.codecs.vq.hosted",
    "GraphAnchorTokenizer": "tokenry.codecs.vq.graph.anchors",
    "NodeHashEmbedding": "tokenry.codecs.vq.graph.embedding",
    "ReservedNodeEmbedding": "tokenry.codecs.vq.graph.reserved",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of the wing is checked on: every quantizer with each of its rules."""
    from tokenry import codecs

    return {
        "vq": codecs.VectorQuantizer(8, 16),
        "vq cosine": codecs.VectorQuantizer(8, 16, distance="cosine", code_dim=4, reset_threshold=0.5),
        "vq gradient": codecs.VectorQuantizer(8, 16, ema=False, kmeans_init=True, entropy_weight=0.1, orthogonality=1.0),
        "vq of DAC": codecs.VectorQuantizer(8, 16, distance="cosine", ema=False, code_dim=4, emit="row"),
        "vq of Mimi": codecs.VectorQuantizer(8, 16, decay=0.99, smoothing="clamp", reset_threshold=0.5),
        "vq rotation": codecs.VectorQuantizer(8, 16, estimator="rotation"),
        "vq index backprop": codecs.VectorQuantizer(8, 16, estimator="index_backprop", ema=False),
        "vq diveq": codecs.VectorQuantizer(8, 16, estimator="diveq", ema=False, reset_threshold=0.5),
        "vq drawn": codecs.VectorQuantizer(8, 16, sample_temperature=0.5),
        "vq some entropies": codecs.VectorQuantizer(8, 16, ema=False, entropy_weight=0.1, entropy_rows=50),
        "rvq": codecs.ResidualVQ(8, 3, 16),
        "rvq diveq": codecs.ResidualVQ(8, 3, 16, estimator="diveq", ema=False, code_dim=6),
        "rvq shared": codecs.ResidualVQ(8, 3, 16, shared=True, kmeans_init=True, reset_threshold=0.5),
        "rvq shared beam": codecs.ResidualVQ(8, 3, 16, shared=True, beam=4, ema=False),
        "rvq k-means reset": codecs.ResidualVQ(8, 3, 16, kmeans_init=True, reset_threshold=0.5),
        "rvq beam": codecs.ResidualVQ(8, 3, 16, beam=4, ema=False),
        "rvq cosine": codecs.ResidualVQ(8, 2, 16, distance="cosine"),
        "pq": codecs.ProductVQ(8, 4, 16),
        "pq rotation": codecs.ProductVQ(8, 2, 16, rotation=True, kmeans_init=True),
        "aq beam": codecs.AdditiveVQ(8, 3, 8, kmeans_init=True),
        "aq icm": codecs.AdditiveVQ(8, 3, 8, encoder="icm", restarts=1, reset_threshold=0.5),
        "aq exhaustive": codecs.AdditiveVQ(8, 2, 8, encoder="exhaustive"),
        "fsq": codecs.FSQ([8, 5, 5]),
        "fsq symmetric": codecs.FSQ([4, 2, 3], symmetric=True, dim=8),
        "lfq": codecs.LFQ(6, commitment=0.25),
        "lfq groups": codecs.LFQ(40, groups=5, dim=8),
        "bsq": codecs.BSQ(10),
        "bsq projected": codecs.BSQ(6, groups=3, dim=8, commitment=0.25),
        "simvq": codecs.SimVQ(8, 16),
        "simvq rotation": codecs.SimVQ(8, 16, estimator="rotation", frozen_dim=12),
    } | _stacks()


def _stacks() -> dict[str, Any]:
    """Quantizers made of quantizers."""
    from tokenry import codecs
    from tokenry.codecs.vq import residual_fsq, residual_lfq

    book = {"kmeans_init": True, "reset_threshold": 0.5}
    rvq = [codecs.ResidualVQ(4, 3, size, seed=size, **book) for size in (16, 8)]
    return {
        "rfsq": residual_fsq([5, 3, 2], 3, dim=8),
        "rlfq": residual_lfq(6, 3, commitment=0.25, quantizer_dropout=0.5, dropout_scope="sample"),
        "rsimvq": codecs.ResidualStack([codecs.SimVQ(8, 16, seed=m) for m in range(3)], gradient="once"),
        "residual of unequal levels": codecs.ResidualStack(
            [codecs.VectorQuantizer(8, 16, **book), codecs.FSQ([5, 5], dim=8), codecs.ProductVQ(8, 2, 8)], gradient="each"
        ),
        "residual of projected levels": codecs.ResidualStack(
            [codecs.VectorQuantizer(8, 16, distance="cosine", ema=False, code_dim=4, emit="row", seed=m) for m in range(2)]
        ),
        "grouped rvq": codecs.Grouped(rvq),
        "fsq books": codecs.Grouped([codecs.FSQ([5, 3]), codecs.FSQ([8, 5, 5])], dim=8),
        "lfq books": codecs.Grouped([codecs.LFQ(4) for _ in range(3)], dim=8, channels_first=False),
        "qinco": codecs.QINCo(8, 3, 16, kmeans_init=True),
        "qinco low rank": codecs.QINCo(8, 2, 16, code_dim=6, rank=2, hidden=5, blocks=1, estimator="rotation"),
        "heads of one vq": codecs.SharedHeads(codecs.VectorQuantizer(4, 16, **book), 2),
        "heads of one rvq": codecs.SharedHeads(codecs.ResidualVQ(3, 2, 16), 2, dim=8),
    }
