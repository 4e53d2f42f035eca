"""The exceptions of Tokenry that are not plain ``ValueError`` or ``TypeError``, and lazy optional imports."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from types import ModuleType

OK, CLAIM_FAILED, BAD_INPUT, MISSING, DAMAGED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Exit codes of the command line."""
ADD_A_FAMILY = "docs/add-a-family.md"
"""The page for whoever wants a model class to be supported."""


class UnsupportedModelError(TypeError):
    """The given model (or cache, or layer) is not one that this function knows how to work on."""

    @classmethod
    def of(cls, model: object, supported: Sequence[str], *, reason: str = "", guide: str = "") -> UnsupportedModelError:
        """Build the error that names the class of `model` and lists the supported class names.

        Without a `reason` it also names the nearest of them, and `guide`, the page that says how to add one.
        """
        name = type(model).__name__
        hints = [reason] if reason else _nearest(name, supported)
        if guide and not reason:
            hints.append(f"to add it: {guide}")
        detail = f" ({'; '.join(hints)})" if hints else ""
        return cls(f"{name} is not supported{detail}; supported: {', '.join(supported)}")


_TASK = re.compile(r"(For[A-Z]\w+|LMHeadModel|Model)$")


def _nearest(name: str, supported: Sequence[str]) -> list[str]:
    """A hint at the supported class of the nearest name (without its task), or at the one around it."""
    families = {_TASK.sub("", each): each for each in reversed(supported)}
    family = _TASK.sub("", name)
    if family in families and name.endswith("Model"):
        return [f"attach to the {families[family]} around it"]
    near = [families[each] for each in get_close_matches(family, families, n=1)] or get_close_matches(name, supported, n=1)
    return [f"the nearest that is: {each}" for each in near]


class MissingDependencyError(ImportError):
    """An optional package is needed and not installed; the message holds the command that adds it."""


class AssetMissingError(RuntimeError):
    """A model or data set is not on this machine and cannot be fetched now; the message holds the command that gets it."""


class AssetDamagedError(RuntimeError):
    """A cached or downloaded asset does not match its recorded size or checksum."""


class UntestedReleaseWarning(UserWarning):
    """The installed transformers is newer than every release that the tests ran on."""


class NotInForceWarning(UserWarning):
    """A model ran inside a `with` block, and nothing of what was attached to it was reached."""


class ResultFileError(ValueError):
    """A result file is truncated, tampered with or of another schema; the message names the file and the defect."""


def optional(module: str, extra: str) -> ModuleType:
    """Import `module` now, or raise `MissingDependencyError` naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed here and could not be imported ({error}); run: pip install 'tokenry[{extra}]'"
        ) from error
