"""``tokenry show SLUG``: one system, its options and the evidence that is on disk."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


def show(
    slug: Annotated[str, typer.Argument(help="System, as in `tokenry list`.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder of result files; default: results/ here, else those that come with tokenry.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    taxonomy: Annotated[bool, typer.Option("--taxonomy", help="The table of tokenizers (audiotokens only).")] = False,
) -> None:
    """Show one system: what it does, its options, its claim and the evidence for it."""
    if taxonomy:
        _show_taxonomy(slug, as_json)
        return
    from tokenry.catalog import system
    from tokenry.cli.console import COMPARISON_COLUMNS, comparison_row, out, say_json, table
    from tokenry.lab.evidence.results import load, result_path, results_folder

    row = system(slug)
    facts: dict[str, Any] = {
        "slug": row.slug, "title": row.title, "arxiv": row.arxiv, "wing": row.wing, "status": row.status, "line": row.line,
        "class": row.entry, "options": _options(row.load()) if row.status != "planned" else {},
        "serves": row.serves, "statement": _statement(row), "evidence": [],
    }  # fmt: skip
    for scale in ("smoke", "small", "paper"):
        path = result_path(results_folder(results), slug, scale)
        if path.exists():
            found = load(path)
            facts["evidence"].append(
                {"scale": scale, "verdict": found.verdict, "reason": found.reason, "comparisons": found.comparisons}
            )
    if as_json:
        say_json(facts)
        return
    console = out()
    console.print(
        f"[bold]{row.slug}[/] ({row.status}, {row.wing} wing)\n{row.title}, arXiv {row.arxiv}\n{row.line}", highlight=False
    )
    if row.status == "planned":
        console.print("Not built yet.")
        return
    console.print(f"class: {facts['class']}\nfor: {row.serves or 'see its own documentation'}", highlight=False)
    if facts["statement"]:
        console.print(f"claim: {facts['statement']}", highlight=False)
    table("options", ["option", "default"], list(facts["options"].items()))
    for entry in facts["evidence"]:
        title = f"evidence at scale {entry['scale']}: {entry['verdict'] or 'incomplete'}"
        table(title, COMPARISON_COLUMNS, [comparison_row(c) for c in entry["comparisons"]])
        if entry["verdict"]:
            console.print(f"{entry['reason']}.", highlight=False)


def _statement(row: Any) -> str:
    try:
        return row.load_claim().statement
    except ValueError:  # planned, or of another distribution and without a claim
        return ""


def _options(cls: Any) -> dict[str, str]:
    if not is_dataclass(cls):
        return {}
    from dataclasses import MISSING

    return {
        f.name: repr(f.default) if f.default is not MISSING else "required" if f.default_factory is MISSING else "computed"
        for f in fields(cls)
    }


def _show_taxonomy(slug: str, as_json: bool) -> None:
    """Print the taxonomy and the benchmarked versions; rates are computed per book.

    Raises:
        ValueError: `slug` is a system without a taxonomy.
    """
    from tokenry.catalog import system
    from tokenry.cli.console import out, say_json, table
    from tokenry.codecs.audio.taxonomy import audio_tokenizers

    if system(slug).slug != "audiotokens":
        raise ValueError(f"--taxonomy belongs to audiotokens, {slug} has none")
    taxonomy, versions = audio_tokenizers(benchmarked=False), audio_tokenizers(benchmarked=True)
    if as_json:
        say_json({"taxonomy": [row.to_dict() for row in taxonomy], "benchmark": [row.to_dict() for row in versions]})
        return
    short = {"speech": "s", "music": "m", "audio": "a"}
    table(
        "taxonomy",
        ["tokenizer", "encoder/decoder", "rep", "quantizer", "objectives", "aux", "domain", "stream"],
        [
            (
                row.name, f"{row.encoder}/{row.decoder}" if row.encoder else "", row.representation, row.quantizer,
                ",".join(row.objectives), ",".join(row.auxiliary), ",".join(short[d] for d in row.domain), _yes(row.streaming),
            )
            for row in taxonomy
        ],
    )  # fmt: skip
    table(
        "benchmarked versions (rates of one book)",
        ["version", "kHz", "frames/s", "codes", "bit/s per book", "M params", "G MACs", "checkpoint"],
        [
            (
                row.version, _number(row.sample_rate, 1000), _number(row.frame_rate), str(row.codebook_size),
                _number(row.bitrate(1)), _number(row.parameters), _number(row.macs), ",".join(row.checkpoints),
            )
            for row in versions
        ],
    )  # fmt: skip
    for row in (*taxonomy, *versions):
        if row.note:
            out().print(f"{row.version or row.name}: {row.note}", highlight=False)


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _number(value: Any, over: float = 1) -> str:
    return "" if value is None else f"{value / over:g}"
