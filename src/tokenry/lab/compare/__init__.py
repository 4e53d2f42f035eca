"""The main job: methods x budgets on one model and data, with quality, time, memory and pictures of what was kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenry.core.progress import Progress
from tokenry.lab.compare.rows import Bench, Row, Settings
from tokenry.lab.evidence.claim import bootstrap_difference
from tokenry.lab.evidence.results import environment, write_atomic


def compare_pruning(settings: Settings, out: Path, progress: Progress) -> dict[str, Any]:
    """Measure every method at every budget, write ``compare.json``, ``quality.png`` and ``index.html`` under `out`.

    Rows are written as they are measured; a run with the same settings continues where the last one stopped.
    """
    from tokenry.lab.pages.compare import write_page
    from tokenry.lab.pages.figure import quality_figure

    progress("loading", 0.0)
    kind = _bench_class(settings)
    methods = settings.methods or kind.default_methods
    kind.check(methods)
    bench: Bench = kind(settings)
    path = out / "compare.json"
    result = _resume(path, settings, bench)
    done = {(row["method"], row["keep"]) for row in result["rows"]}
    jobs = [(m, k) for m in methods for k in ((1.0,) if m in ("none", "full") else settings.keeps)]
    for number, (method, keep) in enumerate(jobs):
        if (method, keep) not in done:
            label, span = f"{method} {keep:g}", 1.0 / len(jobs)
            progress(label, number * span)
            row = bench.measure(method, keep, lambda f, at=number * span, s=span, t=label: progress(t, at + f * s))
            result["rows"].append(_summary(method, keep, row))
            result["maps"] = _merged(result["maps"], bench.maps())
            write_atomic(path, json.dumps(result) + "\n")
    result["environment"] = environment(settings.device)
    order = {job: i for i, job in enumerate(jobs)}
    result["rows"].sort(key=lambda r: order.get((r["method"], r["keep"]), len(order)))
    write_atomic(path, json.dumps(result) + "\n")
    figure = quality_figure(result, out / "quality.png")
    write_page(result, figure, out / "index.html")
    return result


def _bench_class(settings: Settings) -> Any:
    if settings.data is not None and settings.data.suffix in (".txt", ".md"):
        from tokenry.lab.compare.cache import KVBench

        return KVBench
    from tokenry.lab.compare.vlm import VisionBench

    return VisionBench


def _resume(path: Path, settings: Settings, bench: Bench) -> dict[str, Any]:
    fresh = {
        "settings": settings.to_dict(), "model": bench.model_name, "data": bench.data_name, "quality": bench.quality,
        "items": bench.count(), "rows": [], "maps": {}, "environment": {},
    }  # fmt: skip
    if not path.exists():
        return fresh
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return fresh
    ignored = {"methods", "keeps"}
    same = all(earlier.get("settings", {}).get(k) == v for k, v in fresh["settings"].items() if k not in ignored)
    if not same or earlier.get("items") != fresh["items"]:
        return fresh
    return {**earlier, "settings": fresh["settings"]}


def _summary(method: str, keep: float, row: Row) -> dict[str, Any]:
    mean, low, high = bootstrap_difference([row.outcomes], [[0.0] * len(row.outcomes)])
    facts = {k: v for k, v in asdict(row).items() if k != "outcomes"}
    return {"method": method, "keep": keep, "quality": mean, "low": low, "high": high, **facts, "outcomes": row.outcomes}


def _merged(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if not new:
        return earlier
    kept = {**earlier.get("kept", {})}
    for method, budgets in new["kept"].items():
        kept[method] = {**kept.get(method, {}), **budgets}
    return {**new, "kept": kept}
