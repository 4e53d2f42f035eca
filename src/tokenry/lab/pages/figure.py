"""Figure of quality against tokens."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from tokenry.errors import optional

_MARKS = "osD^vP*X<>hd"


def quality_figure(result: dict[str, Any], path: Path) -> str:
    """Draw quality against kept tokens with intervals, write it to `path` as PNG and return it as SVG text."""
    optional("matplotlib", "lab")
    from matplotlib.backends.backend_svg import FigureCanvasSVG
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
    stream = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue().decode()
    return text[text.index("<svg") :]
