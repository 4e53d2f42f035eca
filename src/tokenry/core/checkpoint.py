"""Files of ours: weights as safetensors, the rest as JSON or text, never half of either."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_checkpoint(folder: str | Path, module: nn.Module, described: dict[str, Any], *, without: str = "") -> None:
    """Write the weights of `module` and `described` to `folder`; those of the child `without` are saved by itself.

    Each file is written beside its final place and then moved there, so that an interrupted save leaves the earlier one.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = module.state_dict()
    if without:
        state = {name: x for name, x in state.items() if not name.startswith(f"{without}.")}
    write_tensors(path / WEIGHTS, state, {"format": "pt"})
    write_text(path / CONFIG, json.dumps(described, indent=2, sort_keys=True))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside its place and move it there."""
    kept = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    partial = path.with_name(f"{path.name}.tmp")
    save_file(kept, partial, metadata=metadata)
    os.replace(partial, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place and move it there."""
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
