"""What a tokenizer does to text, read off its definition: how pieces spell bytes, what is a token of its own, what is lost."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text.alphabet import CHAR_TO_BYTE

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"
_AT_START = {"Regex": r"\A" + _SPACE_MARK}  # doubled there: the space before a text that starts with one, which Metaspace omits
_LOSSY = ("Lowercase", "NFKC", "NFKD", "NFD", "StripAccents", "BertNormalizer", "Precompiled", "Nmt", "Strip")
_DROPS_SPACE = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit")


@dataclass(frozen=True)
class TokenizerLayout:
    """The parts of a tokenizer definition that decide which bytes a token stands for.

    Attributes:
        kind: ``byte_level`` (GPT-2 alphabet), ``byte_fallback`` (text pieces, unknown characters as byte tokens) or ``plain``
            (text pieces only).
        algorithm: ``BPE``, ``Unigram``, ``WordPiece`` or ``WordLevel``.
        space_mark: pieces spell a space as U+2581.
        prefix_space: a space is put before the text and taken away when decoding.
        normalizer: name of a normaliser that changes text, None when text comes back as it was.
        regex: neighbours alone do not decide where text is cut: there is a pre-tokenizer, or the algorithm is Unigram.
    """

    kind: str
    algorithm: str
    space_mark: bool
    prefix_space: bool
    normalizer: str | None
    regex: bool
    special: dict[int, str] = field(default_factory=dict)
    added: dict[int, str] = field(default_factory=dict)

    def spell(self, piece: str) -> bytes | None:
        """Bytes of a piece of the vocabulary; None where it has none."""
        if self.kind == "byte_level":
            if all(char in CHAR_TO_BYTE for char in piece):
                return bytes(CHAR_TO_BYTE[char] for char in piece)
            return piece.encode("utf-8", "surrogatepass")
        byte = _BYTE_TOKEN.fullmatch(piece)
        if byte and self.kind == "byte_fallback":
            return bytes([int(byte[1], 16)])
        return (piece.replace(_SPACE_MARK, " ") if self.space_mark else piece).encode()


def _unmatched(token: dict[str, Any], space_mark: bool) -> bool:
    """An added token that is looked for in text as it was before spaces were replaced, and holds the replacement."""
    return space_mark and not token["normalized"] and _SPACE_MARK in token["content"]


def _flat(part: dict[str, Any] | None, children: str) -> list[dict[str, Any]]:
    if not part:
        return []
    if part["type"] == "Sequence":
        return [leaf for child in part[children] for leaf in _flat(child, children)]
    return [part]


def read_layout(definition: dict[str, Any], owner: object) -> TokenizerLayout:
    """Layout of a ``tokenizer.json`` definition.

    Raises:
        UnsupportedModelError: bytes cannot be recovered from the tokens; the message says why.
    """
    model = definition["model"]
    algorithm = model.get("type") or ("WordPiece" if "continuing_subword_prefix" in model else "BPE")
    normalizers = _flat(definition.get("normalizer"), "normalizers")
    splitters = _flat(definition.get("pre_tokenizer"), "pretokenizers")
    decoders = _flat(definition.get("decoder"), "decoders")
    kinds = {part["type"] for part in (*splitters, *decoders)}
    _refuse_unrecoverable(model, algorithm, splitters, decoders, owner)
    byte_level = "ByteLevel" in kinds
    marks = [part for part in normalizers if part["type"] == "Replace" and part.get("content") == _SPACE_MARK]
    space_mark = not byte_level and (bool(marks) or "Metaspace" in kinds)
    prefix = any(part["type"] == "Prepend" for part in normalizers) or any(
        part.get("add_prefix_space") if part["type"] == "ByteLevel" else part.get("prepend_scheme", "never") != "never"
        for part in splitters
        if part["type"] in ("ByteLevel", "Metaspace")
    )
    lossy = [part["type"] for part in normalizers if part["type"] in (*_LOSSY, "NFC")]
    known = {"Replace", "Prepend", "NFC", "ByteLevel", *_LOSSY}
    lossy += [part["type"] for part in normalizers if part["type"] not in known]
    lossy += [
        part["type"] for part in normalizers if part["type"] == "Replace" and part not in marks and part["pattern"] != _AT_START
    ]
    added = definition.get("added_tokens", [])
    return TokenizerLayout(
        kind="byte_level" if byte_level else "byte_fallback" if _falls_back(model) else "plain",
        algorithm=algorithm,
        space_mark=space_mark,
        prefix_space=prefix,
        # Every member counts: one that keeps the text says nothing of the next.
        normalizer=next((name for name in lossy if name != "NFC"), lossy[0] if lossy else None),
        regex=algorithm == "Unigram" or any(_splits(part, bool(marks)) for part in splitters),
        special={token["id"]: token["content"] for token in added if token["special"]} | _controls(model, algorithm),
        added={token["id"]: token["content"] for token in added if not token["special"] and not _unmatched(token, space_mark)},
    )


def _falls_back(model: dict[str, Any]) -> bool:
    return bool(model.get("byte_fallback"))


def _splits(part: dict[str, Any], spaces_replaced: bool) -> bool:
    """Whether a pre-tokenizer of this definition can cut text at all."""
    if part["type"] == "Split" and spaces_replaced and part["pattern"] == {"String": " "}:
        return False
    if part["type"] == "ByteLevel":
        return part.get("use_regex", True)
    if part["type"] == "Metaspace":
        return part.get("split", True)
    return True


def _controls(model: dict[str, Any], algorithm: str) -> dict[int, str]:
    """Unknown and control pieces of the model itself that need not be declared as added tokens."""
    if algorithm == "Unigram":
        unknown = model.get("unk_id")
        return {} if unknown is None else {unknown: model["vocab"][unknown][0]}
    unknown = model.get("unk_token")
    return {model["vocab"][unknown]: unknown} if unknown is not None and unknown in model["vocab"] else {}


def _refuse_unrecoverable(model: dict[str, Any], algorithm: str, splitters: list, decoders: list, owner: object) -> None:
    reason = None
    dropped = [part["type"] for part in splitters if part["type"] in _DROPS_SPACE]
    dropped += [part["type"] for part in splitters if part.get("behavior") == "Removed"]
    if algorithm == "WordPiece" and model.get("continuing_subword_prefix"):
        reason = f"WordPiece marks the inside of words with {model['continuing_subword_prefix']!r} and does not keep spaces"
    elif model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        reason = "its pieces mark word ends, so the spaces of the text are not kept"
    elif dropped:
        reason = f"its pre-tokenizer {dropped[0]} drops the separators between words"
    elif model.get("dropout"):
        reason = f"dropout={model['dropout']} makes encoding random"
    elif any(part["type"] in ("WordPiece", "BPEDecoder") for part in decoders):
        reason = "its decoder puts spaces where the text may have had none"
    if reason:
        error = UnsupportedModelError(
            f"{type(owner).__name__}: bytes cannot be recovered from its tokens, because {reason}; "
            "supported: byte-level BPE, SentencePiece-style BPE and Unigram, pieces that keep every separator"
        )
        raise error


def bare_copy(backend: Tokenizer) -> tuple[Tokenizer, dict[str, Any]]:
    """A copy that encodes text and nothing else, and the definition of `backend`.

    Left out: post-processor, padding, truncation, the space before the text; special tokens are not matched inside text.
    """
    definition = json.loads(backend.to_str())
    bare = dict(definition, post_processor=None, padding=None, truncation=None)
    bare["normalizer"] = _without_prefix(definition.get("normalizer"), "normalizers")
    bare["pre_tokenizer"] = _without_prefix(definition.get("pre_tokenizer"), "pretokenizers")
    copy = Tokenizer.from_str(json.dumps(bare))
    copy.encode_special_tokens = True
    return copy, definition


def _without_prefix(part: dict[str, Any] | None, children: str) -> dict[str, Any] | None:
    if not part:
        return None
    if part["type"] == "Sequence":
        rest = [_without_prefix(child, children) for child in part[children]]
        return dict(part, **{children: [child for child in rest if child]})
    if part["type"] == "Prepend" or part.get("pattern") == _AT_START:
        return None
    if part["type"] == "ByteLevel":
        return dict(part, add_prefix_space=False)
    return dict(part, prepend_scheme="never") if part["type"] == "Metaspace" else part
