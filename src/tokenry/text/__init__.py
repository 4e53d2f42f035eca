"""The text wing: exact byte-level language models, tokenizers that can be audited, trained and compared."""

from __future__ import annotations

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "ByteLM": "tokenry.text.byteprobs",
    "ByteEnsemble": "tokenry.text.byteprobs",
    "TokenizerAudit": "tokenry.text.audit",
    "WordPoolForCausalLM": "tokenry.text.wordpool",
    "LexinvariantForCausalLM": "tokenry.text.lexinvariant",
    "byteprobs": "tokenry.text.byteprobs",
    "premium": "tokenry.text.premium",
    "kl3m": "tokenry.text.kl3m",
    "consistency": "tokenry.text.consistency",
    "wordpool": "tokenry.text.wordpool",
    "lexinvariant": "tokenry.text.lexinvariant",
    "audit": "tokenry.text.audit",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
