"""The comparison as one self-contained HTML page with token maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenry.lab.pages.frame import render


def write_page(result: dict[str, Any], figure: str, path: Path) -> None:
    """Write the page of a comparison; `figure` is SVG text."""
    shown = {**result, "rows": [{k: v for k, v in row.items() if k != "outcomes"} for row in result["rows"]]}
    render("compare.html.j2", path, result=shown, figure=figure)
