"""Weights of two packages that ship an old torch file: the numbers are copied from known places, nothing is unpickled.

Such a file is a pickle followed by the plain float32 numbers of every weight. Its SHA-256 is pinned, so the places are
constants; `tools/weight_places.py` in the repository found them once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tokenry.errors import AssetDamagedError
from tokenry.lab.assets.folders import fetch

PLACES = Path(__file__).with_name("weight_places.json")
_Network = TypeVar("_Network", bound=nn.Module)


def load_raw_weights(name: str, model: _Network, *, offline: bool | None = None) -> _Network:
    """The network with the weights of asset `name`, in evaluation mode.

    Raises:
        AssetMissingError: the asset is not here and cannot be fetched.
        AssetDamagedError: its file is not the pinned one.
    """
    row = json.loads(PLACES.read_text())[name]
    path = next(fetch(name, offline=offline).glob(f"**/{row['file']}"), None)
    data = b"" if path is None else path.read_bytes()
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise AssetDamagedError(
            f"asset {name!r} is damaged: its {row['file']} is not the published one; run: tokenry assets get {name} --repair"
        )
    model.load_state_dict(weights_at(data, row["starts"], model, channels_last=row["channels_last"]), strict=False)
    return model.eval()


def weights_at(data: bytes, starts: list[int], model: nn.Module, *, channels_last: bool) -> dict[str, Tensor]:
    """The float32 numbers at byte `starts` as the weights of `model` (its state in order, counters left out).

    `channels_last`: a matrix is stored as inputs, outputs and a kernel as height, width, inputs, outputs.
    """
    weights = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    found = {}
    for (name, own), start in zip(weights.items(), starts, strict=True):
        axes = range(own.dim())
        order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(own.dim(), tuple(axes)) if channels_last else tuple(axes)
        values = torch.from_numpy(np.frombuffer(data, "<f4", own.numel(), start).copy())
        found[name] = values.view([own.shape[order.index(axis)] for axis in axes]).permute(order).contiguous()
    return found
