"""The static report: a leaderboard of all claims and a page per system; plain files, no outside requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenry.catalog import systems
from tokenry.lab.evidence.results import Result, load_all
from tokenry.lab.pages.figure import arm_bars
from tokenry.lab.pages.frame import render

_SCALES = ("paper", "small", "smoke")


def build(results: Path, out: Path) -> Path:
    """Write ``index.html`` and ``systems/SLUG.html`` under `out` from the result files in `results`; returns the index.

    Raises:
        FileNotFoundError: there is no such folder.
        ResultFileError: a result file is damaged; the message names it.
    """
    if not results.is_dir():
        raise FileNotFoundError(f"--results must be a folder of result files, got {results} (run: tokenry reproduce all)")
    found: dict[str, list[Result]] = {}
    for result in load_all(results):
        found.setdefault(result.system, []).append(result)
    for several in found.values():
        several.sort(key=lambda r: _SCALES.index(r.scale))
    known = {row.slug: row for row in systems()}
    rows = [_leader(known[slug], several) for slug, several in sorted(found.items()) if slug in known]
    planned = [row for row in systems() if row.slug not in found]
    render("index.html.j2", out / "index.html", rows=rows, planned=planned)
    for slug, several in found.items():
        if slug in known:
            evidence = [_evidence(result) for result in several]
            page = out / "systems" / f"{slug}.html"
            render("system.html.j2", page, system=known[slug], evidence=evidence, root="../")
    return out / "index.html"


def _leader(system: Any, several: list[Result]) -> dict[str, Any]:
    best = next((r for r in several if r.complete), several[0])
    return {
        "system": system, "scale": best.scale, "verdict": best.verdict or "incomplete", "statement": best.statement,
        "reason": best.reason, "seeds": len(best.seeds), "seconds": best.seconds,
    }  # fmt: skip


def _evidence(result: Result) -> dict[str, Any]:
    means = result.arm_means()
    facts: dict[str, list[Any]] = {}
    for _, row in sorted(result.seeds.items()):
        for name, value in row["facts"].items():
            facts.setdefault(name, []).append(value)
    return {
        "result": result, "means": sorted(means.items(), key=lambda item: -item[1]), "bars": arm_bars(means, result.metric),
        "facts": {name: ", ".join(_short(v) for v in values) for name, values in sorted(facts.items())},
        "verdict": result.verdict or "incomplete",
    }  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
