"""The digit testbed, and the claims that run on it (smoke sizes)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.contracts import random_state_kept
from tokenry import AssetMissingError
from tokenry.lab.beds.pictures import birds
from tokenry.lab.beds.pictures.digit_vit import class_hits, digit_canvases, train_digit_vit
from tokenry.lab.claims.pruning.eet import CLAIM as EET_CLAIM
from tokenry.lab.claims.pruning.glsim import CLAIM as GLSIM_CLAIM


def quiet(message: str, fraction: float) -> None:
    assert 0.0 <= fraction <= 1.0


def test_canvases():
    train, test = digit_canvases(0)
    assert (len(train), len(test)) == (2600, 497)
    assert train.images.shape[1:] == (1, 24, 24)
    assert bool((test.boxes % 4 == 0).all())
    assert test.patches_inside().sum(dim=1).unique().tolist() == [9]
    again, other = digit_canvases.__wrapped__(0)[1], digit_canvases(1)[1]
    assert torch.equal(test.images, again.images)
    assert not torch.equal(test.images, other.images)
    # The digit is brighter than what surrounds it.
    inside = torch.nn.functional.avg_pool2d(test.images, 4).flatten(1)
    assert float(inside[test.patches_inside()].mean()) > float(inside[~test.patches_inside()].mean()) + 0.5


def test_training_is_deterministic_and_leaves_the_global_state_alone():
    with random_state_kept():
        models = [train_digit_vit(3, epochs=1, limit=64) for _ in range(2)]
    test = digit_canvases(3)[1].first(32)
    assert torch.equal(class_hits(models[0], test), class_hits(models[1], test))
    assert torch.equal(models[0].classifier.weight, models[1].classifier.weight)


@pytest.mark.parametrize("claim", [EET_CLAIM, GLSIM_CLAIM], ids=lambda c: c.system)
def test_claims_run_at_smoke_scale(claim):
    measured = claim.measure("smoke", 0, "cpu", quiet)
    for contrast in claim.contrasts:
        assert {contrast.better, contrast.worse} <= set(measured.arms)
    assert all(claim.settings(scale) for scale in ("smoke", "small", "paper"))


def test_birds_are_read_from_the_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_CUB", str(tmp_path))
    with pytest.raises(AssetMissingError, match="export TOKENRY_CUB="):
        birds.birds()
    (tmp_path / "images").mkdir()
    for number in (1, 2):
        pixels = np.full((40, 80, 3), 60 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    lines = {
        "images.txt": ["1 1.jpg", "2 2.jpg"],
        "image_class_labels.txt": ["1 1", "2 7"],
        "train_test_split.txt": ["1 1", "2 0"],
        "bounding_boxes.txt": ["1 0.0 0.0 40.0 40.0", "2 40.0 0.0 40.0 20.0"],
    }
    for name, rows in lines.items():
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    train, test = birds.birds()
    assert (len(train), len(test)) == (1, 1)
    image, label = test[0]
    assert image.shape == (3, 224, 224)
    assert int(label) == 6
    size = test.image(0)[1]
    assert test.inside(0, (2, 2), size).tolist() == [False, True, False, False]
