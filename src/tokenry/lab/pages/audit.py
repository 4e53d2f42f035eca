"""The page of an audit: premiums as a heat grid, token boundaries on sentences, costly words, failures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tokenry.core.checkpoint import write_text
from tokenry.lab.pages.frame import text_of
from tokenry.lab.sources.language_names import language_name
from tokenry.text.audit import AuditReport

FAILURES = 4  # shown per tokenizer and kind


def write(report: AuditReport, out: Path) -> Path:
    """Write ``audit.json``, ``audit.csv`` and ``index.html`` into `out`; returns the page."""
    write_text(out / "audit.json", report.to_json() + "\n")
    write_text(out / "audit.csv", report.to_csv())
    write_text(out / "index.html", render(report))
    return out / "index.html"


def render(report: AuditReport) -> str:
    """The page: one HTML file that asks for nothing outside itself."""
    names = list(dict.fromkeys(row.tokenizer for row in report.rows))
    return text_of(
        "audit.html.j2", heat=_heat, names=names, reference=report.facts["reference"],
        corpora=[_grid(report, corpus, names) for corpus in dict.fromkeys(r.corpus for r in report.rows if r.language)],
        domains=[_domain(report, corpus, names) for corpus in dict.fromkeys(r.corpus for r in report.rows if not r.language)],
        tokenizers=[_tokenizer(report, name) for name in names], failures=_failures(report), notes=report.notes,
        samples={"samples": _samples(report), "names": names}, facts=_facts(report),
    )  # fmt: skip


def _heat(premium: float) -> str:
    """Strength of a cell's colour: 0 at a premium of 1, 1 at 8 and at 1/8."""
    return f"--heat: {min(1.0, abs(math.log2(premium)) / 3):.3f}" if premium else ""


def _grid(report: AuditReport, corpus: str, names: list[str]) -> dict[str, Any]:
    found = {(row.tokenizer, row.language): row for row in report.rows if row.corpus == corpus}
    codes = dict.fromkeys(code for _, code in found)
    order = sorted(codes, key=lambda code: (-sum(found[name, code].premium or 0.0 for name in names), code))
    rows = []
    for code in order:
        cells = [found[name, code] for name in names]
        rows.append({"code": code, "name": language_name(code), "bytes": cells[0].byte_premium, "cells": cells})
    return {"name": corpus, "rows": rows, "lines": rows[0]["cells"][0].lines, "languages": len(rows)}


def _domain(report: AuditReport, corpus: str, names: list[str]) -> dict[str, Any]:
    cells = [report.row(name, corpus) for name in names]
    return {"name": corpus, "characters": cells[0].characters, "best": min(c.tokens for c in cells), "cells": cells}


def _tokenizer(report: AuditReport, name: str) -> dict[str, Any]:
    rows = [row for row in report.rows if row.tokenizer == name]
    bits = [row.encoding_bits for row in rows if row.encoding_bits is not None]
    seconds = sum(row.bytes / 1e6 / row.megabytes_per_second for row in rows)
    return {
        "name": name, "vocabulary": report.vocabularies.get(name), "failures": sum(row.failures for row in rows),
        "lines": sum(row.lines for row in rows), "unknown": sum(row.unknown for row in rows),
        "bits": sum(bits) / len(bits) if bits else None, "speed": sum(row.bytes for row in rows) / 1e6 / seconds,
        "spreads": [spread for spread in report.spreads if spread.tokenizer == name],
    }  # fmt: skip


def _failures(report: AuditReport) -> list[dict[str, str]]:
    seen: dict[tuple[str, str], int] = {}
    shown = []
    for failure in report.failures:
        key = failure.tokenizer, failure.kind
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= FAILURES:
            where = f"{failure.corpus} {failure.language} line {failure.line}"
            shown.append(
                {
                    "tokenizer": failure.tokenizer, "kind": failure.kind, "where": " ".join(where.split()),
                    "text": _visible(failure.text), "returned": _visible(failure.returned),
                }
            )  # fmt: skip
    return sorted(shown, key=lambda row: (row["tokenizer"], row["kind"]))


def _visible(text: str) -> str:
    """Control characters as escapes, everything else as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _samples(report: AuditReport) -> list[dict[str, Any]]:
    costly = {(row.corpus, row.language, row.tokenizer): row.costly_words for row in report.rows}
    return [
        {
            "label": f"{s.corpus}: {language_name(s.language)} ({s.language})" if s.language else s.corpus,
            "line": s.line, "text": s.text, "spans": s.spans,
            "words": {name: costly.get((s.corpus, s.language, name), ()) for name in s.spans},
        }
        for s in report.samples
    ]  # fmt: skip


def _facts(report: AuditReport) -> dict[str, str]:
    facts = report.facts
    return {
        "reference": str(facts["reference"]),
        "intervals": f"{facts['confidence']:.0%}, {facts['resamples']} resamples of lines",
        "engine": str(facts["engine"]),
        "seconds": f"{facts['seconds']:.1f}, of which {facts['tokenizer_seconds']:.1f} inside the tokenizers",
        "data": "audit.json, audit.csv beside this page",
    }
