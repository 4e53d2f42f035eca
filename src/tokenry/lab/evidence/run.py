"""Run claims: seed by seed, resumable, judged by paired intervals; a killed run loses at most the seed in flight."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenry.core.checks import check_choice, check_int
from tokenry.core.progress import Progress, within
from tokenry.lab.evidence.claim import SCALES, Claim, Measurement, Scale, judge
from tokenry.lab.evidence.results import Result, environment, load, result_path, save


def reproduce(
    claim: Claim,
    *,
    scale: Scale = "small",
    seeds: int = 3,
    device: str = "cpu",
    out: Path = Path("results"),
    fresh: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Measure the missing seeds of `claim` at `scale`, judge, and keep the result file up to date after every seed.

    A result file with the same statement and settings is continued; one with others is refused unless `fresh`.

    Raises:
        ResultFileError: the file is damaged.
        ValueError: the file was made with another statement or settings, or an argument is out of range.
    """
    check_choice("scale", scale, SCALES)
    check_int("seeds", seeds, 1)
    result = _start(claim, scale, seeds, out, fresh)
    report = progress or (lambda message, fraction: None)
    for done, seed in enumerate(range(seeds)):
        if seed not in result.seeds:
            result.seeds[seed] = _measure(claim, scale, seed, device, within(report, done / seeds, (done + 1) / seeds))
            result.environment = environment(device)
            result.verdict, result.reason, result.comparisons = None, "", []
            save(result, out)
        report(f"seed {seed} done", (done + 1) / seeds)
    result = rejudge(claim, result)
    save(result, out)
    return result


def rejudge(claim: Claim, result: Result) -> Result:
    """A copy of `result` with verdict, reason and comparisons judged anew from its stored outcomes; nothing is measured."""
    measured = [Measurement(row["arms"], row["facts"]) for _, row in sorted(result.seeds.items())]
    verdict, reason, comparisons = judge(claim, measured)
    return replace(result, verdict=verdict, reason=reason, comparisons=[c.to_dict() for c in comparisons])


def _start(claim: Claim, scale: Scale, seeds: int, out: Path, fresh: bool) -> Result:
    settings = claim.settings(scale)
    path = result_path(out, claim.system, scale)
    if path.exists() and not fresh:
        earlier = load(path)
        if (earlier.statement, earlier.settings) != (claim.statement, settings):
            raise ValueError(
                f"{path} was made with another statement or other settings; pass fresh=True (--fresh) to replace it"
            )
        earlier.requested = max(seeds, len(earlier.seeds))
        return earlier
    return Result(claim.system, claim.statement, claim.metric, scale, settings, seeds)


def _measure(claim: Claim, scale: Scale, seed: int, device: str, progress: Progress) -> dict[str, Any]:
    started = time.perf_counter()
    measurement = claim.measure(scale, seed, device, progress)
    return {
        "arms": {name: [float(v) for v in values] for name, values in measurement.arms.items()},
        "facts": measurement.facts,
        "seconds": time.perf_counter() - started,
        "peak_bytes": _peak_bytes(device),
    }


def _peak_bytes(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024
