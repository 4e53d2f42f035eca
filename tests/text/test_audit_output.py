"""What an audit returns: JSON, CSV, rows and frames that agree; tokenizers of every library."""

from __future__ import annotations

import csv
import io
import json

import pytest

from tests.text.test_audit import CORPUS, EN, HARD, byte_level, quick, word_level
from tokenry.text.audit import TokenizerAudit


@pytest.fixture(scope="module")
def bpe():
    return byte_level()


def test_json_csv_and_rows_agree(bpe):
    report = quick({"x": bpe, "y": word_level()}, vocabulary=True).run({"p": CORPUS, "d": HARD})
    loaded = json.loads(report.to_json())
    table = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(loaded["rows"]) == len(table) == len(report.rows) == 8
    for row, line, item in zip(report.rows, table, loaded["rows"], strict=True):
        assert int(line["tokens"]) == row.tokens == item["tokens"]
    assert set(loaded["vocabularies"]) == {"x", "y"}
    spans = next(sample for sample in report.samples if sample.language == "ja").spans["x"]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(next(sample for sample in report.samples if sample.language == "ja").text)
    with pytest.raises(KeyError):
        report.row("z", "p", "en")


def test_frame(bpe):
    pandas = pytest.importorskip("pandas")
    frame = quick({"x": bpe}).run({"p": CORPUS}).to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["language"]) == ["en", "de", "ja"]


def test_tiktoken_and_transformers_objects(bpe):
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    rows = {
        "own": quick({"x": bpe}).run({"d": EN}).rows[0].tokens,
        "wrapped": quick({"x": wrapped}).run({"d": EN}).rows[0].tokens,
    }
    assert rows["own"] == rows["wrapped"]
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r"\s+|\S+", mergeable_ranks=ranks, special_tokens={})
    assert quick({"x": encoding}).run({"d": ["abc é"]}).rows[0].tokens == 6


def test_markdown_has_the_numbers_of_the_report():
    """Every cell of its tables is the report's, stars where tokens are unknown, and the command stands above."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tokenry.lab.pages.audit_markdown import markdown

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizers = {"x": _trained(), "words": words}
    corpus = {"en": ["the cat", "the the"], "de": ["die Katze ist da", "x"], "el": ["γάτα", "η"]}
    report = TokenizerAudit(tokenizers, words=0, resamples=50).run({"p": corpus})
    text = markdown(report, title="What it costs", command="tokenry audit " + "x" * 90 + " --corpus p")
    assert text.startswith("# What it costs\n")
    assert max(map(len, text.split("```sh\n")[1].split("\n```")[0].split("\n"))) <= 14 + 90
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.split("## The same")[0].split("\n")
    }
    for code, name in (("de", "German"), ("el", "Greek"), ("en", "English")):
        found = [report.row(tokenizer, "p", code) for tokenizer in tokenizers]
        assert rows[name][1] == f"{found[0].byte_premium:.2f}"
        assert rows[name][2:] == [f"{row.premium:.2f}" + ("\\*" if row.unknown else "") for row in found]
    assert rows["German"][3].endswith("\\*")
    assert not rows["English"][3].endswith("\\*")
    over = text.split("## The same")[1].split("## Tokenizers")[0]
    assert f"{report.row('x', 'p', 'el').corrected:.2f}" in over
    table = text.split("## Tokenizers")[1]
    assert f"| {report.row('words', 'p', 'de').unknown + report.row('words', 'p', 'el').unknown} |" in table
    single = TokenizerAudit(tokenizers, words=0).run({"p": {"en": ["a"], "de": ["b"]}})
    assert "intervals over" not in markdown(single, title="t", command="c")
    with pytest.raises(ValueError, match="needs a parallel corpus"):
        markdown(TokenizerAudit(tokenizers, words=0).run({"d": ["a"]}), title="t", command="c")


def _trained():
    from tokenry.text.bpe import train_bpe

    return train_bpe(["the cat sat on the mat"] * 3, 265)


@pytest.mark.slow
def test_the_committed_page_is_what_the_command_makes():
    """Columns of two tokenizers, measured again, are those of the page of the documentation."""
    from pathlib import Path

    from tokenry.errors import AssetMissingError
    from tokenry.lab.sources.language_names import language_name
    from tokenry.lab.sources.text import parallel_corpus
    from tokenry.lab.sources.tokenizers import load_real_tokenizer

    page = (Path(__file__).resolve().parents[2] / "docs/tokenizer-costs.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.split("## The same")[0].split("\n") if line.startswith("| ")]
    table = {row[0]: dict(zip(lines[0], row, strict=True)) for row in lines}
    try:
        corpus = parallel_corpus("libreoffice-help")
        tokenizers = {name: load_real_tokenizer(name) for name in ("gpt2", "gemma3")}
    except AssetMissingError as error:
        pytest.skip(str(error))
    chosen = corpus.select(["en", "de", "km"])
    report = TokenizerAudit(tokenizers, words=0, vocabulary=False, round_trip=False, resamples=1).run({"p": chosen.lines})
    assert len(table) == 1 + 1 + len(corpus.languages)  # with the heading and the line under it
    for code in chosen.languages:
        for name in tokenizers:
            assert table[language_name(code)][name] == f"{report.row(name, 'p', code).premium:.2f}"
