"""The main job: methods x budgets on one model and data, with quality, time, memory and pictures of what was kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenry.core.progress import Progress
from tokenry.lab.compare.engine import run
from tokenry.lab.compare.rows import Bench, Row, Settings
from tokenry.lab.evidence.intervals import bootstrap_difference


def compare_pruning(settings: Settings, out: Path, progress: Progress, *, fresh: bool = False) -> dict[str, Any]:
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
    jobs = [(m, k) for m in methods for k in ((1.0,) if m in ("none", "full") else settings.keeps)]
    head = {
        "settings": settings.to_dict(), "model": bench.model_name, "data": bench.data_name, "quality": bench.quality,
        "items": bench.count(),
    }  # fmt: skip

    def measure(job: tuple[str, float], so_far: dict[str, Any], told: Progress) -> dict[str, Any]:
        row = _summary(bench.measure(*job, told))
        so_far["maps"] = _merged(so_far.get("maps", {}), bench.maps())
        return row

    result = run(
        jobs, measure, out, keys=("method", "keep"), head=head, free=("methods", "keeps"), device=settings.device,
        progress=progress, fresh=fresh, valid=lambda row, earlier: earlier["items"] == head["items"],
    )  # fmt: skip
    figure = quality_figure(result, out / "quality.png")
    write_page(result, figure, out / "index.html")
    return result


def _bench_class(settings: Settings) -> Any:
    if settings.data is not None and settings.data.suffix in (".txt", ".md"):
        from tokenry.lab.compare.cache import KVBench

        return KVBench
    from tokenry.lab.compare.vlm import VisionBench

    return VisionBench


def _summary(row: Row) -> dict[str, Any]:
    mean, low, high = bootstrap_difference([row.outcomes], [[0.0] * len(row.outcomes)])
    facts = {k: v for k, v in asdict(row).items() if k != "outcomes"}
    return {"quality": mean, "low": low, "high": high, **facts, "outcomes": row.outcomes}


def _merged(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if not new:
        return earlier
    kept = {**earlier.get("kept", {})}
    for method, budgets in new["kept"].items():
        kept[method] = {**kept.get(method, {}), **budgets}
    return {**new, "kept": kept}
