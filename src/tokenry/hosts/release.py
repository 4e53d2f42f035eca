"""The transformers release underneath: which releases are tested, and what this one calls the key/value cache.

transformers 5.24 renamed the cache in every forward and every output from ``past_key_values`` (``cache_params`` in state-space
models) to ``cache``. This is the only file that knows these names or compares versions.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

import transformers
from packaging.version import Version
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from tokenry.errors import UnsupportedModelError, UntestedReleaseWarning

LOWEST = "5.21.0"
"""The oldest release that the tests pass on, and the floor of the requirement."""
NEWEST = "5.24.0"
"""The release that the tests are pinned to."""
INSTALLED: str = transformers.__version__
CHUNKS_KEEP_PICTURES: bool = Version(INSTALLED).release >= (5, 24)
"""Whether ``prefill_chunk_size`` gives the chunks of a prompt their pictures: 5.21 does not, 5.24 does."""

_NAMES = ("cache", "past_key_values", "cache_params")
_OUTPUT = {field.name for field in fields(BaseModelOutputWithPast)}
CACHE = next(name for name in _NAMES if name in _OUTPUT)
"""What this release calls the cache, as an argument of ``forward`` and as a field of its output."""

_Method = TypeVar("_Method", bound=Callable[..., Any])
_warned = False


def release() -> str:
    """The installed release beside the tested range, for messages: ``transformers 5.24.0 (tested with 5.20.0 to 5.24.0)``."""
    return f"transformers {INSTALLED} (tested with {LOWEST} to {NEWEST})"


def is_newer() -> bool:
    """True if the installed release is of a later minor version than any tested one."""
    return Version(INSTALLED).release[:2] > Version(NEWEST).release[:2]


def warn_if_newer() -> None:
    """Say once per process that an attachment works on an untested release."""
    global _warned
    if is_newer() and not _warned:
        _warned = True
        warnings.warn(f"{release()}: attachments may miss what changed since", UntestedReleaseWarning, stacklevel=3)


def as_argument(cache: Any) -> dict[str, Any]:
    """``model(ids, **as_argument(cache))`` hands `cache` to a forward of any release."""
    return {CACHE: cache}


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """The cache among the named arguments of a forward call; None if there is none."""
    return next((arguments[name] for name in _NAMES if arguments.get(name) is not None), None)


def cache_of(output: Any) -> Any:
    """The cache of a model's output; None if it has none."""
    return getattr(output, CACHE, None)


def check_takes_cache(module: nn.Module) -> None:
    """Refuse a module whose forward takes no cache under a name known here, before anything is attached to it.

    Raises:
        UnsupportedModelError: the names differ; the message holds the release.
    """
    parameters = inspect.signature(module.forward).parameters
    if not any(name in parameters for name in _NAMES):
        raise UnsupportedModelError(
            f"{type(module).__name__}.forward takes no cache named {', '.join(_NAMES)}; this is {release()}"
        )


def takes_cache(method: _Method) -> _Method:
    """Let a method with a parameter `cache` be called with the name of any release.

    ``generate`` looks for the name in the signature, which therefore shows the one of the installed release.

    Raises:
        TypeError: (when called) the cache is given twice.
    """

    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [name for name in _NAMES if name in kwargs]
        if len(given) > 1:
            raise TypeError(f"{given[0]} and {given[1]} are one argument: give the cache once")
        if given:
            kwargs["cache"] = kwargs.pop(given[0])
        return method(*args, **kwargs)

    shown = inspect.signature(method)
    renamed = [p.replace(name=CACHE) if p.name == "cache" else p for p in shown.parameters.values()]
    call.__signature__ = shown.replace(parameters=renamed)  # pyright: ignore[reportAttributeAccessIssue]
    return call  # pyright: ignore[reportReturnType]
