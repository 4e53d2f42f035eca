"""Every quantizer keeps the contract of the wing."""

import pytest

from tokenry import codecs
from tokenry.testing import check_quantizer

MAKERS = {
    "vq": lambda: codecs.VectorQuantizer(8, 16),
    "vq-cosine": lambda: codecs.VectorQuantizer(8, 16, distance="cosine", code_dim=4, reset_threshold=0.5),
    "vq-gradient": lambda: codecs.VectorQuantizer(8, 16, ema=False, kmeans_init=True, entropy_weight=0.1, orthogonality=1.0),
    "vq-dac": lambda: codecs.VectorQuantizer(8, 16, distance="cosine", ema=False, code_dim=4, emit="row"),
    "vq-mimi": lambda: codecs.VectorQuantizer(8, 16, decay=0.99, smoothing="clamp", reset_threshold=0.5),
    "vq-rotation": lambda: codecs.VectorQuantizer(8, 16, estimator="rotation"),
    "vq-index-backprop": lambda: codecs.VectorQuantizer(8, 16, estimator="index_backprop", ema=False),
    "rvq": lambda: codecs.ResidualVQ(8, 3, 16),
    "rvq-kmeans-reset": lambda: codecs.ResidualVQ(8, 3, 16, kmeans_init=True, reset_threshold=0.5),
    "rvq-beam": lambda: codecs.ResidualVQ(8, 3, 16, beam=4, ema=False),
    "rvq-cosine": lambda: codecs.ResidualVQ(8, 2, 16, distance="cosine"),
    "pq": lambda: codecs.ProductVQ(8, 4, 16),
    "pq-rotation": lambda: codecs.ProductVQ(8, 2, 16, rotation=True, kmeans_init=True),
    "aq-beam": lambda: codecs.AdditiveVQ(8, 3, 8, kmeans_init=True),
    "aq-icm": lambda: codecs.AdditiveVQ(8, 3, 8, encoder="icm", restarts=1, reset_threshold=0.5),
    "aq-exhaustive": lambda: codecs.AdditiveVQ(8, 2, 8, encoder="exhaustive"),
    "fsq": lambda: codecs.FSQ([8, 5, 5]),
    "fsq-symmetric": lambda: codecs.FSQ([4, 2, 3], symmetric=True, dim=8),
    "lfq": lambda: codecs.LFQ(6, commitment=0.25),
    "lfq-groups": lambda: codecs.LFQ(40, groups=5, dim=8),
    "bsq": lambda: codecs.BSQ(10),
    "bsq-projected": lambda: codecs.BSQ(6, groups=3, dim=8, commitment=0.25),
    "simvq": lambda: codecs.SimVQ(8, 16),
    "simvq-rotation": lambda: codecs.SimVQ(8, 16, estimator="rotation", frozen_dim=12),
}


@pytest.mark.parametrize("name", MAKERS)
def test_contract(name):
    check_quantizer(MAKERS[name])
