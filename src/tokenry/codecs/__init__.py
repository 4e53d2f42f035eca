"""The codecs wing: discrete and continuous tokens for signals, from vector quantizers to whole codecs."""

from __future__ import annotations

from tokenry.catalog import wing_exports
from tokenry.lazy import lazy_exports

_SHARED: dict[str, tuple[str, ...]] = {}
_EXPORTS = wing_exports("codecs", _SHARED)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
