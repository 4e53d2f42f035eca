"""``tokenry list``: every system, its wing and whether it is built."""

from __future__ import annotations

from typing import Annotated

import typer


def list_systems(
    wing: Annotated[str | None, typer.Option(help="Only this wing.")] = None,
    built: Annotated[bool, typer.Option("--built", help="Only what is built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """List the systems of the library."""
    from tokenry.catalog import systems
    from tokenry.cli.console import say_json, table

    rows = [row for row in systems(wing) if row.status != "planned" or not built]
    if as_json:
        keys = ("slug", "title", "arxiv", "wing", "status", "line")
        say_json([{key: getattr(row, key) for key in keys} for row in rows])
        return
    table(
        f"{len(rows)} systems", ["system", "wing", "status", "what it does"], [(r.slug, r.wing, r.status, r.line) for r in rows]
    )
