"""The benchmark of the papers' sizes runs, part by part, on tiny models on a CPU."""

from __future__ import annotations

import importlib
import json
import math

import pytest
import torch

from tokenry.lab.compare.methods import methods_of


@pytest.fixture
def full_size(monkeypatch, pytestconfig):
    monkeypatch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
    return importlib.import_module("full_size")


def rows_of(full_size, part, file, folder):
    full_size.main(["--toy", "--device", "cpu", "--repeats", "1", "--only", part, "--out", str(folder)])
    body = json.loads((folder / f"{file}_cpu.json").read_text())
    assert body["environment"]["device"] == "cpu"
    assert body["seconds"] > 0
    return body["rows"]


def test_every_visual_pruner_shortens_the_prompt_of_both_models(full_size, tmp_path):
    rows = rows_of(full_size, "vlm", "full_size", tmp_path)
    assert {(row["model"], row["method"]) for row in rows} == {
        (model, method) for model in ("LLaVA-1.5-7B", "Qwen2.5-VL-7B") for method in methods_of("vlm") if method != "none"
    }
    for row in rows:
        assert row["cache"] < 1
        assert row["time"] > 0
        assert row["peak_memory"] > 0
    random = next(row for row in rows if (row["model"], row["method"]) == ("LLaVA-1.5-7B", "random"))
    words = random["tokens"] - 36
    assert random["cache"] == pytest.approx((words + 9) / (words + 36))


def test_the_other_parts_write_the_files_of_their_own_benchmarks(full_size, tmp_path):
    cache = rows_of(full_size, "cache", "kv_cache", tmp_path)
    assert [row["method"] for row in cache[:2]] == ["plain model", "FullCache"]
    assert all(row["cache_ratio"] < 0.3 for row in cache[2:])
    assert all(math.isfinite(row[key]) for row in cache for key in ("prefill_overhead", "decode_ratio"))
    (greedy,) = rows_of(full_size, "selection", "selection", tmp_path)
    assert greedy["same selection"] is True
    (vit,) = rows_of(full_size, "vit", "eet_latency", tmp_path)
    assert vit["model"] == "ViT-S"
    assert vit["eet_ms"] > 0


def test_it_measures_nothing_without_a_gpu_and_refuses_unknown_parts(full_size, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    full_size.main(["--out", str(tmp_path)])
    assert "no GPU" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        full_size.main(["--only", "vlm,audio"])
    assert "got audio" in capsys.readouterr().err


def test_the_models_have_the_sizes_of_the_papers(full_size):
    with torch.device("meta"):
        for case, billions, tokens in ((full_size.llava, 7.06, 576), (full_size.qwen, 8.29, 1296)):
            model, inputs = case("meta", 2)
            assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
            assert inputs["input_ids"].shape == (2, tokens + 64 + (2 if tokens == 1296 else 0))
