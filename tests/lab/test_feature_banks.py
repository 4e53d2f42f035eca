"""Feature banks: draws without overlap, the mixture's structure, the network's shape, sentences that are sentences."""

import pytest
import torch

from tokenry.core.seeding import seeded
from tokenry.lab.beds.signals.feature_banks import _sentences_of, _windows, feature_bank, gaussian_mixture
from tokenry.lab.sources.cnn import EfficientNetLite0


def test_a_bank_is_drawn_by_its_seed_without_overlap():
    for name, dim in (("digits", 64), ("mixture", 32), ("isotropic", 32)):
        bank, again, other = (feature_bank(name, 300, 200, seed=seed) for seed in (0, 0, 1))
        assert bank.dim == dim
        assert bank.train.shape == (300, dim)
        assert torch.equal(bank.train, again.train)
        assert torch.equal(bank.test, again.test)
        assert not torch.equal(bank.train, other.train)
        assert bank.train.dtype == torch.float32
    bank = feature_bank("mixture", 300, 200)
    assert float(torch.cdist(bank.train, bank.test).min()) > 0


def test_the_mixture_is_clustered_and_its_coordinates_depend_on_each_other():
    x, control = gaussian_mixture(4000, seed=3), gaussian_mixture(4000, isotropic=True, seed=3)
    off = [torch.corrcoef(y.T).fill_diagonal_(0).abs().mean() for y in (x, control)]
    assert float(off[0]) > 5 * float(off[1])
    distances = torch.pdist(x[:400])
    assert float(distances.min()) < 0.2 * float(distances.median())


def test_bad_banks():
    with pytest.raises(ValueError, match="name must be one of 'sentences'"):
        feature_bank("audio", 1, 1)
    with pytest.raises(ValueError, match="train \\+ test must be <= 1797"):
        feature_bank("digits", 1700, 100)
    with pytest.raises(ValueError, match="test must be >= 1"):
        feature_bank("digits", 100, 0)


def test_sentences_are_prose_of_five_to_thirty_words():
    text = (
        "Too short. This sentence has quite enough words\nto be kept. 1 2 3 4 5 6 7 8 9 10.\n\nA heading\n\n"
        + "word " * 40
        + "."
    )
    assert _sentences_of(text) == ["This sentence has quite enough words to be kept."]


def test_windows_cover_a_picture():
    picture = torch.arange(300 * 500 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(300, 500, 3)
    assert _windows(picture, 224).shape == (2, 224, 224, 3)  # 224 x 373
    assert _windows(picture, 448).shape == (2 * 4, 224, 224, 3)  # 448 x 747


def test_the_network_has_the_published_shape():
    with seeded(0):
        model = EfficientNetLite0().eval()
    images = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model(images).shape == (1, 1000)
        assert model.features(images).shape == (1, 1280, 2, 3)
        strides = [model.features(images, stage).shape[1:] for stage in range(7)]
    assert [tuple(s) for s in strides] == [(16, 32, 48), (24, 16, 24), (40, 8, 12), (80, 4, 6), (112, 4, 6), (192, 2, 3),
                                           (320, 2, 3)]  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    with pytest.raises(TypeError, match="uint8"):
        model.features(images.float())


@pytest.mark.slow
def test_the_trained_network_knows_a_cat_and_a_coffee():
    from torch.nn import functional as F

    from tokenry.lab.sources.cnn import efficientnet_lite0, photographs

    model, pictures = efficientnet_lite0(), photographs()
    assert len(pictures) == 10
    found = []
    for picture in (pictures[3], pictures[4]):
        side = min(picture.shape[:2])
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        square = picture[top : top + side, left : left + side].movedim(-1, 0)[None].float()
        small = F.interpolate(square, size=(224, 224), mode="bilinear", antialias=True).round().clamp(0, 255)
        found.append(int(model(small.to(torch.uint8).movedim(1, -1)).argmax()))
    assert found == [285, 967]  # Egyptian cat, espresso


@pytest.mark.slow
def test_real_banks_have_their_sizes():
    assert feature_bank("photos", 8000, 1000).dim == 112
    bank = feature_bank("sentences", 1000, 500)
    assert bank.dim == 384
    assert torch.allclose(bank.train.norm(dim=1), torch.ones(1000), atol=2e-3)
