"""What an audit returns: JSON, CSV, rows and frames that agree; tokenizers of every library."""

from __future__ import annotations

import csv
import io
import json

import pytest

from tests.text.test_audit import CORPUS, EN, HARD, byte_level, quick, word_level


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
