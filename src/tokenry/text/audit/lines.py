"""Lines of text in batches of bounded size, from memory or from files, each checked before a tokenizer sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines: `first` is the number of the first one, counted from 0; `path` names their file if they have one."""

    first: int
    lines: list[str]
    path: str = ""


@dataclass(frozen=True)
class FileChunk:
    """Consecutive lines of a file that are read when they are needed: bytes [offset, offset + size)."""

    path: str
    offset: int
    size: int
    first: int

    def read(self) -> Chunk:
        """The lines themselves; ValueError names the line and the byte that is not UTF-8."""
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            return decode_lines(stream.read(self.size), self.path, self.first)


class LineFile:
    """Lines of a UTF-8 file, read in blocks: the memory is that of a block or of the longest line.

    Lines end at a line feed; a carriage return before it belongs to the line end. Iterating again reads again. Raises
    FileNotFoundError when there is no such file, ValueError for bytes that are not UTF-8.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"{self.path!r} is not a file")

    def __iter__(self) -> Iterator[str]:
        for chunk in self.spans(1 << 20):
            yield from chunk.read().lines

    def spans(self, size: int) -> Iterator[FileChunk]:
        """Places of blocks of whole lines, about `size` bytes each."""
        offset = first = 0
        with open(self.path, "rb") as stream:
            while block := stream.read(size):
                rest = b"" if block.endswith(b"\n") else stream.readline()
                count = block.count(b"\n") + rest.count(b"\n") + (not (rest or block).endswith(b"\n"))
                yield FileChunk(self.path, offset, len(block) + len(rest), first)
                offset, first = offset + len(block) + len(rest), first + count


def decode_lines(block: bytes, path: str, first: int) -> Chunk:
    """Lines of a block of whole lines; ValueError names the line and the byte that is not UTF-8."""
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        before = block[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        number = first + before.count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: byte {block[error.start]:#04x} at column {column} is not UTF-8") from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    if "\r" in text:
        lines = [line[:-1] if line.endswith("\r") else line for line in lines]
    return Chunk(first, lines, path)


def chunks_of(lines: Iterable[str] | LineFile, size: int) -> Iterator[Chunk]:
    """Chunks of about `size` bytes (files) or characters (anything else that gives lines)."""
    if isinstance(lines, LineFile):
        for span in lines.spans(size):
            yield span.read()
        return
    first, held, length = 0, [], 0
    for line in lines:
        held.append(line)
        length += len(line) if isinstance(line, str) else 0
        if length >= size or len(held) >= size // 64 + 1:
            yield Chunk(first, held)
            first, held, length = first + len(held), [], 0
    if held:
        yield Chunk(first, held)


def byte_sizes(chunk: Chunk, where: str) -> list[int]:
    """UTF-8 bytes of each line.

    Raises TypeError for a line that is not a string and ValueError for one that holds a lone surrogate, both naming the
    line: text that no tokenizer can take is never dropped silently.
    """
    try:
        if not all(issubclass(kind, str) for kind in set(map(type, chunk.lines))):
            raise AttributeError("a line is no string")
        return [len(line) if line.isascii() else len(line.encode("utf-8")) for line in chunk.lines]
    except (UnicodeEncodeError, AttributeError):
        for number, line in enumerate(chunk.lines, chunk.first + 1):
            if not isinstance(line, str):
                raise TypeError(f"{where}, line {number}: must be a string, got {type(line).__name__}") from None
            for place, character in enumerate(line):
                if "\ud800" <= character <= "\udfff":
                    raise ValueError(
                        f"{where}, line {number}: holds the lone surrogate U+{ord(character):04X} at character {place + 1}, "
                        "which is not text"
                    ) from None
        raise
