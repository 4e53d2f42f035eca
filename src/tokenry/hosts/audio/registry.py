"""Which host a codec of transformers has."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.audio.base import SUPPORTED, AudioHost
from tokenry.hosts.audio.dac import DacHost
from tokenry.hosts.audio.encodec import EncodecHost
from tokenry.hosts.audio.mimi import MimiHost


def host_of(model: nn.Module, *, domain: tuple[str, ...] = ()) -> AudioHost:
    """The host of a transformers codec.

    Raises:
        UnsupportedModelError: not one of EncodecModel, DacModel, MimiModel.
    """
    from transformers import DacModel, EncodecModel, MimiModel

    kinds: tuple[tuple[type, Callable[..., AudioHost]], ...] = (
        (EncodecModel, EncodecHost),
        (DacModel, DacHost),
        (MimiModel, MimiHost),
    )
    for kind, host in kinds:
        if isinstance(model, kind):
            return host(model, domain)
    raise UnsupportedModelError.of(model, SUPPORTED)
