"""The comparison: on the testbed, on a user's own model and pictures, and on a text for KV-cache methods."""

import csv
import json

import pytest
import torch

from tokenry.lab.beds.answers import matches
from tokenry.lab.beds.vqa.bed import WEIGHTS, vqa_items
from tokenry.lab.compare import Settings, compare_pruning
from tokenry.lab.compare.methods import kv_method, methods_of, visual_method
from tokenry.lab.evidence.measure import cache_bytes, peak_bytes, time_ratio
from tokenry.lab.sources.questions import read_questions


def quiet(message, fraction):
    assert 0.0 <= fraction <= 1.0


def test_the_testbed_end_to_end(tmp_path):
    settings = Settings(methods=("none", "random", "idpruner", "sensitivity+max_min"), keeps=(0.25,), limit=8, batch=4, maps=2)
    result = compare_pruning(settings, tmp_path, quiet)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["none", "random", "idpruner", "sensitivity+max_min"]
    assert rows["none"]["kept"] == 196
    assert all(rows[m]["kept"] == 49 for m in list(rows)[1:])
    assert all(rows[m]["cache_ratio"] < 0.5 and rows[m]["memory_ratio"] < 1 for m in list(rows)[1:])
    assert rows["none"]["cache_ratio"] == 1.0
    assert all(row["low"] <= row["quality"] <= row["high"] for row in rows.values())
    assert [len(k) for k in result["maps"]["kept"]["idpruner"]["0.25"]] == [49, 49]
    assert {p.name for p in tmp_path.iterdir()} == {"compare.json", "index.html", "quality.png"}
    again = compare_pruning(settings, tmp_path, quiet)
    assert [r["time_ratio"] for r in again["rows"]] == [r["time_ratio"] for r in result["rows"]]  # nothing was measured twice
    fewer = Settings(methods=("none",), keeps=(0.25,), limit=4, batch=4, maps=2)
    with pytest.raises(ValueError, match="made with another limit; choose another --out, or replace it with --fresh"):
        compare_pruning(fewer, tmp_path, quiet)
    assert [row["method"] for row in compare_pruning(fewer, tmp_path, quiet, fresh=True)["rows"]] == ["none"]


@pytest.fixture
def own_data(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    with (folder / "questions.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["image", "question", "answer"])
        writer.writeheader()
        for i, item in enumerate(vqa_items(split="test", n=4, seed=1)):
            pixels = item.image.numpy() if isinstance(item.image, torch.Tensor) else item.image
            Image.fromarray(pixels).save(folder / f"{i}.png")
            writer.writerow({"image": f"{i}.png", "question": item.question, "answer": item.answer if i else ""})
    return folder


def test_a_model_and_pictures_of_ones_own(tmp_path, own_data):
    settings = Settings(model=str(WEIGHTS), data=own_data, methods=("none", "idpruner"), keeps=(0.5,), batch=2, maps=2)
    result = compare_pruning(settings, tmp_path / "out", quiet)
    assert [row["kept"] for row in result["rows"]] == [196.0, 98.0]
    assert result["rows"][0]["outcomes"][0] == 1.0  # without an answer, agreement with the unpruned model is scored
    assert result["maps"]["items"][0]["grid"] == [14, 14] or result["maps"]["items"][0]["grid"] == (14, 14)


def test_kv_methods_on_a_text(tmp_path, monkeypatch):
    from tokenry.lab.beds.language.recall import byte_host
    from tokenry.lab.compare import cache as kv

    text = (" ".join(f"line {i} of a text about nothing in particular\n" for i in range(400))) * 2
    (tmp_path / "book.txt").write_text(text)
    monkeypatch.setattr(kv, "smollm2_host", lambda device: byte_host(text, steps=2))
    monkeypatch.setattr(kv, "_PROMPT", 96)
    monkeypatch.setattr(kv, "_FOLLOW", 8)
    settings = Settings(data=tmp_path / "book.txt", keeps=(0.25,), limit=2)
    result = compare_pruning(settings, tmp_path / "out", quiet)
    rows = {row["method"]: row for row in result["rows"]}
    assert list(rows) == ["full", "streaming", "h2o", "snapkv", "d2o"]
    assert rows["full"]["cache_ratio"] == 1.0
    assert all(rows[m]["kept"] < 96 for m in list(rows)[1:])
    assert result["quality"] == "nats per token"


@pytest.mark.parametrize(
    ("text", "error", "word"),
    [
        ("image,question\n,what\n", ValueError, "item 1: image is missing"), ("image,question,answer\nno.png,what,1\n", FileNotFoundError, "no image"),
        ("image,question\n", ValueError, "holds no questions"),
    ],
)  # fmt: skip
def test_bad_question_files_are_named(tmp_path, text, error, word):
    with pytest.raises(FileNotFoundError, match=r"questions\.csv, questions\.jsonl"):
        read_questions(tmp_path, 5)
    (tmp_path / "questions.csv").write_text(text)
    with pytest.raises(error, match=word):
        read_questions(tmp_path, 5)
    (tmp_path / "questions.csv").unlink()
    (tmp_path / "questions.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_questions(tmp_path, 5)


def test_jsonl_and_json(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    row = {"image": "a.png", "question": "what?", "answer": 7}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps(row) + "\n")
    assert [item.answer for item in read_questions(tmp_path, 5)] == ["7", "7"]


def test_matching_is_by_whole_words():
    assert matches("It is Red.", "red") == 1.0
    assert matches("thirteen", "teen") == 0.0
    assert matches("13", "3") == 0.0
    assert matches("anything", "") == 0.0


def test_method_names():
    assert {type(visual_method(name, 0.5, 0)).__name__ for name in methods_of("vlm")} >= {"IDPruner", "ToDRE", "ZOOPrune"}
    assert set(methods_of("cache")) == {"full", "streaming", "h2o", "snapkv", "d2o"}
    for call in (lambda: visual_method("idprune", 0.5, 0), lambda: kv_method("h20", 0.5)):
        with pytest.raises(ValueError, match="did you mean"):
            call()
    with pytest.raises(ValueError, match="selector must be one of"):
        visual_method("norm+best", 0.5, 0)


def test_measures():
    assert peak_bytes(lambda: torch.zeros(1000, 1000)) >= 4_000_000
    assert time_ratio(lambda: sum(range(200_000)), lambda: sum(range(20_000)), repeats=3) > 2

    class Layer:
        keys = torch.zeros(1, 2, 3, 4)
        values = torch.zeros(1, 2, 3, 4, dtype=torch.float16)

    assert cache_bytes(type("Cache", (), {"layers": [Layer()]})()) == 24 * 6
