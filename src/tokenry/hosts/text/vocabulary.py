"""Tokens as bytes: what every token of a tokenizer spells, which sequences it can produce, and where words lie in them.

Works for byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece-style BPE and Unigram with or without byte fallback, and for bare
vocabularies. Tokenizers whose tokens do not hold the whole text (BERT's WordPiece, CLIP) are refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Tokenizer

from tokenry.hosts.text.beginnings import Canonical, PairwiseBPE, Reencoding
from tokenry.hosts.text.classes import split_partial
from tokenry.hosts.text.cut_beginnings import RegexBPE
from tokenry.hosts.text.files import as_backend
from tokenry.hosts.text.layout import TokenizerLayout, bare_copy, read_layout
from tokenry.hosts.text.pieces import PieceTable
from tokenry.hosts.text.trie import ByteTrie

__all__ = ["ByteTrie", "ByteVocabulary", "WordSpan", "first_noncanonical", "is_canonical", "word_spans"]


class ByteVocabulary(PieceTable):
    """The token-to-bytes map of a tokenizer, with its encoder and its valid beginnings."""

    @classmethod
    def of(cls, tokenizer: Any) -> ByteVocabulary:
        """The byte vocabulary of a tokenizer; built once per tokenizer object.

        `tokenizer`: a fast tokenizer of transformers, a `tokenizers.Tokenizer`, a `tiktoken.Encoding`, a `ByteVocabulary`
        (returned as it is), or a bare vocabulary: a mapping of pieces (str or bytes) to ids, or a sequence of pieces.

        Raises:
            UnsupportedModelError: not one of these, or its tokens do not hold the whole text; the message says why.
        """
        if isinstance(tokenizer, cls):
            return tokenizer
        if isinstance(tokenizer, (Mapping, Sequence, set, frozenset)) and not isinstance(tokenizer, (str, bytes)):
            return cls._bare(tokenizer)
        backend = as_backend(tokenizer)
        kept = _KNOWN.get(tokenizer) if _can_be_key(tokenizer) else None
        if kept is not None and kept[0] == backend.get_vocab_size(with_added_tokens=True):
            return kept[1]
        made = cls._from_backend(backend, tokenizer)
        if _can_be_key(tokenizer):
            _KNOWN[tokenizer] = (backend.get_vocab_size(with_added_tokens=True), made)
        return made

    @classmethod
    def _from_backend(cls, backend: Tokenizer, owner: object) -> ByteVocabulary:
        copy, definition = bare_copy(backend)
        layout = read_layout(definition, owner)
        model = definition["model"]
        vocabulary = (
            {piece: i for i, (piece, _) in enumerate(model["vocab"])} if layout.algorithm == "Unigram" else model["vocab"]
        )
        size = 1 + max([*vocabulary.values(), *layout.special, *layout.added], default=-1)
        pieces: list[bytes | None] = [None] * size
        for piece, token in vocabulary.items():
            pieces[token] = layout.spell(piece)
        for token, content in layout.added.items():
            pieces[token] = (content.replace("\u2581", " ") if layout.space_mark else content).encode()
        for token in layout.special:
            pieces[token] = None
        return cls(pieces, layout, copy, definition)

    @classmethod
    def _bare(cls, vocabulary: Mapping | Sequence | set | frozenset) -> ByteVocabulary:
        if isinstance(vocabulary, Mapping):
            pairs = list(vocabulary.items())
        else:
            pairs = [
                (piece, i)
                for i, piece in enumerate(sorted(vocabulary) if isinstance(vocabulary, (set, frozenset)) else vocabulary)
            ]
        for piece, token in pairs:
            if not isinstance(piece, (str, bytes)) or not isinstance(token, int) or token < 0:
                raise TypeError(f"vocabulary must map str or bytes to ids >= 0, got {piece!r}: {token!r}")
        pieces: list[bytes | None] = [None] * (1 + max((token for _, token in pairs), default=-1))
        for piece, token in pairs:
            pieces[token] = piece.encode() if isinstance(piece, str) else piece
        return cls(pieces, TokenizerLayout("plain", "bare", False, False, None, False), None, None)

    @cached_property
    def canonical(self) -> Canonical:
        """Valid beginnings of this tokenizer.

        Raises:
            TypeError: a bare vocabulary has no encoder.
        """
        self._encoder()
        table = self.merges
        if table is None or (self.whole_tokens and not self.layout.regex):
            return Reencoding(self)
        return RegexBPE(self, table) if self.layout.regex else PairwiseBPE(self, table)

    def encode(self, data: bytes | str) -> list[int]:
        """The tokenizer's own encoding of `data`: no special tokens are added, and none are matched inside it.

        `data` may end inside a character where the vocabulary can spell the bytes.

        Raises:
            TypeError: this is a bare vocabulary, which has no encoder.
            ValueError: not UTF-8, or the tokens do not spell the text (characters the tokenizer lacks or changes).
        """
        data = as_bytes("data", data)
        text, partial = split_partial(data)
        if not data:
            return []
        if partial:
            ways = self.canonical.tips(self.prefix + data)
            if not ways:
                raise ValueError(f"data ends inside a character ({partial!r}) that this tokenizer cannot spell byte by byte")
            return ways[-1]
        ids = self.encode_text(self.prefix.decode() + text)
        spelled = b"".join(self.pieces[token] or b"" for token in ids)
        if spelled != self.prefix + data:
            raise ValueError(f"data must survive the tokenizer, {self._difference(self.prefix + data, spelled)}")
        return ids

    def _difference(self, data: bytes, spelled: bytes) -> str:
        at = next((i for i, (a, b) in enumerate(zip(data, spelled, strict=False)) if a != b), min(len(data), len(spelled)))
        why = f" (its normaliser {self.layout.normalizer} changes text)" if self.layout.normalizer else ""
        if self.layout.normalizer == "NFC":
            why += "; unicodedata.normalize('NFC', text) gives the form it keeps"
        return f"but {data[at : at + 12]!r} at byte {at} comes back as {spelled[at : at + 12]!r}{why}"

    def decode(self, ids: Sequence[int]) -> bytes:
        """Bytes that `ids` spell, without the prefix space.

        Raises:
            ValueError: an id is out of range or has no bytes (a special token).
        """
        for token in ids:
            if not 0 <= token < self.size or self.pieces[token] is None:
                name = self.special.get(token)
                raise ValueError(f"ids must be tokens with bytes, got {token}" + (f" ({name})" if name else ""))
        data = b"".join(self.pieces[token] or b"" for token in ids)
        return data.removeprefix(self.prefix)


_KNOWN: WeakKeyDictionary[Any, tuple[int, ByteVocabulary]] = WeakKeyDictionary()


def _can_be_key(tokenizer: Any) -> bool:
    try:
        hash(tokenizer)
        WeakKeyDictionary({tokenizer: None})
    except TypeError:
        return False
    return True


def as_bytes(name: str, data: bytes | str) -> bytes:
    """UTF-8 bytes of `data`.

    Raises:
        TypeError: neither bytes nor str.
        ValueError: a str with lone surrogates, which no UTF-8 text holds.
    """
    if isinstance(data, (bytes, bytearray)):
        return bytes(data)
    if not isinstance(data, str):
        raise TypeError(f"{name} must be bytes or str, got {type(data).__name__}")
    try:
        return data.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must not hold lone surrogates, got {data[error.start]!r} at position {error.start}") from None


def first_noncanonical(ids: Sequence[int], tokenizer: Any) -> int | None:
    """Position of the first token that the tokenizer would not have put there, None if the whole is its own encoding.

    Position p means: `ids[:p]` still agrees with the tokenizer's encoding of the text that `ids` spells, `ids[:p + 1]` not.

    Raises:
        ValueError: an id has no bytes.
    """
    vocabulary = ByteVocabulary.of(tokenizer)
    own = vocabulary.encode(vocabulary.decode(ids))
    place = next((i for i, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
    return None if place == len(ids) == len(own) else place


def is_canonical(ids: Sequence[int], tokenizer: Any) -> bool:
    """Whether encoding the text that `ids` spell gives `ids` again.

    Raises:
        ValueError: an id has no bytes.
    """
    return first_noncanonical(ids, tokenizer) is None


@dataclass(frozen=True)
class WordSpan:
    """A word of a text: its characters [start_char, end_char) and the tokens [first_token, last_token) that touch them."""

    text: str
    start_char: int
    end_char: int
    first_token: int
    last_token: int


def word_spans(text: str, tokenizer: Any, *, special_tokens: bool = False) -> tuple[list[int], list[WordSpan]]:
    """Ids of `text` and the spans of its words (runs without white space) over them, by character offsets.

    Raises:
        UnsupportedModelError: the tokenizer gives no offsets.
    """
    encoding = as_backend(tokenizer).encode(text, add_special_tokens=special_tokens)
    starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
    ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
    spans, place = [], 0
    for word in text.split():
        start = text.index(word, place)
        place = start + len(word)
        touching = np.flatnonzero((starts < place) & (ends > start))
        if len(touching):
            spans.append(WordSpan(word, start, place, int(touching[0]), int(touching[-1]) + 1))
        else:
            spans.append(WordSpan(word, start, place, 0, 0))
    return list(encoding.ids), spans
