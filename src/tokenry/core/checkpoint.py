"""Writing a module to a folder: weights as safetensors, the rest as JSON, never half of either."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

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
    state = {name: x.detach().cpu().contiguous().clone() for name, x in state.items()}
    save_file(state, path / f"{WEIGHTS}.tmp", metadata={"format": "pt"})
    (path / f"{CONFIG}.tmp").write_text(json.dumps(described, indent=2, sort_keys=True), encoding="utf-8")
    for name in (WEIGHTS, CONFIG):
        os.replace(path / f"{name}.tmp", path / name)
