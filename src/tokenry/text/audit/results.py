"""What an audit found: rows, vocabularies, failures, samples; as a frame, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tokenry.errors import optional
from tokenry.text.audit.vocabulary import VocabularyAudit


@dataclass(frozen=True)
class AuditRow:
    """One tokenizer on one language of a parallel corpus, or on one domain (`language` is then "").

    Attributes:
        tokenizer, corpus, language: what was counted.
        lines, bytes, characters, tokens: sizes of the text and its token count.
        premium: tokens over those of the reference language for the same content; `low` and `high` bound it.
        byte_premium: bytes over those of the reference language.
        corrected: premium over byte premium, what is left after the length of the text itself; with bounds.
        tokens_per_character, characters_per_token: counted over the whole text; the first with bounds.
        failures: lines that do not come back from decode(encode(line)); `failure_kinds` splits them.
        unknown: unknown tokens.
        ambiguous_share, encoding_bits: over the frequent words, the share with more than one encoding and the mean log2
            of the number of encodings; None where tokens do not spell bytes.
        costly_words: (word, tokens) of the frequent words with most tokens per character.
        megabytes_per_second: text per second inside the encoder.
    """

    tokenizer: str
    corpus: str
    language: str
    lines: int
    bytes: int
    characters: int
    tokens: int
    premium: float | None
    premium_low: float | None
    premium_high: float | None
    byte_premium: float | None
    corrected: float | None
    corrected_low: float | None
    corrected_high: float | None
    tokens_per_character: float
    tokens_per_character_low: float | None
    tokens_per_character_high: float | None
    characters_per_token: float
    failures: int
    failure_kinds: dict[str, int]
    unknown: int
    ambiguous_share: float | None
    encoding_bits: float | None
    costly_words: tuple[tuple[str, int], ...]
    megabytes_per_second: float


@dataclass(frozen=True)
class Failure:
    """A line that did not come back: its number from 1, the kind, and both texts around the first difference."""

    tokenizer: str
    corpus: str
    language: str
    line: int
    kind: str
    text: str
    returned: str


@dataclass(frozen=True)
class SampleLine:
    """A line with the characters [start, end) of each of its tokens, for every tokenizer."""

    corpus: str
    language: str
    line: int
    text: str
    spans: dict[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Spread:
    """How unequal the languages of a corpus are under a tokenizer: over their token counts and over their premiums."""

    tokenizer: str
    corpus: str
    languages: int
    max_over_min: float
    coefficient_of_variation: float
    cheapest: str
    dearest: str


@dataclass(frozen=True)
class AuditReport:
    """Everything an audit found; `facts` holds reference, engine, seconds inside the tokenizers and in all."""

    rows: tuple[AuditRow, ...]
    vocabularies: dict[str, VocabularyAudit]
    spreads: tuple[Spread, ...]
    failures: tuple[Failure, ...]
    samples: tuple[SampleLine, ...]
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def row(self, tokenizer: str, corpus: str, language: str = "") -> AuditRow:
        """One row; KeyError when there is none."""
        for row in self.rows:
            if (row.tokenizer, row.corpus, row.language) == (tokenizer, corpus, language):
                return row
        raise KeyError((tokenizer, corpus, language))

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per row: failure kinds and costly words as text."""
        flat = []
        for row in self.rows:
            values = asdict(row)
            values["failure_kinds"] = " ".join(f"{kind}:{number}" for kind, number in sorted(row.failure_kinds.items()))
            values["costly_words"] = " ".join(f"{word}:{number}" for word, number in row.costly_words)
            flat.append(values)
        return flat

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame; MissingDependencyError without pandas."""
        return optional("pandas", "lab").DataFrame(self.to_rows())

    def to_csv(self) -> str:
        """The rows as comma-separated values with a header."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, [item.name for item in fields(AuditRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.to_rows())
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain lists and dictionaries."""
        found = asdict(self)
        for name, vocabulary in self.vocabularies.items():
            found["vocabularies"][name]["unused_share"] = vocabulary.unused_share
        return found

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
