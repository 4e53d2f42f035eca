"""Where output goes: tables and JSON to stdout, progress and complaints to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

Report = Callable[[str, float], None]


def out() -> Console:
    """Console on stdout; wide when it is not a terminal, so that scripts get whole lines."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def complain(message: str) -> None:
    """One error line on stderr."""
    Console(stderr=True).print(f"[bold red]error:[/] {_plain(message)}", highlight=False, soft_wrap=True)


def say_json(value: Any) -> None:
    """`value` as JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Print a table on stdout."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_plain(str(cell)) for cell in row))
    out().print(grid)


COMPARISON_COLUMNS = ("comparison", "margin", "difference", "95 % interval", "p (Holm)", "verdict")


def comparison_row(comparison: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a judged contrast as result files hold it; `p` is adjusted over the claim."""
    c = comparison
    interval = f"[{c['low']:+.3f}, {c['high']:+.3f}]"
    p = "<0.001" if c["p"] < 0.001 else f"{c['p']:.3f}"
    return c["name"], f"{c['margin']:+g}", f"{c['difference']:+.3f}", interval, p, c["verdict"]


@contextmanager
def progress(title: str) -> Iterator[Report]:
    """A progress bar on stderr; yields ``report(message, fraction)``. Without a terminal: one line per tenth."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(title)
        return
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(title, total=1.0)
        yield lambda message, fraction: bar.update(task, completed=fraction, description=f"{title}: {_plain(message)}")


def pick_device(name: str) -> str:
    """The device a run uses: ``auto`` takes CUDA, then MPS, then the CPU."""
    import torch

    if name != "auto":
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(f"--device must be auto or a device of this machine, got {name!r}: {why}") from None
        return str(torch.device(name))
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _lines(title: str) -> Report:
    said = -1

    def report(message: str, fraction: float) -> None:
        nonlocal said
        if (tenth := int(fraction * 10)) > said:
            said = tenth
            sys.stderr.write(f"{title}: {fraction:4.0%} {message}\n")
            sys.stderr.flush()

    return report


def _plain(text: str) -> str:
    """Text with square brackets that rich must not read as markup."""
    return text.replace("[", r"\[")
