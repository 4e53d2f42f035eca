"""``tokenry train tokenizer``: a tokenizer per language, of one size or of sizes that make the languages pay alike."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Algorithm(StrEnum):
    """How a tokenizer is trained."""

    bpe = "bpe"
    superword = "superword"


def train_tokenizers(
    languages: Annotated[str | None, typer.Option(help="Comma-separated; default all of the corpus.")] = None,
    corpus: Annotated[
        str, typer.Option(help="django, debian-installer, libreoffice-help, or a folder of aligned files (LANGUAGE.txt ...).")
    ] = "libreoffice-help",
    vocab_size: Annotated[int, typer.Option(min=257, help="Entries of every language's vocabulary.")] = 4096,
    even: Annotated[
        bool, typer.Option("--even", help="Choose a size per language so that all need about as many tokens.")
    ] = False,
    no_dearer: Annotated[
        bool, typer.Option("--no-dearer", help="With --even: no more tokens over all languages than with one size.")
    ] = False,
    algorithm: Annotated[Algorithm, typer.Option(help="bpe, or superword: tokens across spaces.")] = Algorithm.bpe,
    sizes: Annotated[
        str | None, typer.Option(help="Sizes measured for --even; default seven from V/8 to 4V. They bound the result.")
    ] = None,
    multiple: Annotated[int, typer.Option(min=1, help="Sizes of --even are multiples of this.")] = 1,
    field: Annotated[str, typer.Option(help="Key of the text in .jsonl files.")] = "text",
    reference: Annotated[str, typer.Option(help="Language that premiums are relative to.")] = "en",
    seed: Annotated[int, typer.Option(min=0, help="Of the split of the lines.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for LANGUAGE/tokenizer.json and report.json.")] = Path("tokenizers"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace what an earlier run left in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON instead of a table.")] = False,
) -> None:
    """Train a byte-level tokenizer per language on aligned lines; tokens are counted on lines that nothing has seen."""
    import json

    from tokenry.cli.console import progress, say_json
    from tokenry.core.checkpoint import write_text
    from tokenry.lab.compare.audit_sources import find_corpora
    from tokenry.lab.compare.even import EvenSettings, train_languages

    if no_dearer and not even:
        raise ValueError("--no-dearer is about the sizes of --even, which is not given")
    if (out / "report.json").exists() and not fresh:
        raise ValueError(f"--out holds tokenizers already ({out / 'report.json'}): another folder, or --fresh replaces them")
    chosen = tuple(_size(part) for part in sizes.split(",") if part.strip()) if sizes else None
    settings = EvenSettings(
        vocab_size=vocab_size, even=even, no_dearer=no_dearer, algorithm=algorithm.value, sizes=chosen, multiple=multiple,
        seed=seed,
    )  # fmt: skip
    codes = [code.strip() for code in languages.split(",") if code.strip()] if languages else None
    found = find_corpora(
        [corpus], languages=codes, reference=reference, domain_mb=0.0, say=lambda text: typer.echo(text, err=True), field=field
    )
    lines = next(iter(found.values()), None)
    if not isinstance(lines, dict):
        raise ValueError(f"--corpus must be parallel text (a folder of aligned files, or a named one), got {corpus!r}")
    if even and len(lines) < 2:
        raise ValueError(f"--even needs at least two languages, got {', '.join(lines)}")
    ordered = [reference, *(code for code in lines if code != reference)]
    with progress("train") as report:
        result = train_languages({code: list(lines[code]) for code in ordered}, settings, out, report)
    write_text(out / "report.json", json.dumps(result, indent=1) + "\n")
    if as_json:
        say_json(result)
    else:
        _table(result, reference)
        typer.echo(f"tokenizers: {out}/LANGUAGE/tokenizer.json\nreport: {out / 'report.json'}")


def _size(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"--sizes must be whole numbers with commas between them, got {text.strip()!r}")
    return int(text)


def _table(result: dict[str, Any], reference: str) -> None:
    from tokenry.cli.console import table

    arms = [name for name in ("one size", "own size") if name in result]
    columns = ["language", *(f"{arm}{what}" for arm in arms for what in ("", ": tokens", ": premium"))]
    columns += ["target"] if "reach" in result else []
    rows = []
    for code in result["one size"]["tokens"]:
        cells = [
            text
            for arm in arms
            for text in (
                f"{result[arm]['sizes'][code]:,}", f"{result[arm]['tokens'][code]:,}", f"{result[arm]['premium'][code]:.2f}"
            )
        ]  # fmt: skip
        rows.append((code, *cells, *([result["reach"][code]] if "reach" in result else [])))
    held = result["lines"]["testing"]
    table(
        f"{held} lines that nothing has seen; premium over {reference!r}", columns, rows, right=columns[1 : 1 + 3 * len(arms)]
    )
    for arm in arms:
        found = result[arm]
        typer.echo(
            f"{arm}: standard deviation over mean {found['coefficient of variation']:.3f}, "
            f"dearest over cheapest {found['dearest over cheapest']:.2f}, {sum(found['tokens'].values()):,} tokens in all"
        )
    if "own size" in result and sum(result["own size"]["tokens"].values()) > sum(result["one size"]["tokens"].values()):
        typer.echo("evenness is paid for: more tokens in all than with one size; --no-dearer keeps to that number")
