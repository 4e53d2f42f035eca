"""Saving modules built around a vision tower: weights as safetensors, everything else as JSON."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenry.core.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from tokenry.core.seeding import seeded
from tokenry.hosts.release import INSTALLED
from tokenry.hosts.vision.towers import describe

_FORMAT = 1


def save_vision_module(
    folder: str | Path, module: nn.Module, *, kind: str, backbone: nn.Module, settings: dict[str, Any]
) -> None:
    """Write `module` to `folder`: its weights, and what is needed to build it again (tower class and config, `settings`).

    An interrupted save leaves the earlier one.
    """
    config: Any = backbone.config
    described = {
        "format": _FORMAT,
        "kind": kind,
        "backbone_class": type(backbone).__name__,
        "backbone_config": config.to_dict(),
        "backbone_pooler": getattr(backbone, "pooler", None) is not None,
        "settings": settings,
    }
    write_checkpoint(folder, module, described)


def load_vision_module(folder: str | Path, *, kind: str) -> tuple[nn.Module, dict[str, Any], dict[str, Tensor]]:
    """Read what `save_vision_module` wrote: a tower with fresh weights, the settings, and the weights of the module.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another kind or of a newer format; the message names it.
    """
    path = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path / name} is missing: {folder} does not hold a saved {kind}")
    try:
        described = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        state = load_file(path / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG} is damaged: {error}") from error
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS} is damaged: {error}") from error
    if not isinstance(described, dict) or described.get("kind") != kind or described.get("format") != _FORMAT:
        raise ValueError(f"{path / CONFIG} does not describe a saved {kind} of format {_FORMAT}")
    return _build(described), described["settings"], state


def fill(module: nn.Module, state: dict[str, Tensor], folder: str | Path) -> None:
    """Load `state` into `module`, every weight and no other.

    Raises:
        ValueError: weights are missing, left over or of another shape.
    """
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{Path(folder) / WEIGHTS} does not fit its {CONFIG}: {error}") from error


def _build(described: dict[str, Any]) -> nn.Module:
    import transformers

    name = described["backbone_class"]
    cls: Any = getattr(transformers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"{CONFIG} names {name!r}, which is not a model class of transformers {INSTALLED}")
    config_class: Any = cls.config_class
    config = config_class.from_dict(described["backbone_config"])
    # Whether ViT, DeiT, BEiT and I-JEPA have a pooler is an argument, not part of their config.
    given = "add_pooling_layer" in signature(cls).parameters
    options = {"add_pooling_layer": described["backbone_pooler"]} if given else {}
    with seeded(0):  # first weights, which are loaded over
        backbone = cls(config, **options)
    describe(backbone)
    return backbone
