"""Text files as people have them: plain or packed (gzip, Zstandard), UTF-8 or UTF-16, a text per line or JSON lines."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tokenry.errors import optional

_MARKS = (  # byte order marks, the longer ones first
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard"}
_JSON = (".jsonl", ".ndjson")
_PACKED_SUFFIXES = (".gz", ".zst")
SUFFIXES = (".txt", *_JSON)
"""Endings of text files, each of which may be followed by .gz or .zst."""


@dataclass(frozen=True)
class TextFormat:
    """What a text file is: how it is packed ("" for not), its encoding, the bytes of its mark, the field of JSON lines."""

    packing: str
    encoding: str
    mark: int
    field: str | None

    @property
    def plain(self) -> bool:
        """Whether its bytes are UTF-8 as they stand, so that blocks of whole lines can be read from anywhere."""
        return not self.packing and self.encoding == "utf-8"

    def __str__(self) -> str:
        parts = [self.encoding.upper() + (", byte order mark" if self.mark else "")]
        parts += [f"packed by {self.packing}"] if self.packing else []
        parts += [f"field {self.field!r} of JSON lines"] if self.field is not None else []
        return "; ".join(parts)


def stem_of(path: str | os.PathLike[str]) -> str:
    """Name of a text file without its ending: "de" of de.txt, de.jsonl and de.txt.gz; "" of a file of another kind."""
    name = Path(path).name
    for packed in ("", *_PACKED_SUFFIXES):
        for suffix in SUFFIXES:
            if name.lower().endswith(suffix + packed):
                return name[: -len(suffix + packed)]
    return ""


def format_of(path: str | os.PathLike[str], field: str | None = None) -> TextFormat:
    """What a file is, by its first bytes and (for JSON lines) its ending; `field` defaults to "text" there.

    Raises FileNotFoundError, and ValueError for a damaged archive, or for UTF-16 without a byte order mark.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a file")
    with Path(path).open("rb") as stream:
        start = stream.read(4)
    packing = next((name for magic, name in _PACKED.items() if start.startswith(magic)), "")
    with _open(path, packing) as stream:
        start = _read(stream, 512, path, packing, 0)
    mark, encoding = next((found for found in _MARKS if start.startswith(found[0])), (b"", "utf-8"))
    if not mark and len(start) >= 4 and any(start[place::2].count(0) * 4 > len(start) for place in (0, 1)):
        raise ValueError(
            f"{path}: every other byte is 0, as in UTF-16, and there is no byte order mark; save it as UTF-8, or with a mark"
        )
    name = Path(path).name.lower()
    for packed in _PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return TextFormat(packing, encoding, len(mark), (field or "text") if name.endswith(_JSON) else None)


def texts_of(block: str, form: TextFormat, path: str, first: int) -> list[str]:
    """The texts of a block of whole lines, `first` the number of the first from 0; a carriage return belongs to the line end.

    Raises ValueError for a line that is no JSON object with a string in the field; the message names file and line.
    """
    lines = block.split("\n")
    if not lines[-1]:
        lines.pop()
    if form.field is not None:
        return [_field(line, form.field, path, number) for number, line in enumerate(lines, first + 1)]
    return [line[:-1] if line.endswith("\r") else line for line in lines] if "\r" in block else lines


def _field(line: str, field: str, path: str, number: int) -> str:
    if not line.strip():  # an empty text, so that the others keep their numbers
        return ""
    try:
        text = json.loads(line)[field]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}, line {number}: must be a JSON object with {field!r}: {reason}") from None
    if not isinstance(text, str):
        raise ValueError(f"{path}, line {number}: {field!r} must be a string, got {type(text).__name__}")
    return text


def blocks_of(path: str, form: TextFormat, size: int) -> Iterator[tuple[int, str]]:
    """(number of the first line from 0, text) of blocks of whole lines, about `size` bytes each, in one pass.

    Raises ValueError for bytes that are not of the encoding and for a damaged archive; the message names file and line.
    """
    decoder = codecs.getincrementaldecoder(form.encoding)("strict")
    first, held = 0, []
    with _open(path, form.packing) as stream:
        _read(stream, form.mark, path, form.packing, 0)
        done = False
        while not done:
            block = _read(stream, size, path, form.packing, first + "".join(held).count("\n"))
            done = not block
            text = _decoded(decoder, block, done, path, form.encoding, first + "".join(held).count("\n"))
            cut = len(text) if done else text.rfind("\n") + 1
            if not cut and not done:
                held.append(text)
                continue
            whole = "".join([*held, text[:cut]])
            if whole:
                yield first, whole
            first, held = first + whole.count("\n"), [text[cut:]]


def _decoded(decoder: codecs.IncrementalDecoder, block: bytes, final: bool, path: str, encoding: str, lines: int) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        whole: Any = error.object[: error.start]  # with what was left of the block before
        number = lines + bytes(whole).decode(encoding).count("\n") + 1
        bad = error.object[error.start]
        raise ValueError(f"{path}, line {number}: byte {bad:#04x} is not {encoding.upper()}") from error


@contextmanager
def _open(path: str | os.PathLike[str], packing: str) -> Iterator[BinaryIO]:
    with Path(path).open("rb") as raw:
        if packing == "gzip":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield stream  # pyright: ignore[reportReturnType]
        elif packing:
            yield _Frames(raw, optional("zstandard", "zstd"))  # pyright: ignore[reportReturnType]
        else:
            yield raw


class _Frames:
    """The bytes of a file of Zstandard frames; the package's own reader takes a file that is cut off for a whole one."""

    def __init__(self, raw: BinaryIO, library: Any) -> None:
        self._raw, self._library = raw, library
        self._frame: Any = None
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            data = self._raw.read(1 << 13)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends inside a frame")
                break
            while data:
                if self._frame is None or self._frame.eof:
                    self._frame = self._library.ZstdDecompressor().decompressobj()
                self._left += self._frame.decompress(data)
                data = self._frame.unused_data if self._frame.eof else b""
        found, self._left = self._left[:size], self._left[size:]
        return found


def _read(stream: BinaryIO, size: int, path: str | os.PathLike[str], packing: str, lines: int) -> bytes:
    try:
        return stream.read(size)
    except Exception as error:
        damaged = isinstance(error, (OSError, EOFError, zlib.error)) or "zst" in type(error).__module__
        if not packing or not damaged:
            raise
        raise ValueError(f"{path}, after line {lines}: damaged {packing} archive ({error})") from error
