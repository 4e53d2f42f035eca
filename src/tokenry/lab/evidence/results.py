"""Result files: one JSON per claim and scale, sealed by a checksum, written atomically, readable while incomplete."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tokenry.core.checkpoint import write_text
from tokenry.errors import ResultFileError

SCHEMA = 1
_PACKAGES = ("tokenry", "torch", "transformers", "tokenizers", "numpy", "scikit-learn")


@dataclass
class Result:
    """Everything one claim measured at one scale.

    `seeds` maps a seed to {"arms", "facts", "seconds", "peak_bytes"}; `verdict` is None until every requested seed is there.
    """

    system: str
    statement: str
    metric: str
    scale: str
    settings: dict[str, Any]
    requested: int
    seeds: dict[int, dict[str, Any]] = field(default_factory=dict)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    verdict: str | None = None
    reason: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every requested seed has been measured and judged."""
        return self.verdict is not None

    @property
    def seconds(self) -> float:
        """Wall time of all seeds together."""
        return sum(s["seconds"] for s in self.seeds.values())

    @property
    def peak_bytes(self) -> int:
        """Largest memory of the process over the seeds."""
        return max((s["peak_bytes"] for s in self.seeds.values()), default=0)

    def arm_means(self) -> dict[str, float]:
        """Mean outcome per arm, every seed weighing the same."""
        per_seed = [{a: sum(v) / len(v) for a, v in s["arms"].items()} for s in self.seeds.values()]
        return {arm: sum(row[arm] for row in per_seed) / len(per_seed) for arm in (per_seed[0] if per_seed else {})}


def result_path(folder: Path, system: str, scale: str) -> Path:
    """Where the result of a claim at a scale lies."""
    return folder / f"{system}.{scale}.json"


def _seal(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def save(result: Result, folder: Path) -> Path:
    """Write `result` atomically under `folder` and return the path."""
    body = asdict(result)
    body["seeds"] = {str(seed): row for seed, row in sorted(result.seeds.items())}
    path = result_path(folder, result.system, result.scale)
    write_text(path, json.dumps({"schema": SCHEMA, "sha256": _seal(body), **body}, indent=1) + "\n")
    return path


def load(path: Path) -> Result:
    """Read a result file.

    Raises:
        ResultFileError: not JSON, another schema, a missing field, or a checksum that does not match; names the file.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ResultFileError(f"{path} is truncated or not JSON ({error}); delete it and run the claim again") from error
    if not isinstance(body, dict) or body.pop("schema", None) != SCHEMA:
        raise ResultFileError(f"{path} is not a result file of schema {SCHEMA}")
    if body.pop("sha256", None) != _seal(body):
        raise ResultFileError(f"{path} does not match its checksum: it was changed after it was written; run the claim again")
    try:
        body["seeds"] = {int(seed): row for seed, row in body["seeds"].items()}
        return Result(**body)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultFileError(f"{path} lacks or misspells a field of schema {SCHEMA}: {error}") from error


def results_folder(given: Path | None = None) -> Path:
    """Where results are read from: `given`, else ``results`` in the working directory, else those that come with tokenry."""
    here = Path("results")
    if given is not None or any(here.glob("*.*.json")):
        return given or here
    package = Path(__file__).parents[2]
    in_wheel, in_checkout = package / "results", package.parents[1] / "results"
    return in_wheel if in_wheel.is_dir() else in_checkout


def load_all(folder: Path) -> list[Result]:
    """Every result under `folder`, by system and scale; a damaged file raises."""
    return [load(path) for path in sorted(folder.glob("*.*.json"))]


def environment(device: str) -> dict[str, str]:
    """Versions, machine and device that a result was made with."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["device"] = device
    found["cpus"] = str(os.cpu_count())
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
