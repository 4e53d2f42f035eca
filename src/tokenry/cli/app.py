"""The Typer application: options that every command shares, and the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenry import __version__
from tokenry.cli.assets import assets
from tokenry.cli.audit import audit
from tokenry.cli.compare import compare
from tokenry.cli.doctor import doctor
from tokenry.cli.list_systems import list_systems
from tokenry.cli.report import report
from tokenry.cli.reproduce import reproduce
from tokenry.cli.show import show
from tokenry.cli.train import train

app = typer.Typer(
    help="Tokens inside neural networks: choose the ones that matter, keep only those, and see for yourself whether it works.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=True,
)
app.command("list")(list_systems)
app.command("show")(show)
app.command("doctor")(doctor)
app.add_typer(assets, name="assets")
app.add_typer(compare, name="compare")
app.command("audit")(audit)
app.add_typer(train, name="train")
app.command("reproduce")(reproduce)
app.command("report")(report)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tokenry {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass
