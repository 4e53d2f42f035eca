"""MkDocs hook: fills ``<!-- evidence: slug -->`` and ``<!-- comparison: name -->`` with tables of the committed results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EVIDENCE = re.compile(r"<!-- evidence: (\w+) -->")
COMPARISON = re.compile(r"<!-- comparison: (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the placeholders of one page."""
    markdown = EVIDENCE.sub(lambda m: evidence(m.group(1)), markdown)
    return COMPARISON.sub(lambda m: comparison(m.group(1)), markdown)


def evidence(slug: str) -> str:
    """The evidence of a system as Markdown, largest scale first."""
    parts = []
    for scale in ("paper", "small", "smoke"):
        path = ROOT / "results" / f"{slug}.{scale}.json"
        if path.exists():
            parts.append(_section(json.loads(path.read_text(encoding="utf-8"))))
    return "\n\n".join(parts) or f"No result is committed yet; run `tokenry reproduce {slug}`."


def _section(result: dict[str, Any]) -> str:
    seeds = list(result["seeds"].values())
    arms = list(seeds[0]["arms"])
    means = {a: sum(sum(s["arms"][a]) / len(s["arms"][a]) for s in seeds) / len(seeds) for a in arms}
    seconds = sum(s["seconds"] for s in seeds)
    lines = [
        f"**Scale {result['scale']}: {result['verdict'] or 'incomplete'}** ({len(seeds)} seeds, {seconds:.0f} s, "
        f"{result['environment'].get('device', '')}). {result['statement']}",
        "",
        "| comparison | difference | 95 % interval | margin | p (Holm) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for c in result["comparisons"]:
        interval = f"[{c['low']:+.4f}, {c['high']:+.4f}]"
        lines.append(
            f"| {c['name']} | {c['difference']:+.4f} | {interval} | {c['margin']:+g} | {c['p']:.3f} | {c['verdict']} |"
        )
    lines += ["", f"| arm | {result['metric']} |", "|---|---|"]
    lines += [f"| {arm} | {value:.4f} |" for arm, value in sorted(means.items(), key=lambda item: -item[1])]
    if result["verdict"] not in ("holds", None):
        lines += ["", f"Reason: {result['reason']}."]
    return "\n".join(lines)


def comparison(name: str) -> str:
    """A committed comparison: one line per method, quality at every budget."""
    path = ROOT / "results" / "compare" / f"{name}.json"
    if not path.exists():
        return "No comparison is committed yet; run `tokenry compare pruning` or `tokenry compare audio`."
    body = json.loads(path.read_text(encoding="utf-8"))
    if "codec" in body["rows"][0]:
        return _codecs(body)
    keeps = sorted({row["keep"] for row in body["rows"] if row["keep"] < 1}, reverse=True)
    full = next(row for row in body["rows"] if row["keep"] == 1)
    settings = body["settings"]
    made = f"batch {settings['batch']}, {settings['device']}, positions {settings['positions']}"
    interval = f"[{full['low']:.3f}, {full['high']:.3f}]"
    lines = [
        f"{body['model']}, {body['items']} items of {body['data']}, {made}. "
        f"Without pruning: {body['quality']} {full['quality']:.3f} {interval}. "
        f"Cells: {body['quality']} with 95 % interval, prefill time.",
        "",
        "| method | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " |",
        "|---|" + "---|" * len(keeps),
    ]
    for method in dict.fromkeys(row["method"] for row in body["rows"] if row["keep"] < 1):
        cells = {row["keep"]: row for row in body["rows"] if row["method"] == method}
        shown = [cells[k] for k in keeps]
        texts = [f"{c['quality']:.3f} [{c['low']:.3f}, {c['high']:.3f}], {c['time_ratio']:.2f}x" for c in shown]
        lines.append(f"| {method} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _codecs(body: dict[str, Any]) -> str:
    """A comparison of audio codecs: a table per domain."""
    names = {
        "si_snr": ("SI-SNR, dB", 1), "sdr": ("SDR, dB", 1), "mel": ("mel", 3), "stoi": ("STOI", 3), "wer": ("WER", 3),
        "speaker": ("voice", 3),
    }  # fmt: skip
    lines = []
    for domain, clips in body["clips"].items():
        rows = [row for row in body["rows"] if row["domain"] == domain]
        shown = [key for key in names if any(row[key] is not None for row in rows)]
        lines += [f"**{domain.capitalize()}** ({len(clips)} clips at {body['settings']['rate'] / 1000:g} kHz)", ""]
        lines += [
            "| codec | kbit/s | " + " | ".join(names[key][0] for key in shown) + " | time |",
            "|---" * (len(shown) + 3) + "|",
        ]
        for row in rows:
            cells = []
            for key in shown:
                value, interval, digits = row[key], row.get(f"{key}_interval"), names[key][1]
                between = (
                    f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval and key in ("si_snr", "mel") else ""
                )
                cells.append("" if value is None else f"{value:.{digits}f}{between}")
            lines.append(f"| {row['codec']} | {row['bitrate'] / 1000:g} | " + " | ".join(cells) + f" | {row['time']:.3f}x |")
        lines.append("")
    return "\n".join(lines)
