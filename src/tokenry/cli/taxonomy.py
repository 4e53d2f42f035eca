"""``tokenry show audiotokens --taxonomy``: the survey's table of discrete audio tokenizers."""

from __future__ import annotations

from typing import Any


def show_taxonomy(slug: str, as_json: bool) -> None:
    """Print the taxonomy and the benchmarked versions; rates are computed per book.

    Raises:
        ValueError: `slug` is a system without a taxonomy.
    """
    from tokenry.catalog import system
    from tokenry.cli.console import out, say_json, table
    from tokenry.codecs.audio.taxonomy import audio_tokenizers

    if system(slug).slug != "audiotokens":
        raise ValueError(f"--taxonomy belongs to audiotokens, {slug} has none")
    taxonomy, versions = audio_tokenizers(benchmarked=False), audio_tokenizers(benchmarked=True)
    if as_json:
        say_json({"taxonomy": [row.to_dict() for row in taxonomy], "benchmark": [row.to_dict() for row in versions]})
        return
    short = {"speech": "s", "music": "m", "audio": "a"}
    table(
        "taxonomy",
        ["tokenizer", "encoder/decoder", "rep", "quantizer", "objectives", "aux", "domain", "stream"],
        [
            (
                row.name, f"{row.encoder}/{row.decoder}" if row.encoder else "", row.representation, row.quantizer,
                ",".join(row.objectives), ",".join(row.auxiliary), ",".join(short[d] for d in row.domain), _yes(row.streaming),
            )
            for row in taxonomy
        ],
    )  # fmt: skip
    table(
        "benchmarked versions (rates of one book)",
        ["version", "kHz", "frames/s", "codes", "bit/s per book", "M params", "G MACs", "checkpoint"],
        [
            (
                row.version, _number(row.sample_rate, 1000), _number(row.frame_rate), str(row.codebook_size),
                _number(row.bitrate(1)), _number(row.parameters), _number(row.macs), ",".join(row.checkpoints),
            )
            for row in versions
        ],
    )  # fmt: skip
    for row in (*taxonomy, *versions):
        if row.note:
            out().print(f"{row.version or row.name}: {row.note}", highlight=False)


def _yes(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _number(value: Any, over: float = 1) -> str:
    return "" if value is None else f"{value / over:g}"
