"""What every token of a tokenizer spells, and what its encoder and its merges do: the ground under valid beginnings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from tokenry.hosts.text.added import AddedTokens, patterns_of
from tokenry.hosts.text.alphabet import BYTE_TO_CHAR
from tokenry.hosts.text.classes import is_prefix, split_partial
from tokenry.hosts.text.layout import TokenizerLayout
from tokenry.hosts.text.merges import MergeTable, table_of
from tokenry.hosts.text.trie import ByteTrie


class PieceTable:
    """Bytes of every id, and the encoder that made them.

    Attributes:
        pieces: bytes of every id; None for special, control and unused ids.
        special: special and control ids with their names.
        layout: how the tokenizer treats text.
        lengths: bytes per id, 0 where it has none.
    """

    def __init__(
        self, pieces: Sequence[bytes | None], layout: TokenizerLayout, backend: Tokenizer | None, definition: Any
    ) -> None:
        self.pieces: tuple[bytes | None, ...] = tuple(pieces)
        self.layout = layout
        self.special = dict(layout.special)
        self.lengths = [len(piece) if piece else 0 for piece in self.pieces]
        self._backend = backend
        self._definition = definition

    @property
    def kind(self) -> str:
        """``byte_level``, ``byte_fallback`` or ``plain``."""
        return self.layout.kind

    @property
    def size(self) -> int:
        """Number of ids, holes included."""
        return len(self.pieces)

    @property
    def looks_ahead(self) -> bool:
        """Whether a later byte can change where earlier text is cut."""
        return self.layout.regex or bool(self.layout.added)

    @property
    def prefix(self) -> bytes:
        """What the tokenizer puts before a text: a space or nothing."""
        return b" " if self.layout.prefix_space else b""

    @cached_property
    def trie(self) -> ByteTrie:
        """Prefix trie over all pieces."""
        return ByteTrie.build(self.pieces)

    @cached_property
    def added(self) -> AddedTokens:
        """The strings that are looked for before the algorithm sees the text."""
        return AddedTokens(patterns_of(self._definition, self.layout.added, self.pieces))

    @cached_property
    def byte_tokens(self) -> dict[int, int]:
        """Byte -> id of the byte tokens of a vocabulary with byte fallback."""
        if self.layout.kind != "byte_fallback":
            return {}
        names = {f"<0x{byte:02X}>": byte for byte in range(256)}
        return {names[piece]: token for piece, token in self._vocabulary().items() if piece in names}

    @cached_property
    def byte_token_ids(self) -> frozenset[int]:
        """Ids of the byte tokens."""
        return frozenset(self.byte_tokens.values())

    @cached_property
    def text_pieces(self) -> set[bytes]:
        """Bytes of the pieces that are text, byte tokens left out."""
        return {piece for token, piece in enumerate(self.pieces) if piece and token not in self.byte_token_ids}

    @cached_property
    def starts_inside(self) -> list[int]:
        """Ids of the pieces that start inside a character."""
        return [token for token, piece in enumerate(self.pieces) if piece and 0x80 <= piece[0] < 0xC0]

    @cached_property
    def merges(self) -> MergeTable | None:
        """The merge table of a BPE tokenizer; None for the other algorithms and where neighbours do not decide."""
        model = self._definition["model"] if self._definition else {}
        if self.layout.algorithm != "BPE" or (model.get("fuse_unk") and self.kind == "plain"):
            return None
        merges = [(m.split(" ")[0], m.split(" ")[1]) if isinstance(m, str) else (m[0], m[1]) for m in model["merges"]]
        skip = {piece for piece, token in model["vocab"].items() if token in self.byte_token_ids}
        table = table_of(model["vocab"], merges, self.size, lambda piece: piece not in skip)
        inside = set(self.starts_inside)
        for token, piece in enumerate(self.pieces):
            if not piece or (token not in inside and not is_prefix(piece)):
                table.producible[token] = False
        return table

    @cached_property
    def whole_tokens(self) -> frozenset[int]:
        """Tokens that merges never make and that stand for a whole piece of text only (``ignore_merges``)."""
        if self.merges is None or not self._definition["model"].get("ignore_merges"):
            return frozenset()
        made, added = self.merges.producible, self.layout.added
        return frozenset(t for t, p in enumerate(self.pieces) if p and not made[t] and t not in added and _is_text(p))

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` as it stands: no prefix space, no check."""
        return self._encoder().encode(text, add_special_tokens=False).ids

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` of each."""
        return [self.encode_text(text) for text in texts]

    def cuts(self, text: str) -> list[int]:
        """Positions between characters where the pre-tokenizer cuts `text`, ascending, without its ends."""
        splitter = self._encoder().pre_tokenizer
        if splitter is None or not text:
            return []
        marked = text.replace(" ", "\u2581") if self._marks_before_split else text
        return sorted({start for _, (start, _) in splitter.pre_tokenize_str(marked)} - {0})

    def cuts_of(self, texts: Sequence[str]) -> list[list[int]]:
        """`cuts` of each."""
        return [self.cuts(text) for text in texts]

    @cached_property
    def _marks_before_split(self) -> bool:
        return self.layout.space_mark and '"Metaspace"' not in json.dumps(self._definition.get("pre_tokenizer"))

    def merge_text(self, word: str) -> list[int]:
        """Ids of one piece of text that the pre-tokenizer does not cut."""
        return self.merge_bytes(word.encode()) if self.layout.kind == "byte_level" else self._merge(word.replace(" ", "\u2581"))

    def merge_bytes(self, data: bytes) -> list[int]:
        """Ids of raw bytes under the merges of a byte-level vocabulary; they need not be whole characters."""
        return self._merge("".join(BYTE_TO_CHAR[byte] for byte in data))

    def _merge(self, symbols: str) -> list[int]:
        return [token.id for token in self._encoder().model.tokenize(symbols)] if symbols else []

    def _encoder(self) -> Tokenizer:
        if self._backend is None:
            raise TypeError("vocabulary must be a tokenizer here, a bare vocabulary has no encoder")
        return self._backend

    def _vocabulary(self) -> dict[str, int]:
        model = self._definition["model"]["vocab"]
        return model if isinstance(model, dict) else {piece: i for i, (piece, _) in enumerate(model)}


def _is_text(piece: bytes) -> bool:
    return is_prefix(piece) and not split_partial(piece)[1]
