"""The comparison as one self-contained HTML page with token maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenry import __version__
from tokenry.lab.evidence.results import write_atomic
from tokenry.lab.pages.report import style, template


def write_page(result: dict[str, Any], figure: str, path: Path) -> None:
    """Write the page of a comparison; `figure` is SVG text."""
    shown = {**result, "rows": [{k: v for k, v in row.items() if k != "outcomes"} for row in result["rows"]]}
    text = template("compare.html.j2").render(result=shown, figure=figure, style=style(), version=__version__, root="")
    write_atomic(path, text)
