"""``tokenry train``: tokenizers per language, and an image autoencoder with any quantizer, its codebook's health in sight."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenry.cli.train_tokenizer import train_tokenizers

train = typer.Typer(help="Train small models.", no_args_is_help=True)


@train.callback()
def _train() -> None:
    pass


train.command("tokenizer")(train_tokenizers)


@train.command("autoencoder")
def autoencoder(
    data: Annotated[str, typer.Option(help="digits, mnist, photos, or a folder of images.")] = "digits",
    quantizer: Annotated[str, typer.Option(help="vq, rvq, pq, aq, simvq, fsq, lfq, bsq.")] = "vq",
    codebook_size: Annotated[int, typer.Option(min=2, help="Codes of each book.")] = 256,
    option: Annotated[
        list[str] | None, typer.Option(help="key=value of the quantizer, such as reset_threshold=0.2; several times.")
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="Width of a token.")] = 16,
    hidden: Annotated[int, typer.Option(min=1, help="Width of the MLP, or channels of the convolutions.")] = 128,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of an image of at most 16 pixels.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Images of a step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, quantizer, split and order.")] = 0,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between two lines.")] = 100,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")] = 100,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of log, checkpoint and quantizer.")] = Path("autoencoder"),
    as_json: Annotated[bool, typer.Option("--json", help="The last line of the log as JSON instead of a table.")] = False,
) -> None:
    """Train, or go on from the checkpoint in --out: perplexity, usage and dead codes of the test images as it goes."""
    from tokenry.cli.console import pick_device, say_json
    from tokenry.extras import require
    from tokenry.lab.beds.pictures.image_autoencoder import AutoencoderRecipe, train_autoencoder
    from tokenry.lab.beds.pictures.image_sets import image_set
    from tokenry.lab.beds.signals.named_quantizers import parse_option

    require("lab")
    recipe = AutoencoderRecipe(
        data=data, quantizer=quantizer, codebook_size=codebook_size, options=dict(parse_option(o) for o in option or []),
        dim=dim, hidden=hidden, tokens=tokens, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed,
    )  # fmt: skip
    images = image_set(data, seed=seed)
    with _interruptible() as interrupted:
        result = train_autoencoder(
            recipe, images, out=out, device=pick_device(device), log_every=log_every, save_every=save_every, report=_say,
            stop=lambda: bool(interrupted),
        )  # fmt: skip
    if not result.complete:
        raise KeyboardInterrupt
    if as_json:
        say_json(result.log[-1])
        return
    _finish(result.log, result.model.quantizer, out)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Ctrl-C or a termination signal lets the step in flight end; a second one stops at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _say(line: dict[str, Any]) -> None:
    figures = "  ".join(f"{name} {_each(line[name])}" for name in ("perplexity", "usage", "dead"))
    sys.stderr.write(f"step {line['step']:>6}  loss {line['loss']:.4f}  test mse {line['test_mse']:.4f}  {figures}\n")
    sys.stderr.flush()


def _each(value: Any) -> str:
    return ", ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.3g}"


def _finish(log: list[dict[str, Any]], quantizer: Any, out: Path) -> None:
    from tokenry.cli.console import table
    from tokenry.lab.beds.pictures.image_autoencoder import LOG, QUANTIZER

    columns = ["step", "test mse", "perplexity", "usage", "dead"]
    shown = log if len(log) <= 10 else [log[round(i * (len(log) - 1) / 9)] for i in range(10)]
    rows = [(r["step"], f"{r['test_mse']:.4f}", *(_each(r[name]) for name in columns[2:])) for r in shown]
    title = f"{type(quantizer).__name__}, {log[-1]['bits']:.3g} bits a token, {log[-1]['vectors']} test tokens"
    table(title, columns, rows, right=columns)
    typer.echo(f"log: {out / LOG}\nquantizer: {out / QUANTIZER}")
