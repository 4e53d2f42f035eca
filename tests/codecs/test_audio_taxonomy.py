"""The survey's taxonomy as data: rows, filters, computed rates, the command."""

import json
import subprocess
import sys

import pytest

from tokenry.cli import run
from tokenry.codecs.audio import audio_tokenizers
from tokenry.codecs.audio.taxonomy import ARCHITECTURES, AUXILIARY, DOMAINS, OBJECTIVES, QUANTIZERS


def version(name):
    return next(row for row in audio_tokenizers(benchmarked=True) if row.version == name)


def test_rows_keep_to_the_schema():
    rows = audio_tokenizers()
    assert len(audio_tokenizers(benchmarked=False)) == 18
    assert len(audio_tokenizers(benchmarked=True)) == 12
    for row in rows:
        assert row.quantizer in QUANTIZERS
        assert set(row.objectives) <= set(OBJECTIVES)
        assert set(row.auxiliary) <= set(AUXILIARY)
        assert set(row.domain) <= set(DOMAINS)
        assert {row.encoder, row.decoder} <= {"", *ARCHITECTURES}
        assert row.representation in ("", "time", "time-frequency")
    assert len({(row.name, row.version) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "books", "tokens", "kbps"),
    [("Enc-SMA-24", 8, 600, 6.0), ("Mimi-S-24", 8, 100, 1.1), ("Mimi-S-24", 32, 400, 4.4), ("WT-SMA-24", 1, 75, 0.9),
     ("WT-S-24", 1, 40, 0.48), ("ST-S-16", 8, 400, 4.0), ("DAC-SMA-24", 8, 600, 6.0), ("SQ-SMA-16", 4, 200, 2.853)],
)  # fmt: skip
def test_rates_are_computed(name, books, tokens, kbps):
    assert version(name).token_rate(books) == pytest.approx(tokens)
    assert version(name).bitrate(books) / 1000 == pytest.approx(kbps, abs=5e-4)


def test_inconsistencies_of_the_source_are_marked():
    for name in ("WT-SMA-24", "WT-S-24"):
        row = version(name)
        books, listed = row.listed_kbps
        assert row.bitrate(books) / 1000 != pytest.approx(listed, abs=0.01)
        assert row.note
    assert version("SQ-SMA-16").domain != audio_tokenizers(benchmarked=False, name="SQ-Codec")[0].domain
    assert "speech alone" in version("SQ-SMA-16").note


def test_filters():
    assert [r.name for r in audio_tokenizers(benchmarked=False, streaming=True)] == ["EnCodec", "Mimi"]
    assert [r.name for r in audio_tokenizers(benchmarked=False, quantizer="FSQ")] == ["SQ-Codec", "TAAE"]
    assert {r.name for r in audio_tokenizers(benchmarked=False, auxiliary="SD")} == {
        "Mimi", "SpeechTokenizer", "SemantiCodec", "X-Codec"
    }  # fmt: skip
    assert all("music" in r.domain for r in audio_tokenizers(domain="music"))
    assert {r.name for r in audio_tokenizers(objective="MP", benchmarked=False)} == {
        "Discrete SSL", "Best-RQ", "USM", "w2v-BERT"
    }  # fmt: skip
    assert [r.joint for r in audio_tokenizers(name="Discrete SSL", benchmarked=False)] == [False]


def test_errors_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'RVQ'"):
        audio_tokenizers(quantizer="RVQQ")
    with pytest.raises(ValueError, match="domain must be one of"):
        audio_tokenizers(domain="images")
    with pytest.raises(ValueError, match="n_codebooks"):
        version("Mimi-S-24").bitrate(0)
    assert audio_tokenizers(name="RepCodec")[0].bitrate(1) is None


def test_the_command(capsys):
    assert run(["show", "audiotokens", "--taxonomy", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["taxonomy"]) == 18
    mimi = next(row for row in facts["benchmark"] if row["version"] == "Mimi-S-24")
    assert mimi["bits_per_second_per_book"] == pytest.approx(137.5)
    assert run(["show", "audiotokens", "--taxonomy"]) == 0
    shown = capsys.readouterr().out
    assert "SpeechTokenizer" in shown
    assert "WT-SMA-24: the benchmark prints a bit rate" in shown
    assert run(["show", "glsim", "--taxonomy"]) == 2
    assert "belongs to audiotokens" in capsys.readouterr().err


def test_the_taxonomy_loads_no_torch():
    code = "import sys; from tokenry.codecs.audio import audio_tokenizers; audio_tokenizers(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
