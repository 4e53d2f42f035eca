"""How long work says how far it is: one signature, and shares of a whole."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called as ``progress(label, fraction)``, the fraction done in 0..1."""


def within(progress: Progress | None, low: float, high: float, label: str = "") -> Progress:
    """A `Progress` for the part [low, high] of the whole that `progress` watches; `label` stands before the part's own."""

    def report(text: str, fraction: float) -> None:
        if progress is not None:
            progress(" ".join(part for part in (label, text) if part), low + (high - low) * fraction)

    return report
