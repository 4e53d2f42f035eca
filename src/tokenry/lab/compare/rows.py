"""What is compared, and what one method at one budget gave."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from tokenry.core.progress import Progress


@dataclass(frozen=True)
class Settings:
    """What to compare. `model` None = the testbed in the package; `data` None = its held-out items."""

    model: str | None = None
    data: Path | None = None
    methods: tuple[str, ...] | None = None
    keeps: tuple[float, ...] = (0.5, 0.25, 0.1)
    limit: int = 200
    batch: int = 16
    seed: int = 0
    device: str = "cpu"
    positions: Literal["reindex", "gather"] = "reindex"
    maps: int = 8

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "data": None if self.data is None else str(self.data)}


@dataclass(frozen=True)
class Row:
    """One method at one budget: outcome per item (higher is better) and cost as ratios to no pruning."""

    outcomes: list[float]
    kept: float
    total: float
    time_ratio: float
    memory_ratio: float
    cache_ratio: float
    note: str = ""


class Bench(Protocol):
    """A model with its data, ready to be measured under one method and budget."""

    model_name: str
    data_name: str
    quality: str
    default_methods: tuple[str, ...]

    def count(self) -> int:
        """Number of items."""
        ...

    @staticmethod
    def check(methods: tuple[str, ...]) -> None:
        """Refuse unknown method names before anything is loaded."""
        ...

    def measure(self, method: str, keep: float, progress: Progress) -> Row:
        """Measure one method at one budget."""
        ...

    def maps(self) -> dict[str, Any]:
        """Pictures and kept tokens for the page; empty where there are none."""
        ...
