"""TokenizerAudit: tokenizers side by side on parallel corpora and domains."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.progress import Progress
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary
from tokenry.lazy import suggest
from tokenry.text.audit.encoder import AuditEncoder
from tokenry.text.audit.engine import Unit, count_by_ray, count_locally
from tokenry.text.audit.lines import LineFile
from tokenry.text.audit.results import AuditReport, AuditRow, Failure, SampleLine, Spread
from tokenry.text.audit.tally import BLOCKS
from tokenry.text.audit.vocabulary import audit_vocabulary
from tokenry.text.audit.words import Spellings, costly_words, encoding_counts, frequent_words, sample_line, token_spans
from tokenry.text.premium.inequity import bootstrap_totals, dispersion, token_premium

Lines = Iterable[str] | LineFile


@dataclass(frozen=True)
class TokenizerAudit:
    """Measures what tokenizers cost each language and domain, and where they do not give the text back.

    Args:
        tokenizers: name -> fast tokenizer of transformers, `tokenizers.Tokenizer` or `tiktoken.Encoding`.
        reference: language that premiums are relative to.
        round_trip: decode every line and compare.
        words: frequent words per unit that are looked at for alternative encodings and cost; 0 for none.
        vocabulary: look at every id of the vocabularies.
        examples: failures kept per unit, tokenizer and kind.
        resamples: draws of the bootstrap over lines.
        confidence: of its intervals.
        seed: of its draws.
        batch: characters or bytes of text that are handed to a tokenizer at once.
        engine: "local" (this process) or "ray" (`workers` processes); the numbers are the same.

    Raises ValueError for a setting out of range, UnsupportedModelError for something that is no fast tokenizer.
    """

    tokenizers: Mapping[str, Any]
    reference: str = "en"
    round_trip: bool = True
    words: int = 100
    vocabulary: bool = True
    examples: int = 3
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0
    batch: int = 1 << 20
    engine: str = "local"
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)

    def __post_init__(self) -> None:
        if not self.tokenizers:
            raise ValueError("tokenizers must hold at least one tokenizer")
        for name, least in (("words", 0), ("examples", 0), ("resamples", 1), ("batch", 1), ("workers", 1)):
            check_int(name, getattr(self, name), minimum=least)
        check_range("confidence", self.confidence, 0.0, 1.0, low_open=True, high_open=True)
        check_choice("engine", self.engine, ("local", "ray"))

    def run(self, corpora: Mapping[str, Mapping[str, Lines] | Lines], *, progress: Progress | None = None) -> AuditReport:
        """Audit the corpora: a mapping of languages to aligned lines is a parallel corpus, lines alone are a domain.

        Lines are any iterable of strings, or a `LineFile`; each is read once. Raises ValueError when the languages of a
        corpus differ in their number of lines, when the reference is missing from a corpus or has no tokens, when a text
        is empty, or when a line is not text; the message names corpus, language and line.
        """
        began = time.perf_counter()
        report = progress or (lambda message, fraction: None)
        units = self._units(corpora)
        encoders = [
            AuditEncoder(name, tokenizer, round_trip=self.round_trip, examples=self.examples)
            for name, tokenizer in self.tokenizers.items()
        ]
        used = {encoder.name: np.zeros(encoder.size, dtype=bool) for encoder in encoders}
        counting = time.perf_counter()
        with ExitStack() as stack:
            for encoder in encoders:
                stack.enter_context(encoder.ready())
            if self.engine == "ray":
                count_by_ray(units, encoders, used, self.batch, report, self.workers)
            else:
                count_locally(units, encoders, used, self.batch, report)
            counting = time.perf_counter() - counting
            self._check(units)
            notes = _notes(units)
            words = {encoder.name: self._words(encoder, units, notes) for encoder in encoders}
            samples = self._samples(units, encoders)
            vocabularies = {e.name: audit_vocabulary(e, used[e.name]) for e in encoders} if self.vocabulary else {}
        rows = self._rows(units, encoders, words)
        streamed = sum(t.encode_seconds + t.decode_seconds for unit in units for t in unit.tallies.values())
        inside = streamed + sum(encoder.seconds for encoder in encoders)
        facts = {
            "reference": self.reference, "engine": self.engine, "seconds": time.perf_counter() - began,
            "counting_seconds": counting, "tokenizer_seconds": inside,
            "tokenizer_counting_seconds": streamed, "resamples": self.resamples,
            "confidence": self.confidence,
        }  # fmt: skip
        return AuditReport(
            rows=tuple(rows),
            vocabularies=vocabularies,
            spreads=tuple(_spreads(rows)),
            failures=tuple(_failures(units)),
            samples=tuple(samples),
            notes=tuple(notes),
            facts=facts,
        )

    def _units(self, corpora: Mapping[str, Mapping[str, Lines] | Lines]) -> list[Unit]:
        if not corpora:
            raise ValueError("corpora must hold at least one corpus")
        units: list[Unit] = []
        for corpus, content in corpora.items():
            if isinstance(content, str):
                raise TypeError(f"corpora[{corpus!r}] must be lines or a mapping of languages to lines, got one string")
            if not isinstance(content, Mapping):
                units.append(Unit(corpus, "", content))
                continue
            if self.reference not in content:
                hint = suggest(self.reference, content)
                raise ValueError(
                    f"reference={self.reference!r} is not a language of corpus {corpus!r}{hint}: {', '.join(content)}"
                )
            units.extend(Unit(corpus, language, lines) for language, lines in content.items())
        return units

    def _check(self, units: Sequence[Unit]) -> None:
        sizes: dict[str, dict[str, int]] = {}
        for unit in units:
            if not unit.text.characters.any():
                raise ValueError(f"{unit.where} holds no text ({unit.text.lines} lines)")
            if unit.language:
                sizes.setdefault(unit.corpus, {})[unit.language] = unit.text.lines
        for corpus, counts in sizes.items():
            odd = {language: count for language, count in counts.items() if count != counts[self.reference]}
            if odd:
                raise ValueError(
                    f"corpus {corpus!r} is not parallel: {self.reference!r} has {counts[self.reference]} lines, but "
                    + ", ".join(f"{language!r} {count}" for language, count in odd.items())
                )

    def _words(self, encoder: AuditEncoder, units: Sequence[Unit], notes: list[str]) -> dict[tuple[str, str], tuple]:
        """(encoding counts or None, costly words) by unit."""
        if not self.words:
            return {}
        try:
            spellings = Spellings(ByteVocabulary.of(encoder.backend))
        except (UnsupportedModelError, ValueError) as error:
            notes.append(f"{encoder.name}: numbers of encodings are left out, because {_reason(error)}")
            spellings = None
        found = {}
        for unit in units:
            words = frequent_words(unit.head, self.words)
            counts = encoding_counts(words, spellings) if spellings else None
            found[unit.corpus, unit.language] = (counts, tuple(costly_words(words, encoder)))
        return found

    def _samples(self, units: Sequence[Unit], encoders: Sequence[AuditEncoder]) -> list[SampleLine]:
        """One line per unit; in a parallel corpus the line that suits the reference language."""
        chosen = {unit.corpus: sample_line(unit.head) for unit in units if not unit.language or unit.language == self.reference}
        samples = []
        for unit in units:
            number = chosen[unit.corpus]
            if number is None or number >= len(unit.head):
                continue
            text = unit.head[number]
            spans = {encoder.name: token_spans(text, encoder) for encoder in encoders}
            samples.append(SampleLine(unit.corpus, unit.language, number + 1, text, spans))
        return samples

    def _rows(
        self, units: Sequence[Unit], encoders: Sequence[AuditEncoder], words: Mapping[str, Mapping[tuple[str, str], tuple]]
    ) -> list[AuditRow]:
        rows = []
        for corpus in dict.fromkeys(unit.corpus for unit in units):
            members = [unit for unit in units if unit.corpus == corpus]
            draws = self._draws(members, encoders)
            for encoder in encoders:
                premiums, sizes = self._premiums(members, encoder.name)
                for unit in members:
                    known = words[encoder.name].get((unit.corpus, unit.language), (None, ()))
                    rows.append(_row(unit, encoder.name, self.reference, premiums, sizes, draws, known, self.confidence))
        return rows

    def _premiums(self, members: Sequence[Unit], name: str) -> tuple[dict[str, float], dict[str, float]]:
        if not members[0].language:
            return {}, {}
        counts = {unit.language: int(unit.tallies[name].tokens.sum()) for unit in members}
        if counts[self.reference] == 0:
            raise ValueError(f"tokenizer {name!r} makes no token of the reference {self.reference!r} of {members[0].where}")
        sizes = {unit.language: int(unit.text.bytes.sum()) for unit in members}
        return token_premium(counts, self.reference), token_premium(sizes, self.reference)

    def _draws(self, members: Sequence[Unit], encoders: Sequence[AuditEncoder]) -> dict[tuple[str, str], np.ndarray]:
        """Resampled totals [resamples] by (what, language): the same lines for all languages and tokenizers."""
        blocks = min(BLOCKS, members[0].text.lines)
        columns: dict[tuple[str, str], np.ndarray] = {}
        for unit in members:
            columns["bytes", unit.language] = unit.text.bytes[:blocks]
            columns["characters", unit.language] = unit.text.characters[:blocks]
            for encoder in encoders:
                columns[f"tokens {encoder.name}", unit.language] = unit.tallies[encoder.name].tokens[:blocks]
        named = {str(number): column for number, column in enumerate(columns.values())}
        if blocks < 2:
            return dict.fromkeys(columns, np.full(self.resamples, np.nan))
        totals = bootstrap_totals(named, resamples=self.resamples, seed=self.seed)
        return {key: totals[:, number] for number, key in enumerate(columns)}


def _row(
    unit: Unit,
    name: str,
    reference: str,
    premiums: Mapping[str, float],
    sizes: Mapping[str, float],
    draws: Mapping[tuple[str, str], np.ndarray],
    known: tuple[tuple[float, float] | None, tuple[tuple[str, int], ...]],
    confidence: float,
) -> AuditRow:
    tally, text = unit.tallies[name], unit.text
    tokens, characters, size = int(tally.tokens.sum()), int(text.characters.sum()), int(text.bytes.sum())
    code, what = unit.language, f"tokens {name}"
    density = _interval(draws[what, code], draws["characters", code], confidence)
    premium = corrected = (None, None)
    if code:
        ratio = _quotient(draws[what, code], draws[what, reference])
        premium = _interval(ratio, np.ones_like(ratio), confidence)
        bytes_ratio = _quotient(draws["bytes", code], draws["bytes", reference])
        corrected = _interval(ratio, bytes_ratio, confidence)
    alternatives, costly = known
    return AuditRow(
        tokenizer=name, corpus=unit.corpus, language=code, lines=text.lines, bytes=size, characters=characters, tokens=tokens,
        premium=premiums.get(code), premium_low=premium[0], premium_high=premium[1], byte_premium=sizes.get(code),
        corrected=premiums[code] / sizes[code] if code else None, corrected_low=corrected[0], corrected_high=corrected[1],
        tokens_per_character=tokens / characters, tokens_per_character_low=density[0], tokens_per_character_high=density[1],
        characters_per_token=characters / tokens if tokens else 0.0,
        failures=sum(tally.kinds.values()), failure_kinds=dict(tally.kinds), unknown=tally.unknown,
        ambiguous_share=alternatives[0] if alternatives else None, encoding_bits=alternatives[1] if alternatives else None,
        costly_words=costly, megabytes_per_second=size / 1e6 / max(tally.encode_seconds, 1e-9),
    )  # fmt: skip


def _notes(units: Sequence[Unit]) -> list[str]:
    """How files were read where that is not plain, and which corpora have too few lines for an interval."""
    notes = [unit.source.note for unit in units if isinstance(unit.source, LineFile) and unit.source.note]
    single = list(dict.fromkeys(unit.corpus for unit in units if unit.text.lines == 1))
    return notes + [f"corpus {corpus!r} has one line: nothing to resample, so there are no intervals" for corpus in single]


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full_like(above, np.nan, dtype=np.float64), where=below > 0)


def _interval(above: np.ndarray, below: np.ndarray, confidence: float) -> tuple[float | None, float | None]:
    """Percentile interval of a quotient of resampled totals; none where a resample leaves nothing to divide by.

    Nor is there one for a single line, of which every resample is the same (its draws are given as nan).
    """
    ratio = _quotient(above, below)
    if not np.isfinite(ratio).all():
        return None, None
    low, high = np.quantile(ratio, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def _spreads(rows: Sequence[AuditRow]) -> list[Spread]:
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        if row.language:
            groups.setdefault((row.tokenizer, row.corpus), {})[row.language] = row.tokens
    found = []
    for (tokenizer, corpus), counts in groups.items():
        if len(counts) < 2 or min(counts.values()) == 0:
            continue
        spread = dispersion(counts)
        cheapest, dearest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        found.append(
            Spread(tokenizer, corpus, len(counts), spread.max_over_min, spread.coefficient_of_variation, cheapest, dearest)
        )
    return found


def _failures(units: Sequence[Unit]) -> list[Failure]:
    return [
        Failure(name, unit.corpus, unit.language, number + 1, kind, text, returned)
        for unit in units
        for name, tally in unit.tallies.items()
        for number, kind, text, returned in tally.failures
    ]


def _reason(error: Exception) -> str:
    return str(error).split("because ")[-1].split("; supported")[0]
