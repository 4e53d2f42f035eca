"""Weights at known places of a pinned file: copied, never unpickled, and the same as the published reader finds."""

import hashlib
import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from tokenry.errors import AssetDamagedError
from tokenry.lab.assets.folders import fetch
from tokenry.lab.sources import raw_weights
from tokenry.lab.sources.audio.speaker_encoder import SpeakerEncoder
from tokenry.lab.sources.audio.speech import speaker_encoder
from tokenry.lab.sources.cnn import EfficientNetLite0, efficientnet_lite0
from tokenry.lab.sources.raw_weights import PLACES, load_raw_weights, weights_at


def network():
    return nn.Sequential(nn.Conv2d(2, 3, (2, 4)), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(5, 7))


def laid_out(model, channels_last):
    """The weights as bytes with gaps between them, and where each begins."""
    data, starts = b"", []
    for value in model.state_dict().values():
        if not value.is_floating_point():
            continue
        if channels_last and value.dim() > 1:
            value = value.T if value.dim() == 2 else value.permute(2, 3, 1, 0)
        data += b"gap" * (1 + len(starts))
        starts.append(len(data))
        data += value.contiguous().numpy().tobytes()
    return data, starts


@pytest.mark.parametrize("channels_last", [False, True])
def test_weights_are_copied_from_their_places(channels_last):
    model = network()
    data, starts = laid_out(model, channels_last)
    found = weights_at(data, starts, network(), channels_last=channels_last)
    wanted = {name: value for name, value in model.state_dict().items() if name != "1.num_batches_tracked"}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.raises(ValueError, match="shorter"):
        weights_at(data, starts[:-1], network(), channels_last=channels_last)


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    data, starts = laid_out(network(), False)
    row = {"file": "old.pt", "sha256": hashlib.sha256(data).hexdigest(), "channels_last": False, "starts": starts}
    places = tmp_path / "places.json"
    places.write_text(json.dumps({"old": row}))
    monkeypatch.setattr(raw_weights, "PLACES", places)
    monkeypatch.setattr(raw_weights, "fetch", lambda name, offline: tmp_path)
    with pytest.raises(AssetDamagedError, match=r"asset 'old' is damaged: its old.pt .* tokenry assets get old --repair"):
        load_raw_weights("old", network())
    (tmp_path / "old.pt").write_bytes(data)
    assert not load_raw_weights("old", network()).training
    (tmp_path / "old.pt").write_bytes(data + b"x")
    with pytest.raises(AssetDamagedError, match="is not the published one"):
        load_raw_weights("old", network())


def test_every_place_has_its_weight():
    rows = json.loads(PLACES.read_text())
    for name, model in (("efficientnet", EfficientNetLite0()), ("resemblyzer", SpeakerEncoder())):
        weights = [value for value in model.state_dict().values() if value.is_floating_point()]
        spans = sorted(zip(rows[name]["starts"], [4 * value.numel() for value in weights], strict=True))
        assert all(start + size <= after for (start, size), (after, _) in pairwise(spans))


@pytest.mark.slow
def test_they_are_the_numbers_that_torch_reads():
    pickled = torch.load(next(fetch("resemblyzer").glob("**/*.pt")), map_location="cpu", weights_only=True)["model_state"]
    assert all(torch.equal(pickled[name], value) for name, value in speaker_encoder().state_dict().items())
    pickled = torch.load(next(fetch("efficientnet").glob("**/*.pth")), map_location="cpu", weights_only=True)
    found = efficientnet_lite0().state_dict()
    assert all(torch.equal(*pair) for pair in zip(pickled.values(), found.values(), strict=True))
