"""An audit as Markdown: the tables of a page that is committed or pasted somewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenry.lab.sources.language_names import language_name
from tokenry.text.audit import AuditReport, AuditRow


def markdown(report: AuditReport, *, title: str, command: str) -> str:
    """The page: premiums and premiums over bytes by language for every parallel corpus, then the tokenizers side by side.

    Raises ValueError for a report without a parallel corpus.
    """
    names = list(dict.fromkeys(row.tokenizer for row in report.rows))
    if not any(row.language for row in report.rows):
        raise ValueError("an audit as Markdown needs a parallel corpus, got domains alone")
    reference = language_name(report.facts["reference"])
    lead = (
        f"What a text costs in tokens, per language and tokenizer, relative to the same text in {reference}: "
        "at 2.00 a language pays twice, for half as much in a context window. "
        "Fewer tokens are cheaper, not better: nothing here says how good a model is."
    )
    parts = [f"# {title}", lead, f"Made by this command, as it stands:\n\n```sh\n{_wrapped(command)}\n```"]
    for corpus in dict.fromkeys(row.corpus for row in report.rows if row.language):
        parts += _corpus(report, corpus, names, reference)
    parts += ["## Tokenizers", _tokenizers(report, names)]
    return "\n\n".join(parts) + "\n"


def _wrapped(command: str, width: int = 80) -> str:
    lines = [""]
    for word in command.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) + 1 > width:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _corpus(report: AuditReport, corpus: str, names: Sequence[str], reference: str) -> list[str]:
    rows = {(row.tokenizer, row.language): row for row in report.rows if row.corpus == corpus}
    codes = sorted(
        dict.fromkeys(code for _, code in rows),
        key=lambda code: (-sum(rows[name, code].premium or 0.0 for name in names), code),
    )
    first = rows[names[0], codes[0]]
    widths = [(row.premium_high or 0.0) - (row.premium_low or 0.0) for row in rows.values() if row.premium_low is not None]
    head = f"The same {first.lines:,} lines in {len(codes)} languages ({corpus}). Dearest languages first."
    if widths:
        head += f" {report.facts['confidence']:.0%} intervals over resampled lines are at most {max(widths):.2f} wide."
    table = _grid(rows, codes, names, lambda row: _marked(row.premium, row))
    over = _grid(rows, codes, names, lambda row: _marked(row.corrected, row))
    return [
        f"## Tokens for what takes one token in {reference}",
        f"{head} A star: with unknown tokens, which make the count too small.",
        table,
        "## The same, over the bytes of the text",
        f"Tokens over those of {reference}, divided by bytes over those of {reference}: "
        "what the tokenizer adds to the length of the text itself. Below 1 it costs less than its bytes.",
        over,
    ]


def _marked(value: float | None, row: AuditRow) -> str:
    return "" if value is None else f"{value:.2f}" + ("\\*" if row.unknown else "")


def _grid(
    rows: dict[tuple[str, str], AuditRow], codes: Sequence[str], names: Sequence[str], cell: Callable[[AuditRow], str]
) -> str:
    body = [
        [language_name(code), f"{rows[names[0], code].byte_premium:.2f}", *(cell(rows[name, code]) for name in names)]
        for code in codes
    ]
    return _table(["language", "bytes", *names], body)


def _tokenizers(report: AuditReport, names: Sequence[str]) -> str:
    body = []
    for name in names:
        rows = [row for row in report.rows if row.tokenizer == name]
        star = "\\*" if any(row.unknown for row in rows) else ""
        vocabulary = report.vocabularies.get(name)
        spreads = [spread for spread in report.spreads if spread.tokenizer == name]
        unequal = [f"{s.max_over_min:.1f}{star} ({language_name(s.dearest)} / {language_name(s.cheapest)})" for s in spreads]
        body.append(
            [
                name,
                f"{vocabulary.size:,}" if vocabulary else "",
                f"{vocabulary.unused_share:.0%}" if vocabulary else "",
                f"{sum(row.tokens for row in rows):,}",
                ", ".join(unequal),
                ", ".join(f"{s.coefficient_of_variation:.2f}" for s in spreads),
                f"{sum(row.failures for row in rows) / sum(row.lines for row in rows):.1%}",
                f"{sum(row.unknown for row in rows):,}",
            ]
        )
    columns = [
        "tokenizer",
        "ids",
        "never used",
        "tokens",
        "dearest / cheapest",
        "spread",
        "lines not returned",
        "unknown tokens",
    ]
    text = _table(columns, body, left=("tokenizer", "dearest / cheapest"))
    return f"{text}\n\n*Spread*: standard deviation over mean of the languages' token counts."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ("language",)) -> str:
    rule = [":---" if column in left else "---:" for column in columns]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))
