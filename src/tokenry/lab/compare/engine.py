"""The one loop of a comparison: jobs are measured, written as they are measured, and not measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenry.core.checkpoint import write_text
from tokenry.core.progress import Progress, within
from tokenry.lab.evidence.results import environment

RESULT = "compare.json"
Job = tuple[Any, Any]
Measure = Callable[[Job, dict[str, Any], Progress], dict[str, Any]]


def run(
    jobs: Sequence[Job],
    measure: Measure,
    out: Path,
    *,
    keys: tuple[str, str],
    head: dict[str, Any],
    free: Sequence[str],
    device: str,
    progress: Progress,
    fresh: bool = False,
    valid: Callable[[dict[str, Any], dict[str, Any]], bool] = lambda row, earlier: True,
) -> dict[str, Any]:
    """Measure every job, writing ``compare.json`` under `out` after each; the same settings go on where the last run stopped.

    Args:
        jobs: what is compared, each named by two values.
        measure: ``(job, result so far, progress)`` -> what the row of the job says.
        out: folder.
        keys: names of the two values in a row.
        head: what the file says besides its rows; ``settings`` among it.
        free: settings that may differ from an earlier run whose rows are taken over (methods, budgets).
        device: recorded.
        progress: of the whole.
        fresh: replace an earlier file, whatever its settings.
        valid: whether an earlier row still counts, given the earlier file.

    Returns:
        What the file holds: `head`, ``rows`` in the order of `jobs` (others behind them), ``environment``.

    Raises:
        ValueError: an earlier file was made with other settings.
    """
    path = out / RESULT
    result: dict[str, Any] = {**head, "rows": [], "environment": {}} if fresh else _resumed(path, head, free, valid)
    order = {job: place for place, job in enumerate(jobs)}
    done = {tuple(row[key] for key in keys) for row in result["rows"]}
    for number, job in enumerate(jobs):
        if job in done:
            continue
        done.add(job)
        label = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in job)
        told = within(progress, number / len(jobs), (number + 1) / len(jobs), label)
        told("", 0.0)
        result["rows"].append({**dict(zip(keys, job, strict=True)), **measure(job, result, told)})
        write_text(path, json.dumps(result) + "\n")
    result["rows"].sort(key=lambda row: order.get(tuple(row[key] for key in keys), len(order)))
    result["environment"] = environment(device)
    write_text(path, json.dumps(result) + "\n")
    return result


def _resumed(
    path: Path, head: dict[str, Any], free: Sequence[str], valid: Callable[[dict[str, Any], dict[str, Any]], bool]
) -> dict[str, Any]:
    """An earlier file with the rows that still count; a fresh one where it is missing or damaged.

    Raises:
        ValueError: it was made with other settings.
    """
    fresh: dict[str, Any] = {**head, "rows": [], "environment": {}}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(head["settings"]))
        differ = [name for name, value in wanted.items() if name not in free and earlier["settings"][name] != value]
        rows = [row for row in earlier["rows"] if valid(row, earlier)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return fresh
    if differ and earlier["rows"]:
        raise ValueError(f"{path} was made with another {', '.join(differ)}; choose another --out, or replace it with --fresh")
    return {**earlier, **head, "rows": rows}
