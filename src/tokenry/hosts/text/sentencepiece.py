"""SentencePiece `.model` files as `tokenizers.Tokenizer` objects, without sentencepiece and protobuf.

A model file is a protocol buffer; only the few fields that fix the ids are read: the pieces with score and type, the
model type, byte fallback, and the normaliser's options. Two known differences from sentencepiece: rare pairs of
combining marks may be normalised differently, and so is a leading space where the model has user-defined pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
_MARK = "\u2581"


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `.model` file says: pieces (text, score, type) by id, and the options that change ids."""

    pieces: tuple[tuple[str, float, int], ...]
    algorithm: int
    byte_fallback: bool
    charsmap: bytes
    add_prefix: bool
    collapse_spaces: bool


def read_sentencepiece(path: str | Path) -> SentencePieceModel:
    """Read a `.model` file; ValueError when it is not one, or of a type (word, char) that has no `tokenizers` model."""
    data = Path(path).read_bytes()
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (ValueError, IndexError, KeyError, TypeError, struct.error, AttributeError) as error:
        raise ValueError(f"{path} is not a SentencePiece model: it cannot be read as one") from error
    algorithm = trainer.get(3, _UNIGRAM)
    if not pieces or algorithm not in (_UNIGRAM, _BPE):
        reason = "it holds no pieces" if not pieces else f"its model type {algorithm} is neither Unigram nor BPE"
        raise ValueError(f"{path} is not a SentencePiece model that can be used: {reason}")
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=algorithm,
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=normalizer.get(2, b""),
        add_prefix=bool(normalizer.get(3, 1)),
        collapse_spaces=bool(normalizer.get(4, 1)),
    )


def tokenizer_of_sentencepiece(model: SentencePieceModel) -> Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of the SentencePiece model; no special tokens are added to a text."""
    texts = [text for text, _, _ in model.pieces]
    unknown = next((index for index, (_, _, kind) in enumerate(model.pieces) if kind == UNKNOWN), None)
    if model.algorithm == _UNIGRAM:
        scored = [(text, score) for text, score, _ in model.pieces]
        tokenizer = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=model.byte_fallback))
    else:
        tokenizer = Tokenizer(
            models.BPE(
                vocab={text: index for index, text in enumerate(texts)},
                merges=_merges(model),
                unk_token=None if unknown is None else texts[unknown],
                fuse_unk=True,
                byte_fallback=model.byte_fallback,
            )
        )
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.collapse_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    marks_itself = any(kind == USER for _, _, kind in model.pieces)
    if not marks_itself:  # the mark goes before the text, also before a space
        steps += [normalizers.Prepend(_MARK)] if model.add_prefix else []
        steps.append(normalizers.Replace(" ", _MARK))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
    if marks_itself or model.algorithm == _UNIGRAM:  # Unigram pieces hold no inner space: the same ids, found faster
        scheme = "first" if model.add_prefix and marks_itself else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(  # type: ignore[assignment]
            replacement=_MARK, prepend_scheme=scheme, split=model.algorithm == _UNIGRAM
        )
    tokenizer.decoder = _decoder(model)
    added = {CONTROL: True, UNKNOWN: True, USER: False}
    tokenizer.add_tokens(
        [AddedToken(text, special=added[kind], normalized=False) for text, _, kind in model.pieces if kind in added]
    )
    return tokenizer


def _decoder(model: SentencePieceModel) -> Any:
    steps: list[Any] = [decoders.Replace(_MARK, " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.add_prefix:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every split of a piece into two pieces, pieces of higher score first."""
    usable = {text: index for index, (text, _, kind) in enumerate(model.pieces) if kind in (NORMAL, USER)}
    found = []
    for text, score, kind in model.pieces:
        if kind != NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = usable.get(text[:cut]), usable.get(text[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right, text[:cut], text[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol-buffer message; fixed-width values stay bytes."""
    if not isinstance(data, bytes):
        raise TypeError("a number stands where a message was expected")
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, place = data[place : place + size], place + size
        elif kind == 2:
            size, place = _varint(data, place)
            value, place = data[place : place + size], place + size
        else:
            raise ValueError(f"wire type {kind}")
        if place > len(data):
            raise ValueError("cut off")
        yield tag >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
