"""Files of ours: weights as safetensors, the rest as JSON or text, never half of either."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_checkpoint(folder: str | Path, module: nn.Module, described: dict[str, Any], *, without: str = "") -> None:
    """Write the weights of `module` and `described` to `folder`; those of the child `without` are saved by itself.

    Each file is written beside its final place and then moved there, so that an interrupted save leaves the earlier one.
    """
    path = Path(folder)
    state = module.state_dict()
    if without:
        state = {name: x for name, x in state.items() if not name.startswith(f"{without}.")}
    # first, since what cannot be written leaves both files as they are
    text = json.dumps(described, indent=2, sort_keys=True, default=_plain)
    write_tensors(path / WEIGHTS, state, {"format": "pt"})
    write_text(path / CONFIG, text)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written as JSON")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file; an interruption leaves what was there."""
    kept = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
    with _beside(path) as name:
        save_file(kept, name, metadata=metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is damaged.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; its tensors are not read.

    Raises:
        ValueError: the file is damaged.
    """
    with _opened(path) as file:
        return file.metadata() or {}


def write_text(path: Path, text: str) -> None:
    """Write a text file, on the disk when this returns; an interruption leaves what was there."""
    with _beside(path) as name, name.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file ({error}); remove it") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name of its own in the folder of `path`, moved to `path` when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
