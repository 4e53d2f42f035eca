"""Figures of the pages: quality against tokens, the means of the arms; a matplotlib figure as SVG text."""

from __future__ import annotations

import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenry.errors import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKS = "osD^vP*X<>hd"


def quality_figure(result: dict[str, Any], path: Path) -> str:
    """Draw quality against kept tokens with intervals, write it to `path` as PNG and return it as SVG text."""
    optional("matplotlib", "lab")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(row["method"] for row in result["rows"]))
    for number, method in enumerate(methods):
        rows = sorted((r for r in result["rows"] if r["method"] == method), key=lambda r: r["kept"])
        x, y = [r["kept"] for r in rows], [r["quality"] for r in rows]
        if method in ("none", "full"):
            axes.axhline(y[0], color="0.5", linestyle="--", linewidth=1, label=f"{method} ({x[0]:.0f} tokens)")
            continue
        # An interval of constant outcomes may miss their mean by a rounding error.
        below = [max(r["quality"] - r["low"], 0.0) for r in rows]
        above = [max(r["high"] - r["quality"], 0.0) for r in rows]
        colour = f"C{number % 10}"
        axes.errorbar(
            x, y, yerr=[below, above], marker=_MARKS[number % len(_MARKS)], color=colour, capsize=2, linewidth=1.4, label=method
        )
    axes.set_xlabel("tokens kept")
    axes.set_ylabel(result["quality"])
    axes.set_title(f"{result['model']}: {result['quality']} against tokens")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
    return svg_of(figure)


def arm_bars(means: dict[str, float], metric: str) -> str:
    """Horizontal bars of the arms' means, best first, as SVG text; the axis starts at 0 or at the lowest negative value."""
    optional("matplotlib", "lab")
    from matplotlib.figure import Figure

    arms = sorted(means, key=lambda arm: means[arm])
    figure = Figure(figsize=(6.7, 0.29 * len(arms) + 0.35), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([arm.replace("$", r"\$") for arm in arms], [means[arm] for arm in arms], color="#0b6bcb")
    for place, arm in enumerate(arms):
        right = (max(means[arm], 0.0), place)  # also of a negative bar: its other side is the names'
        axes.annotate(f"{means[arm]:.3f}", right, xytext=(4, 0), textcoords="offset points", va="center")
    axes.axvline(0.0, color="#5b6877", linewidth=1)
    axes.set_xticks([0.0], ["0"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.margins(x=0.1, y=0.02)
    return svg_of(figure, f"{metric} per arm")


def svg_of(figure: Figure, label: str = "") -> str:
    """The figure as an `svg` element with real text; `label` is what a screen reader says. The same figure, the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tokenry"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue().decode()
    named = f'<svg role="img" aria-label="{escape(label)}"' if label else "<svg"
    return named + text[text.index("<svg") + 4 :]
