"""``tokenry report``: the static site of all evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Option(help="Folder of result files.")] = Path("results"),
    out: Annotated[Path, typer.Option(help="Folder to write the site to.")] = Path("site/report"),
) -> None:
    """Write the report: a leaderboard of all claims and a page per system. Open index.html from the file system."""
    from tokenry.lab.report import build

    typer.echo(str(build(results, out)))
