"""``tokenry compare audio``: which codec for this kind of audio?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def compare_audio_codecs(
    codecs: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: rvq, fsq, svq, kmeans (small, in the package), pcm16, mulaw, or folders and hub ids of "
            "EnCodec, DAC, Mimi; NAME@BOOKS uses the first books."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of sound files; NAME.txt beside NAME.wav may hold its English words.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Comma-separated: speech, music, sound. One with --data.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Clips per domain.")] = 12,
    rate: Annotated[int, typer.Option(help="Sample rate in Hz at which everything is measured.")] = 16_000,
    words: Annotated[bool, typer.Option(help="Measure words and voices with Whisper tiny.en and a speaker encoder.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of clips.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for JSON, page, sounds and spectrograms.")] = Path("compare-audio"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace a comparison that --out holds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Compare audio codecs on recordings: bit rate, fidelity, intelligibility, voice; with players and spectrograms."""
    from tokenry.cli.console import pick_device, progress, say_json, table
    from tokenry.extras import require
    from tokenry.lab.compare.audio import AudioSettings, compare_audio, notes_of
    from tokenry.lab.compare.audio_codecs import DEFAULT

    require("lab", *(("speech",) if words else ()))
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f"--data must be a folder of sound files, got {data}")
    default = ("speech",) if data is not None else ("speech", "music", "sound")
    settings = AudioSettings(
        codecs=_names(codecs) or DEFAULT, data=data, domains=_names(domain) or default, limit=limit, rate=rate, words=words,
        seed=seed, device=pick_device(device),
    )  # fmt: skip
    with progress("compare") as report:
        result = compare_audio(settings, out, report, fresh=fresh)
    if as_json:
        say_json(result)
        return
    columns, rows = _table(result)
    clips = ", ".join(f"{len(names)} {kind}" for kind, names in result["clips"].items())
    table(f"{result['data']}: {clips} clips at {rate / 1000:g} kHz", columns, rows, right=columns[2:])
    for note in notes_of(result):
        typer.echo(f"note: {note}")
    typer.echo(f"page: {out / 'index.html'}\ndata: {out / 'compare.json'}")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _table(result: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows; a measure that no row has is left out."""
    from tokenry.lab.pages.audio import COLUMNS

    shown = [c for c in COLUMNS if c[0] != "stft" and any(row[c[0]] is not None for row in result["rows"])]
    columns = ["codec", "domain", "kbit/s", "frames/s", *(c[1] for c in shown), "codes used", "bits used", "time"]
    rows = []
    for r in result["rows"]:
        values = ["" if r[key] is None else f"{r[key]:.{digits}f}" for key, _, digits, _, _ in shown]
        use = (f"{100 * r['usage']:.3g} %", f"{r['used_bits']:.1f}/{r['bits']:.0f}", f"{r['time']:.3f}x")
        rows.append((r["codec"], r["domain"], f"{r['bitrate'] / 1000:.2f}", f"{r['frame_rate']:g}", *values, *use))
    return columns, rows
