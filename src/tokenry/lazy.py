"""Lazy exports for packages: a name is imported when it is first asked for, and a typo is answered with the nearest names."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'x' or 'y'?``, or nothing when no known name is near."""
    exact: dict[str, str] = {}
    for candidate in sorted(known, key=lambda k: difflib.SequenceMatcher(None, name, k).ratio()):
        exact[candidate.lower()] = candidate  # of names that differ in case only, the nearer one stays
    near = difflib.get_close_matches(name.lower(), exact, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(exact[n]) for n in near)}?" if near else ""


def lazy_exports(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build a package's ``__getattr__`` and ``__dir__`` from {public name: module}; a submodule maps to itself."""

    def __getattr__(name: str) -> Any:
        target = exports.get(name)
        if target is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{suggest(name, exports)}")
        module = importlib.import_module(target)
        return module if target == f"{package}.{name}" else getattr(module, name)

    def __dir__() -> list[str]:
        return sorted(exports)

    return __getattr__, __dir__
