"""Counting every unit (a language of a corpus, or a domain) under every tokenizer, in this process or by Ray."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenry.core.progress import Progress
from tokenry.errors import optional
from tokenry.text.audit.encoder import AuditEncoder, ChunkCount
from tokenry.text.audit.lines import Chunk, FileChunk, LineFile, byte_sizes, chunks_of
from tokenry.text.audit.tally import TextTally, TokenTally

HEAD = 1 << 18  # characters of the start of a unit that are kept for words and samples


@dataclass
class Unit:
    """A language of a parallel corpus, or a domain: where its lines come from, and what was counted."""

    corpus: str
    language: str
    source: Iterable[str] | LineFile
    text: TextTally = field(default_factory=TextTally)
    tallies: dict[str, TokenTally] = field(default_factory=dict)
    head: list[str] = field(default_factory=list)
    _held: int = 0

    @property
    def where(self) -> str:
        """The unit in words, for messages."""
        return f"corpus {self.corpus!r}" + (f", language {self.language!r}" if self.language else "")

    def take(self, chunk: Chunk) -> list[str]:
        """Check and measure a chunk, keep the start of the text; returns its lines."""
        self.text.add(chunk.first, list(map(len, chunk.lines)), byte_sizes(chunk, chunk.path or self.where))
        self.keep(chunk)
        return chunk.lines

    def keep(self, chunk: Chunk) -> None:
        """Keep lines while the start of the text is not full."""
        for line in chunk.lines:
            if self._held >= HEAD:
                return
            self.head.append(line)
            self._held += len(line) + 1

    def add(self, name: str, first: int, count: ChunkCount, examples: int) -> None:
        """Count in what a tokenizer made of a chunk."""
        self.tallies.setdefault(name, TokenTally(examples)).add(first, count)


def count_locally(
    units: Sequence[Unit], encoders: Sequence[AuditEncoder], used: dict[str, np.ndarray], size: int, progress: Progress
) -> None:
    """Fill the units; one pass over the text, one chunk in memory at a time."""
    for place, unit in enumerate(units):
        for chunk in chunks_of(unit.source, size):
            progress(f"{unit.corpus} {unit.language}: line {chunk.first + 1}", place / len(units))
            lines = unit.take(chunk)
            for encoder in encoders:
                count = encoder.count(lines, chunk.first)
                used[encoder.name][count.used] = True
                unit.add(encoder.name, chunk.first, count, encoder.examples)


class _Worker:
    """Counts chunks in a process of Ray: a row in is a chunk, a row out what every tokenizer made of it."""

    def __init__(self, encoders: Sequence[AuditEncoder]) -> None:
        self.encoders = encoders
        self._options = ExitStack()  # never closed: the options hold for as long as the process lives
        for encoder in encoders:
            self._options.enter_context(encoder.ready())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"count": pickle.dumps(self._count(*pickle.loads(row["chunk"])))}
        except (TypeError, ValueError) as error:  # raised again where the caller can catch it as what it is
            return {"count": pickle.dumps(error)}

    def _count(self, number: int, where: str, chunk: Chunk | FileChunk) -> tuple:
        if isinstance(chunk, FileChunk):
            chunk = chunk.read()
        sizes = byte_sizes(chunk, chunk.path or where)
        counts = {encoder.name: encoder.count(chunk.lines, chunk.first) for encoder in self.encoders}
        return number, chunk.first, list(map(len, chunk.lines)), sizes, counts


def count_by_ray(
    units: Sequence[Unit],
    encoders: Sequence[AuditEncoder],
    used: dict[str, np.ndarray],
    size: int,
    progress: Progress,
    workers: int,
) -> None:
    """Fill the units with the work spread over `workers` processes of Ray; the numbers are those of `count_locally`.

    Files are read by the workers, other text is sent to them.
    """
    data: Any = optional("ray.data", "scale")
    rows = [{"chunk": pickle.dumps(task)} for task in _tasks(units, size)]
    names = {encoder.name: encoder for encoder in encoders}
    if not rows:
        return
    with _quiet_ray(workers):
        dataset = data.from_items(rows, override_num_blocks=max(workers, min(len(rows), 4 * workers)))
        pool = data.ActorPoolStrategy(size=workers)
        dataset = dataset.map(_Worker, fn_constructor_args=(list(encoders),), compute=pool)
        for done, row in enumerate(dataset.iter_rows(), 1):
            found = pickle.loads(row["count"])
            if isinstance(found, Exception):
                raise found
            number, first, characters, sizes, counts = found
            units[number].text.add(first, characters, sizes)
            for name, count in counts.items():
                used[name][count.used] = True
                units[number].add(name, first, count, names[name].examples)
            progress(f"{done} of {len(rows)} chunks", done / len(rows))


@contextmanager
def _quiet_ray(workers: int) -> Iterator[None]:
    """Ray without its progress reports; one that was not running is started, and stopped again at the end."""
    ray: Any = optional("ray", "scale")
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if started:
            ray.shutdown()


def _tasks(units: Sequence[Unit], size: int) -> Iterator[tuple[int, str, Chunk | FileChunk]]:
    for number, unit in enumerate(units):
        if isinstance(unit.source, LineFile):
            for span in unit.source.spans(size):
                if isinstance(span, Chunk) or span.first == 0 or unit._held < HEAD:
                    unit.keep(span.read() if isinstance(span, FileChunk) else span)
                yield number, unit.where, span
        else:
            for chunk in chunks_of(unit.source, size):
                byte_sizes(chunk, unit.where)  # refused here, where the message says where
                unit.keep(chunk)
                yield number, unit.where, chunk
