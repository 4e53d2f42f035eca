"""MkDocs hook: ``<!-- benchmark: NAME -->`` becomes the view of a committed benchmark, with every row behind a fold."""

from __future__ import annotations

import io
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from views import VIEWS, Rows, View

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
PLACE = re.compile(r"<!-- benchmark: (\w+) -->")


def on_files(files: Any, config: Any) -> Any:
    """Draw the charts."""
    for name, view in VIEWS.items():
        if view.chart is not None:
            files.append(File.generated(config, f"figures/{name}.svg", content=chart(view, _bodies(name)[0][1]["rows"])))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the placeholders of one page."""
    up = posixpath.relpath("figures", posixpath.dirname(page.file.src_uri) or ".")
    return PLACE.sub(lambda m: benchmark(m.group(1), up), markdown)


def benchmark(name: str, figures: str) -> str:
    """A benchmark and its comparison with peers, as Markdown."""
    found = [part for stem in (name, f"{name}_peers") if stem in VIEWS for part in _parts(stem, figures)]
    return "\n\n".join(found) or f"No figures are committed yet; run `python benchmarks/{name}.py`."


def chart(view: View, rows: Rows) -> str:
    """The chart of a benchmark as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "tokenry", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        assert view.chart is not None
        view.chart(axes, rows)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None}, facecolor="white")
    return stream.getvalue()


def _bodies(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(device, body) of every committed result of a benchmark."""
    paths = sorted(RESULTS.glob(f"{name}_*.json"))
    devices = {path: path.stem.removeprefix(f"{name}_") for path in paths}
    return [(d, json.loads(path.read_text(encoding="utf-8"))) for path, d in devices.items() if "_" not in d]


def _parts(name: str, figures: str) -> list[str]:
    view, parts = VIEWS[name], []
    for device, body in _bodies(name):
        setting = body.get("setting", "")
        says = " ".join(
            x for x in (view.says, setting if isinstance(setting, str) else "", "" if device == "cpu" else device) if x
        )
        parts += [*([says] if says else []), markdown_table(view.table(body["rows"]))]
        if view.chart is not None:
            parts.append(f"![{name.replace('_', ' ')}]({figures}/{name}.svg)")
        rows = markdown_table(body["rows"]).replace("\n", "\n    ")
        parts.append(f'??? note "Every row"\n    {rows}')
    return parts


def markdown_table(rows: Rows) -> str:
    """A Markdown table of rows that may have different keys."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |" for row in rows])


def _cell(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else f"{value:.3g}" if isinstance(value, float) else str(value)
