"""``tokenry audit TOKENIZER...``: what tokenizers cost each language and domain, and where they lose text."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tokenry.text.audit import AuditReport, AuditRow


class Format(StrEnum):
    """How the audit is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    markdown = "markdown"


class Engine(StrEnum):
    """Where the counting runs."""

    local = "local"
    ray = "ray"


def audit(
    tokenizers: Annotated[
        list[str],
        typer.Argument(
            help="Names of the assets (`all`, smollm2, gpt2, o200k, llama3, gemma3, qwen3 ...), hub ids, folders, or files: "
            "tokenizer.json, .tiktoken, .model."
        ),
    ],
    corpus: Annotated[
        list[str] | None,
        typer.Option(
            help="django, debian-installer, libreoffice-help, legal, financial, technical, general, literature, email, code; a "
            "folder of aligned files (LANGUAGE.txt or .jsonl, also packed: .gz, .zst); such a file. May be given several times."
        ),
    ] = None,
    field: Annotated[str, typer.Option(help="Key of the text in .jsonl files.")] = "text",
    languages: Annotated[str | None, typer.Option(help="Comma-separated languages of the parallel corpora.")] = None,
    reference: Annotated[str, typer.Option(help="Language that premiums are relative to.")] = "en",
    output: Annotated[Format, typer.Option("--format", help="table, json, csv or markdown, on stdout.")] = Format.table,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.json, audit.csv and a page, index.html.")] = None,
    engine: Annotated[Engine, typer.Option(help="local, or ray for large corpora; the same numbers.")] = Engine.local,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of --engine ray; default one per core.")] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="Split of .tiktoken files that are not well known: gpt2, cl100k, o200k, qwen, or a regex."),
    ] = None,
    domain_mb: Annotated[
        float, typer.Option(min=0.0, help="Million characters of each named domain that are used; 0 for all.")
    ] = 1.0,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
) -> None:
    """Audit tokenizers side by side: premiums per language, round trips, vocabulary waste, numbers of encodings, speed."""
    import os

    from tokenry.cli.console import progress
    from tokenry.extras import require
    from tokenry.lab.compare.audit_sources import find_corpora, find_tokenizers
    from tokenry.text.audit import TokenizerAudit

    require(*(["lab"] if out else []), *(["scale"] if engine is Engine.ray else []))
    codes = [code.strip() for code in languages.split(",") if code.strip()] if languages else None
    corpora = find_corpora(corpus or [], languages=codes, reference=reference, domain_mb=domain_mb, say=_note, field=field)
    found = find_tokenizers(tokenizers, pattern=pattern, say=_note)
    job = TokenizerAudit(
        found, reference=reference, engine=engine.value, workers=workers or os.cpu_count() or 1, resamples=resamples,
        seed=seed,
    )  # fmt: skip
    with progress("audit") as report:
        result = job.run(corpora, progress=report)
    if output is Format.json:
        sys.stdout.write(result.to_json() + "\n")
    elif output is Format.csv:
        sys.stdout.write(result.to_csv())
    elif output is Format.markdown:
        from tokenry.lab.pages.audit_markdown import markdown

        chosen = [*(word for name in corpus or () for word in ("--corpus", name)), "--reference", reference]
        chosen += ["--languages", languages] if languages else []
        command = shlex.join(["tokenry", "audit", *tokenizers, *chosen, "--format", "markdown"])
        title = f"What {len(found)} tokenizers cost in {len({row.language for row in result.rows})} languages"
        sys.stdout.write(markdown(result, title=title, command=command))
    else:
        _tables(result)
    for note in result.notes:
        _note(note)
    if out is not None:
        from tokenry.lab.pages.audit import write

        typer.echo(f"page: {write(result, out)}", err=output is not Format.table)


def _note(message: str) -> None:
    typer.echo(f"note: {message}", err=True)


def _tables(result: AuditReport) -> None:
    from tokenry.cli.console import table

    names = list(dict.fromkeys(row.tokenizer for row in result.rows))
    reference = result.facts["reference"]
    parallel = dict.fromkeys(row.corpus for row in result.rows if row.language)
    for corpus in parallel:
        grid = {(row.tokenizer, row.language): row for row in result.rows if row.corpus == corpus}
        codes = sorted({code for _, code in grid}, key=lambda code: -sum(grid[name, code].premium or 0 for name in names))
        cells = []
        for code in codes:
            found = [grid[name, code] for name in names]
            cells.append((code, f"{found[0].byte_premium:.2f}", *map(_cost, found)))
        lines = grid[names[0], reference].lines
        title = f"{corpus}, {lines} lines: premium over {reference!r} (premium over bytes); *: has unknown tokens"
        table(title, ["language", "bytes", *names], cells, right=["bytes", *names])
    domains = dict.fromkeys(row.corpus for row in result.rows if not row.language)
    if domains:
        cells = [
            (
                domain,
                f"{result.row(names[0], domain).characters / 1e6:.2f} M",
                *(f"{result.row(name, domain).characters_per_token:.2f}" for name in names),
            )
            for domain in domains
        ]
        table("domains: characters per token", ["domain", "characters", *names], cells, right=["characters", *names])
    table("tokenizers", *_summary(result, names))
    for name in names:
        for failure in [f for f in result.failures if f.tokenizer == name][:3]:
            where = f"{failure.corpus} {failure.language}".strip()
            typer.echo(
                f"{name}, {where}, line {failure.line} ({failure.kind}): {failure.text!r} came back as {failure.returned!r}"
            )


def _cost(row: AuditRow) -> str:
    """Premium and, in brackets, premium over bytes; a star where unknown tokens make the count too small."""
    return f"{row.premium:.2f} ({row.corrected:.2f})" + ("*" if row.unknown else "")


def _summary(result: AuditReport, names: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["tokenizer", "ids", "unused", "unreachable", "repeated", "dearest over cheapest", "lines not returned",
               "log2 encodings of a word", "MB/s"]  # fmt: skip
    cells = []
    for name in names:
        rows = [row for row in result.rows if row.tokenizer == name]
        vocabulary = result.vocabularies.get(name)
        spread = ", ".join(f"{s.dearest}/{s.cheapest} {s.max_over_min:.1f}x" for s in result.spreads if s.tokenizer == name)
        bits = [row.encoding_bits for row in rows if row.encoding_bits is not None]
        seconds = sum(row.bytes / 1e6 / row.megabytes_per_second for row in rows)
        cells.append(
            (
                name,
                *((f"{vocabulary.size:,}", f"{vocabulary.unused_share:.0%}", f"{vocabulary.unreachable:,}",
                   f"{vocabulary.repeated:,}") if vocabulary else ("", "", "", "")),
                spread,
                f"{sum(row.failures for row in rows):,} of {sum(row.lines for row in rows):,}",
                f"{sum(bits) / len(bits):.1f}" if bits else "-",
                f"{sum(row.bytes for row in rows) / 1e6 / seconds:.1f}",
            )
        )  # fmt: skip
    return columns, cells
