"""Claims, their statistics, result files and the resumable runner."""

import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.checkpoint import write_text
from tokenry.errors import ResultFileError
from tokenry.lab.evidence.claim import (
    Claim,
    Competence,
    Contrast,
    Measurement,
    compare,
    compare_all,
    judge,
)
from tokenry.lab.evidence.intervals import bootstrap_difference
from tokenry.lab.evidence.results import load, load_all, result_path, save
from tokenry.lab.evidence.run import rejudge, reproduce


class Coin(Claim):
    """A claim whose outcome is known: `better` wins by `lift`."""

    system, statement, metric = "coin", "better beats worse", "accuracy"
    contrasts = (Contrast("beats", "better", "worse"), Contrast("not worse", "better", "worse", margin=-0.1))
    competence = Competence("reference", 0.5)

    def __init__(self, lift=0.4, reference=1.0, pause=0.0):
        self.lift, self.reference, self.pause, self.ran = lift, reference, pause, []

    def settings(self, scale):
        return {"items": 80}

    def measure(self, scale, seed, device, progress):
        time.sleep(self.pause)
        self.ran.append(seed)
        rng = np.random.default_rng(seed)
        worse = rng.random(80) * 0.1
        progress("items", 1.0)
        return Measurement(
            {"better": (worse + self.lift).tolist(), "worse": worse.tolist(), "reference": [self.reference] * 80},
            {"lift": self.lift},
        )


@pytest.mark.parametrize(
    ("lift", "reference", "verdict", "word"),
    [(0.4, 1.0, "holds", "every contrast"), (-0.4, 1.0, "fails", "fails: beats"), (0.0, 1.0, "inconclusive", "every difference is zero: beats; not worse"), (0.4, 0.2, "inconclusive", "below the bar")],
)  # fmt: skip
def test_verdicts(tmp_path, lift, reference, verdict, word):
    result = reproduce(Coin(lift, reference), scale="smoke", seeds=3, out=tmp_path)
    assert result.verdict == verdict
    assert word in result.reason
    assert load(result_path(tmp_path, "coin", "smoke")) == result


def test_an_interval_around_the_margin_is_inconclusive():
    rng = np.random.default_rng(0)
    noisy = [Measurement({"a": rng.normal(0.02, 1, 50).tolist(), "b": [0.0] * 50}) for _ in range(3)]
    assert compare(Contrast("a over b", "a", "b"), noisy).verdict == "inconclusive"


def around(*means, items=30, spread=0.05):
    """One measurement per mean: arm "a" has items around it, arm "b" is zero."""
    noise = np.random.default_rng(0).normal(0, spread, (len(means), items))
    noise -= noise.mean(axis=1, keepdims=True)
    return [Measurement({"a": (m + row).tolist(), "b": [0.0] * items}) for m, row in zip(means, noise, strict=True)]


def test_three_seeds_that_disagree_decide_nothing():
    """The bootstrap alone would say holds: its interval ends at the lowest seed."""
    runs = around(0.05, 0.2, 0.4)
    assert bootstrap_difference([m.arms["a"] for m in runs], [m.arms["b"] for m in runs])[1] > 0.0
    assert compare(Contrast("a over b", "a", "b"), runs).verdict == "inconclusive"
    assert compare(Contrast("a over b", "a", "b"), around(0.2, 0.21, 0.22)).verdict == "holds"
    assert compare(Contrast("b over a", "b", "a"), around(0.2, 0.21, 0.22)).verdict == "fails"


def test_the_contrasts_of_a_claim_are_judged_together():
    """What is clear alone is not clear as one of twenty, where one would be clear by chance; neither way round."""
    runs = around(0.2, 0.25, 0.35)
    for contrast, alone in ((Contrast("x", "a", "b"), "holds"), (Contrast("x", "b", "a"), "fails")):
        assert compare(contrast, runs).verdict == alone
        family = compare_all([contrast] * 20, runs)
        assert {c.verdict for c in family} == {"inconclusive"}
        assert family[0].low == compare(contrast, runs).low
        assert family[0].p == pytest.approx(20 * compare(contrast, runs).p)


def test_a_clear_contrast_gives_way_to_the_next():
    """Holm, not Bonferroni: what is decided no longer counts against the others."""
    runs = [Measurement(m.arms | {"c": [-1.0] * 30}) for m in around(0.18, 0.26, 0.34)]
    close, clear = Contrast("close", "a", "b"), Contrast("clear", "b", "c")
    assert 0.0125 < compare(close, runs).p <= 0.025
    assert [c.verdict for c in compare_all([close, clear], runs)] == ["holds", "holds"]
    assert [c.verdict for c in compare_all([close, close], runs)] == ["inconclusive", "inconclusive"]


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.1])
def test_a_contrast_without_any_difference_is_vacuous(margin):
    runs = [Measurement({"a": [0.3, 0.5], "b": [0.3, 0.5], "reference": [1.0, 1.0]}) for _ in range(3)]
    found = compare(Contrast("a over b", "a", "b", margin), runs)
    assert (found.verdict, found.p) == ("vacuous", 1.0)


def test_a_vacuous_contrast_keeps_a_claim_from_holding_but_not_from_failing():
    claim = Coin()
    claim.contrasts = (Contrast("same", "worse", "worse", -0.1), Contrast("beats", "better", "worse"))
    runs = [Coin(0.4).measure("smoke", seed, "cpu", lambda *a: None) for seed in range(3)]
    verdict, reason, _ = judge(claim, runs)
    assert (verdict, reason) == ("inconclusive", "every difference is zero: same")
    runs = [Coin(-0.4).measure("smoke", seed, "cpu", lambda *a: None) for seed in range(3)]
    assert judge(claim, runs)[:2] == ("fails", "fails: beats")


def test_the_reason_tells_what_is_open_from_what_is_too_weak_among_many():
    claim = Coin()
    claim.competence = None
    claim.contrasts = (Contrast("open", "a", "b", 0.25), *[Contrast(f"weak {i}", "a", "b") for i in range(9)])
    verdict, reason, _ = judge(claim, around(0.2, 0.25, 0.35))
    assert verdict == "inconclusive"
    assert reason.startswith("interval includes the margin: open. clear alone, not among 10 contrasts: weak 0; weak 1;")


def test_one_seed_is_judged_and_says_so(tmp_path):
    result = reproduce(Coin(), scale="smoke", seeds=1, out=tmp_path)
    assert result.verdict == "holds"
    assert "one seed" in result.reason
    assert {c["basis"] for c in result.comparisons} == {"items of one seed"}
    result = reproduce(Coin(), scale="smoke", seeds=2, out=tmp_path)
    assert "one seed" not in result.reason
    assert {c["basis"] for c in result.comparisons} == {"seeds and items"}


def test_a_unit_that_is_the_same_in_every_seed_is_resampled_as_one():
    rng = np.random.default_rng(0)
    languages = np.linspace(-0.6, 1.0, 12)
    runs = [Measurement({"a": (languages + rng.normal(0, 0.01, 12)).tolist(), "b": [0.0] * 12}) for _ in range(3)]
    claim = Coin()
    claim.contrasts, claim.competence = (Contrast("a over b", "a", "b"),), None
    assert judge(claim, runs)[0] == "holds"
    claim.unit = "language"
    assert judge(claim, runs)[0] == "inconclusive"


def test_judging_again_changes_what_is_judged_and_nothing_else(tmp_path):
    result = reproduce(Coin(), scale="smoke", seeds=3, out=tmp_path)
    stricter = Coin()
    stricter.contrasts = (Contrast("beats", "better", "worse", margin=0.6),)
    again = rejudge(stricter, result)
    assert (again.verdict, len(again.comparisons)) == ("fails", 1)
    assert stricter.ran == []
    assert (again.seeds, again.environment, again.settings) == (result.seeds, result.environment, result.settings)
    assert rejudge(Coin(), again) == result


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-2, 2))
def test_the_interval_is_paired(seed, shift):
    """A constant shift between paired items has no uncertainty, whatever the spread of the items."""
    items = np.random.default_rng(seed).normal(0, 50, (3, 20))
    mean, low, high = bootstrap_difference((items + shift).tolist(), items.tolist(), resamples=200)
    assert mean == pytest.approx(shift, abs=1e-9)
    assert low == pytest.approx(high, abs=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        runs = rng.normal(0.3, 1.0, (8, 40)) + rng.normal(0, 0.2, (8, 1))
        _, low, high = bootstrap_difference(runs.tolist(), np.zeros((8, 40)).tolist(), resamples=400)
        covered += low <= 0.3 <= high
    assert 0.85 <= covered / 200 <= 0.99


def test_bad_measurements_are_refused():
    for arms in ({}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}, {"a": [float("nan")]}):
        with pytest.raises(ValueError, match="arms"):
            Measurement(arms)
    with pytest.raises(ValueError, match="needs arm 'z'"):
        compare(Contrast("x", "z", "a"), [Measurement({"a": [1.0]})])


def test_finished_seeds_are_kept_and_other_settings_are_refused(tmp_path):
    first = Coin()
    reproduce(first, scale="smoke", seeds=2, out=tmp_path)
    more = Coin()
    result = reproduce(more, scale="smoke", seeds=4, out=tmp_path)
    assert more.ran == [2, 3]
    assert sorted(result.seeds) == [0, 1, 2, 3]
    changed = Coin()
    changed.statement = "another sentence"
    with pytest.raises(ValueError, match="another statement or other settings"):
        reproduce(changed, scale="smoke", seeds=2, out=tmp_path)
    assert reproduce(changed, scale="smoke", seeds=2, out=tmp_path, fresh=True).statement == "another sentence"
    with pytest.raises(ValueError, match="scale must be one of"):
        reproduce(first, scale="huge", out=tmp_path)
    with pytest.raises(ValueError, match="seeds must be"):
        reproduce(first, scale="smoke", seeds=0, out=tmp_path)


def _slow_run(folder):
    reproduce(Coin(pause=0.25), scale="smoke", seeds=40, out=folder)


def test_a_killed_run_loses_at_most_the_seed_in_flight(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_slow_run, args=(tmp_path,))
    process.start()
    path = result_path(tmp_path, "coin", "smoke")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.exists() or len(load(path).seeds) < 2):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = sorted(load(path).seeds)
    assert len(finished) >= 2
    assert not load(path).complete
    resumed = Coin()
    result = reproduce(resumed, scale="smoke", seeds=len(finished) + 1, out=tmp_path)
    assert resumed.ran == [len(finished)]
    assert result.complete


@pytest.mark.parametrize("damage", ["truncate", "number", "schema", "field", "text"])
def test_damaged_result_files_are_detected_and_named(tmp_path, damage):
    reproduce(Coin(), scale="smoke", seeds=2, out=tmp_path)
    path = result_path(tmp_path, "coin", "smoke")
    text = path.read_text()
    if damage == "truncate":
        path.write_text(text[: len(text) // 2])
    elif damage == "text":
        path.write_bytes(b"\xff\xfe nothing")
    else:
        body = json.loads(text)
        if damage == "number":
            body["seeds"]["0"]["arms"]["better"][0] = 99.0
        elif damage == "schema":
            body["schema"] = 0
        else:
            del body["verdict"]
        path.write_text(json.dumps(body))
    for call in (
        lambda: load(path),
        lambda: load_all(tmp_path),
        lambda: reproduce(Coin(), scale="smoke", seeds=3, out=tmp_path),
    ):
        with pytest.raises(ResultFileError, match=r"coin\.smoke\.json"):
            call()


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "first")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        write_text(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_results_remember_where_they_were_made(tmp_path):
    result = reproduce(Coin(), scale="smoke", seeds=1, out=tmp_path)
    assert {"python", "torch", "transformers", "device", "cpus"} <= set(result.environment)
    assert result.peak_bytes > 1e6
    assert result.seconds >= 0
    assert save(result, tmp_path) == result_path(tmp_path, "coin", "smoke")
