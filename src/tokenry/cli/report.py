"""``tokenry report``: the static site of all evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        Path | None, typer.Option(help="Folder of result files; default: results/ here, else those that come with tokenry.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the site to.")] = Path("site/report"),
) -> None:
    """Write the report: a leaderboard of all claims and a page per system. Open index.html from the file system."""
    from tokenry.extras import require
    from tokenry.lab.evidence.results import results_folder
    from tokenry.lab.pages.report import build

    require("lab")
    typer.echo(str(build(results_folder(results), out)))
