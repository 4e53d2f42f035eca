"""The text wing: exact byte-level language models, tokenizers that can be audited, trained and compared."""

from __future__ import annotations

from tokenry.catalog import wing_exports
from tokenry.lazy import lazy_exports

_SHARED = {"tokenry.text.audit": ("TokenizerAudit",)}
_EXPORTS = wing_exports("text", _SHARED)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
