"""``tokenry compare WING``: which method for this model and data? ``pruning`` is here, ``audio`` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.cli.compare_audio import compare_audio_codecs

_ALL: dict[str, Any] = {"keep": "0.5,0.25,0.1", "limit": 200, "batch": 16}
_QUICK: dict[str, Any] = {"keep": "0.25,0.1", "limit": 48, "batch": 8}

compare = typer.Typer(help="Compare methods on one's own model and data.", no_args_is_help=True)


@compare.command("pruning")
def compare_pruners(
    model: Annotated[
        str | None, typer.Option(help="Local folder or hub id of a supported model; default: the testbed in the package.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of images with questions.csv or questions.jsonl, or a text file (KV-cache methods)."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated; any SOURCE+SELECTOR too, such as sensitivity+max_min.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Comma-separated ratios of tokens to keep.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of items.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every method, three budgets, 200 items: what a model of your own gets anyway.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and methods.")] = 0,
    positions: Annotated[
        str, typer.Option(help="reindex (as papers do) or gather (keep places); 1-D positions only.")
    ] = "reindex",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for JSON, figure and page.")] = Path("compare"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a comparison that --out holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Compare methods under the same budgets: quality, kept tokens, time, memory; with pictures of what was kept.

    On the testbed in the package the default is a look that takes less than a minute; ``--all`` is the comparison.
    """
    from tokenry.cli.console import pick_device, progress, say_json, table
    from tokenry.core.checks import check_choice
    from tokenry.extras import require
    from tokenry.lab.compare import Settings, compare_pruning
    from tokenry.lab.compare.methods import quick_methods

    require("lab")
    quick = not (everything or model or data)
    sizes = _QUICK if quick else _ALL
    given = tuple(dict.fromkeys(part.strip() for part in methods.split(",") if part.strip())) if methods else ()
    names = given or (quick_methods() if quick else None)
    settings = Settings(
        model=model, data=data, methods=names, keeps=_ratios(keep or sizes["keep"]), limit=limit or sizes["limit"],
        batch=batch or sizes["batch"], seed=seed, device=pick_device(device),
        positions=check_choice("--positions", positions, ("reindex", "gather")),
    )  # fmt: skip
    with progress("compare") as report:
        result = compare_pruning(settings, out, report, fresh=fresh)
    if as_json:
        say_json(result)
        return
    where = f"{result['items']} items, batch {settings.batch}, {settings.device}"
    table(f"{result['model']} on {result['data']}, {where}", *_table(result))
    if quick:
        typer.echo(f"a quick look at {settings.limit} items; for every method, three budgets and {_ALL['limit']} items: --all")
    typer.echo(f"page: {out / 'index.html'}\nfigure: {out / 'quality.png'}\ndata: {out / 'compare.json'}")


compare.command("audio")(compare_audio_codecs)


def _ratios(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--keep must be comma-separated ratios such as 0.5,0.25, got {text!r}") from None
    bad = [value for value in values if not 0 < value <= 1]
    if bad:
        hint = f" (did you mean {bad[0] / 100:g}?)" if 1 < bad[0] <= 100 else ""
        raise ValueError(f"--keep must hold ratios in (0, 1], got {bad[0]:g}{hint}")
    return tuple(sorted(set(values), reverse=True))


def _table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    columns = ["method", "keep", "kept", result["quality"], "95 % interval", "prefill time", "peak memory", "cache"]
    rows = []
    for r in result["rows"]:
        quality = (f"{r['quality']:.3f}", f"[{r['low']:.3f}, {r['high']:.3f}]")
        costs = tuple(f"{r[name]:.2f}x" for name in ("time_ratio", "memory_ratio", "cache_ratio"))
        rows.append((r["method"], f"{r['keep']:g}", f"{r['kept']:.1f} of {r['total']:.0f}", *quality, *costs))
    return columns, rows
