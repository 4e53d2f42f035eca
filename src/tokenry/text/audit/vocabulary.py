"""What a vocabulary wastes: ids that a corpus never uses, that no text can produce, that repeat each other."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np

from tokenry.text.audit.encoder import AuditEncoder

EXAMPLES = 12


@dataclass(frozen=True)
class VocabularyAudit:
    """A vocabulary as a whole.

    Attributes:
        size: ids in the vocabulary, added tokens included.
        added: added tokens (special or not); they are left out of everything below.
        used: ids that the audited text used.
        partial: ids that stand for part of a character; encoding cannot be tried on them.
        unreachable: ids that no encoding gives: encoding what the id stands for does not give the id back.
        unreachable_examples: some of them, as the vocabulary writes them.
        repeated: ids that equal an earlier one up to case, outer spaces and Unicode compatibility form.
        repeated_examples: some groups of such ids.
    """

    size: int
    added: int
    used: int
    partial: int
    unreachable: int
    unreachable_examples: tuple[str, ...]
    repeated: int
    repeated_examples: tuple[str, ...]

    @property
    def unused_share(self) -> float:
        """Share of the ids (added tokens left out) that the audited text did not use."""
        plain = self.size - self.added
        return 1.0 - self.used / plain if plain else 0.0


def audit_vocabulary(encoder: AuditEncoder, used: np.ndarray) -> VocabularyAudit:
    """Look at every id on its own; `used` bool [size] marks the ids that the audited text used."""
    backend = encoder.backend
    added = set(backend.get_added_tokens_decoder())
    names = {index: name for name, index in backend.get_vocab(with_added_tokens=True).items()}
    ids = [index for index in sorted(names) if index not in added]
    texts = encoder.decode([[index] for index in ids])
    whole = [(index, text) for index, text in zip(ids, texts, strict=True) if text and "\ufffd" not in text]
    again = encoder.encode([text for _, text in whole])
    missed = [index for (index, _), found in zip(whole, again, strict=True) if found != [index]]
    unreachable = [index for index in missed if not _after_something(encoder, names[index], index)]
    groups: dict[str, list[int]] = {}
    for index, text in whole:
        plain = unicodedata.normalize("NFKC", text).strip().casefold()
        if plain:
            groups.setdefault(plain, []).append(index)
    repeats = sorted((group for group in groups.values() if len(group) > 1), key=lambda group: (-len(group), group))
    mask = used.copy()
    mask[list(added)] = False
    return VocabularyAudit(
        size=len(names),
        added=len(added),
        used=int(mask.sum()),
        partial=len(ids) - len(whole),
        unreachable=len(unreachable),
        unreachable_examples=tuple(names[index] for index in unreachable[:EXAMPLES]),
        repeated=sum(len(group) - 1 for group in repeats),
        repeated_examples=tuple(" | ".join(names[index] for index in group[:8]) for group in repeats[:EXAMPLES]),
    )


def _after_something(encoder: AuditEncoder, name: str, index: int) -> bool:
    """Whether an id that does not stand alone comes up inside a word.

    Tokenizers that put a mark before the first word, or that mark the inside of words, have such ids. They are tried on
    the model itself, with the text that the vocabulary writes, if the normaliser would leave that text alone.
    """
    backend = encoder.backend
    prefix = getattr(backend.model, "continuing_subword_prefix", None)
    inner = bool(prefix) and name.startswith(prefix)
    text = name[len(prefix) :] if inner and prefix else name
    plain = text.replace("\u2581", " ")
    normalizer = backend.normalizer
    if normalizer is not None and normalizer.normalize_str(plain).replace("\u2581", " ").strip() != plain.strip():
        return False
    suffix = getattr(backend.model, "end_of_word_suffix", None)
    try:
        if suffix and not name.endswith(suffix):
            return any(index in [t.id for t in backend.model.tokenize(name + letter)] for letter in "aestz10")
        if inner:
            return any(index in [t.id for t in backend.model.tokenize(letter + text)] for letter in "aestz10")
        return _marks_first_word(encoder) and [token.id for token in backend.model.tokenize(text)] == [index]
    except Exception:  # a model without an unknown token refuses what it cannot spell
        return False


def _marks_first_word(encoder: AuditEncoder) -> bool:
    found = encoder.backend.encode("a", add_special_tokens=False).tokens
    return bool(found) and found[0][:1] in ("\u2581", "\u0120")
