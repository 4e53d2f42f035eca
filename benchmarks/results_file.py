"""Where the benchmarks write: one JSON file per benchmark and device under ``benchmarks/results/``."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def environment(device: str) -> dict[str, Any]:
    """Device, threads and versions, for the record."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    facts: dict[str, Any] = {"device": device, "name": name, "torch": torch.__version__, "python": platform.python_version()}
    if device == "cpu":
        facts |= {"threads": torch.get_num_threads(), "cores": os.cpu_count()}
    return facts


def machine_load() -> str:
    """Processes that ran or waited to run, average over a minute, and the cores they share."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


RESULTS = Path(__file__).parent / "results"


def earlier(benchmark: str, device: str) -> list[dict[str, Any]]:
    """Rows of the committed file, so that a run at other sizes adds to them."""
    path = _path(benchmark, device, RESULTS)
    return json.loads(path.read_text())["rows"] if path.exists() else []


def _path(benchmark: str, device: str, folder: Path) -> Path:
    return folder / f"{benchmark}_{device.split(':')[0]}.json"


def write(benchmark: str, content: dict[str, Any], device: str, folder: Path = RESULTS) -> Path:
    """Write `content` as JSON and return the path."""
    path = _path(benchmark, device, folder)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
