"""Lines of text in batches of bounded size, from memory or from files, each checked before a tokenizer sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenry.text.reading import TextFormat, blocks_of, format_of, texts_of


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines: `first` is the number of the first one, counted from 0; `path` names their file if they have one."""

    first: int
    lines: list[str]
    path: str = ""


@dataclass(frozen=True)
class FileChunk:
    """Consecutive lines of a plain file that are read when they are needed: bytes [offset, offset + size)."""

    path: str
    offset: int
    size: int
    first: int
    form: TextFormat

    def read(self) -> Chunk:
        """The lines themselves; ValueError names the line and the byte that is not UTF-8."""
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            return decode_lines(stream.read(self.size), self.path, self.first, self.form)


class LineFile:
    """Texts of a file, read in blocks: the memory is that of a block or of the longest line. Iterating again reads again.

    A text is a line, or what `field` (default "text") holds in each line of a .jsonl file. Files packed by gzip or Zstandard
    and byte order marks (UTF-8, UTF-16, UTF-32) are found by their first bytes; `note` says so. Lines end at a line feed; a
    carriage return before it belongs to the line end.

    Raises FileNotFoundError when there is no such file; ValueError, with file and line, for bytes that are not of the
    encoding, a damaged archive, or a line that is no JSON object with such a field; MissingDependencyError for Zstandard
    without its package.
    """

    def __init__(self, path: str | os.PathLike[str], *, field: str | None = None) -> None:
        self.path = str(path)
        self.form = format_of(path, field)

    @property
    def note(self) -> str:
        """What the file was taken for, "" for plain UTF-8."""
        return "" if self.form == TextFormat("", "utf-8", 0, None) else f"{self.path} is read as {self.form}"

    def __iter__(self) -> Iterator[str]:
        for chunk in self.spans(1 << 20):
            yield from (chunk.read() if isinstance(chunk, FileChunk) else chunk).lines

    def spans(self, size: int) -> Iterator[FileChunk | Chunk]:
        """Blocks of whole lines, about `size` bytes each: their places in a plain file, else the lines themselves."""
        if not self.form.plain:
            for first, text in blocks_of(self.path, self.form, size):
                yield Chunk(first, texts_of(text, self.form, self.path, first), self.path)
            return
        offset, first = self.form.mark, 0
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            while block := stream.read(size):
                rest = b"" if block.endswith(b"\n") else stream.readline()
                count = block.count(b"\n") + rest.count(b"\n") + (not (rest or block).endswith(b"\n"))
                yield FileChunk(self.path, offset, len(block) + len(rest), first, self.form)
                offset, first = offset + len(block) + len(rest), first + count


def decode_lines(block: bytes, path: str, first: int, form: TextFormat) -> Chunk:
    """Texts of a block of whole lines; ValueError names the line and the byte that is not UTF-8."""
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        before = block[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        number = first + before.count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: byte {block[error.start]:#04x} at column {column} is not UTF-8") from error
    return Chunk(first, texts_of(text, form, path, first), path)


def chunks_of(lines: Iterable[str] | LineFile, size: int) -> Iterator[Chunk]:
    """Chunks of about `size` bytes (files) or characters (anything else that gives lines)."""
    if isinstance(lines, LineFile):
        for span in lines.spans(size):
            yield span.read() if isinstance(span, FileChunk) else span
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
