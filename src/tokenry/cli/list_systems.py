"""``tokenry list``: every system, its wing, whether it is built, and how its claim stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def list_systems(
    wing: Annotated[str | None, typer.Option(help="Only this wing.")] = None,
    built: Annotated[bool, typer.Option("--built", help="Only what is built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List the systems of the library, with the verdict on each claim at the largest scale there is a result of."""
    from tokenry.catalog import systems
    from tokenry.cli.console import say_json, table
    from tokenry.lab.evidence.results import results_folder

    folder = results_folder()
    rows = [
        {**{key: getattr(row, key) for key in ("slug", "title", "arxiv", "wing", "status", "line", "serves")},
         **_verdict(folder, row.slug)}
        for row in systems(wing)
        if row.status != "planned" or not built
    ]  # fmt: skip
    if as_json:
        say_json(rows)
        return
    shown = [
        (r["slug"], r["wing"], r["status"], f"{r['verdict']} ({r['scale']})" if r["scale"] else "", r["line"]) for r in rows
    ]
    table(f"{len(rows)} systems", ["system", "wing", "status", "claim", "what it does"], shown)


def _verdict(folder: Path, slug: str) -> dict[str, str]:
    """Verdict and scale of the system's result, empty without one; a damaged file is said to be that."""
    from tokenry.errors import ResultFileError
    from tokenry.lab.evidence.results import load, result_path

    for scale in ("paper", "small", "smoke"):
        path = result_path(folder, slug, scale)
        if path.exists():
            try:
                return {"verdict": load(path).verdict or "incomplete", "scale": scale}
            except ResultFileError:
                return {"verdict": "damaged", "scale": scale}
    return {"verdict": "", "scale": ""}
