"""Writes src/tokenry/lab/sources/weight_places.json: where the numbers of two old torch files stand.

For a new version of such a package only: the library itself never unpickles a file. The files are those of the local
cache (`tokenry assets get efficientnet resemblyzer`).
"""

import hashlib
import json

import torch

from tokenry.lab.assets.folders import fetch
from tokenry.lab.sources.audio.speaker_encoder import SpeakerEncoder
from tokenry.lab.sources.cnn import EfficientNetLite0
from tokenry.lab.sources.raw_weights import PLACES


def row(name, pattern, model, part=None, channels_last=False):
    """Place of every weight of `model` in the file; a network without `part` has its weights in the same order."""
    path = next(fetch(name).glob(f"**/{pattern}"))
    data, state = path.read_bytes(), torch.load(path, map_location="cpu", weights_only=True)
    own = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    theirs = [state[part][key] for key in own] if part else [value for value in state.values() if value.is_floating_point()]
    starts = []
    for (key, expected), value in zip(own.items(), theirs, strict=True):
        assert expected.shape == value.shape, f"{key} has shape {list(expected.shape)}, the file {list(value.shape)}"
        if channels_last and value.dim() > 1:
            value = value.T if value.dim() == 2 else value.permute(2, 3, 1, 0)
        raw = value.contiguous().numpy().tobytes()
        assert data.count(raw) == 1, f"{key} does not stand once in {path.name}"
        starts.append(data.index(raw))
    digest = hashlib.sha256(data).hexdigest()
    return {"file": path.name, "sha256": digest, "channels_last": channels_last, "starts": starts}


found = {
    "efficientnet": row("efficientnet", "*.pth", EfficientNetLite0(), channels_last=True),
    "resemblyzer": row("resemblyzer", "pretrained.pt", SpeakerEncoder(), part="model_state"),
}
lines = ",\n".join(f'"{name}": {json.dumps(values, separators=(",", ":"))}' for name, values in found.items())
PLACES.write_text("{\n" + lines + "\n}\n")
