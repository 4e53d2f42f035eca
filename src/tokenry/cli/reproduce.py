"""``tokenry reproduce SLUG...``: run claims; resumable, judged by intervals over seeds and items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    slugs: Annotated[list[str], typer.Argument(help="Systems; `all` for every one that is built.")],
    scale: Annotated[
        str, typer.Option(help="smoke (seconds), small (minutes; the published one) or paper (hub models, a GPU).")
    ] = "small",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of result files.")] = Path("results"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace earlier results instead of continuing them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Run the claims of systems. Finished seeds are kept; exit code 1 when a claim fails."""
    from tokenry.catalog import system, systems
    from tokenry.cli.console import COMPARISON_COLUMNS, comparison_row, pick_device, progress, say_json, table
    from tokenry.core.checks import check_choice
    from tokenry.errors import CLAIM_FAILED
    from tokenry.extras import require
    from tokenry.lab.evidence.claim import SCALES
    from tokenry.lab.evidence.run import reproduce as run

    check_choice("--scale", scale, SCALES)
    require("lab")
    wanted = [row.slug for row in systems() if row.status == "built"] if slugs == ["all"] else slugs
    claims = [system(slug).load_claim() for slug in wanted]
    results = []
    for claim in claims:
        with progress(claim.system) as report:
            results.append(
                run(claim, scale=scale, seeds=seeds, device=pick_device(device), out=out, fresh=fresh, progress=report)  # pyright: ignore[reportArgumentType]
            )
    rows = [
        {
            "system": r.system, "scale": r.scale, "verdict": r.verdict, "reason": r.reason, "seeds": len(r.seeds),
            "seconds": round(r.seconds, 1), "comparisons": r.comparisons,
        }
        for r in results
    ]  # fmt: skip
    if as_json:
        say_json(rows)
    else:
        lines = [(r["system"], *comparison_row(c)) for r in rows for c in r["comparisons"]]
        table(f"claims at scale {scale}", ["system", *COMPARISON_COLUMNS], lines)
        verdicts = [(r["system"], r["verdict"], r["reason"], f"{r['seconds']} s, {r['seeds']} seeds") for r in rows]
        table("verdicts", ["system", "verdict", "reason", "cost"], verdicts)
    if any(r.verdict == "fails" for r in results):
        raise typer.Exit(CLAIM_FAILED)
