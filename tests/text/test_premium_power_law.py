"""Premium: power law, target, validation loop."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.text.premium import (
    choose_target,
    fit_power_law,
    measure_sizes,
    train_bpe,
    validate_vocabularies,
)

FAST = settings(max_examples=25, deadline=None)
CORPUS = {
    "en": ["the cat sat", "on the mat", ""],
    "de": ["die Katze saß", "auf der Matte", ""],
    "zh": ["猫坐着", "在垫子上", ""],
}
TEXT = [line for lines in CORPUS.values() for line in lines] * 3

# Power law ----------------------------------------------------------------------------------------------------------------

SIZES = np.arange(1, 8) * 16384.0


@FAST
@given(a=st.floats(1e3, 1e7), b=st.floats(0.05, 2.0), share=st.floats(0.05, 0.9), multiple=st.sampled_from([None, 1, 128]))
def test_exact_curves_are_found_and_inverted(a, b, share, multiple):
    fall = a * SIZES**-b
    c = fall[0] * share / (1 - share)
    law = fit_power_law(SIZES, fall + c)
    assert law.flags == ()
    assert law.good
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=1e-5)
    for size in (20_000.0, 70_000.0, 110_000.0):
        target = a * size**-b + c
        found = law.vocabulary_for(target, multiple=multiple)
        assert found == pytest.approx(size, rel=1e-5, abs=0 if multiple is None else multiple)
        assert multiple is None or found % multiple == 0
        assert law.reach(target) == "reached"
        assert law.predict(found) == pytest.approx(target, rel=1e-4) if multiple is None else True


@FAST
@given(seed=st.integers(0, 10**6))
def test_vocabulary_falls_strictly_with_the_target(seed):
    rng = np.random.default_rng(seed)
    law = fit_power_law(SIZES, np.sort(rng.uniform(4e4, 9e4, 7))[::-1])
    if not law.good:
        return
    targets = np.linspace(max(law.c, 0.0) + 1, max(law.counts), 20)
    found = [law.vocabulary_for(float(t), minimum=1, maximum=1e300) for t in targets]
    assert all(x > y for x, y in pairwise(found) if y > 1 and x < 1e300)


def test_fit_is_the_least_squares_fit():
    """Against a fine grid over the exponent, each with its own linear regression in plain Python."""
    y = [56360.5, 53218.6, 51931.9, 50800.5, 49911.0, 49644.1, 49495.9]
    law = fit_power_law(SIZES, y)

    def loss(b):
        p = [(v / 65536.0) ** -b for v in SIZES]
        mp, my = sum(p) / 7, sum(y) / 7
        a = sum((x - mp) * (z - my) for x, z in zip(p, y, strict=True)) / sum((x - mp) ** 2 for x in p)
        return sum((z - my - a * (x - mp)) ** 2 for x, z in zip(p, y, strict=True))

    best = min((i / 10_000 for i in range(100, 20_000)), key=loss)
    assert law.b == pytest.approx(best, abs=2e-4)
    assert law.rmse == pytest.approx(math.sqrt(loss(best) / 7), rel=1e-5)


def test_targets_out_of_reach():
    law = fit_power_law(SIZES, 3e5 * SIZES**-0.3 + 4e4)
    assert law.reach(law.c) == "unreachable"
    assert law.vocabulary_for(law.c - 1) == 262_144
    assert law.predicted_count(law.c) == law.predict(262_144)  # that size was not measured
    assert law.predicted_count(law.c, maximum=int(SIZES[-1])) == law.counts[-1]  # that one was
    worst = max(law.counts)
    assert law.reach(worst + 1) == "easy"
    assert law.vocabulary_for(worst + 1) == 8192
    assert law.predicted_count(worst + 1, minimum=int(SIZES[0])) == worst
    near = law.predict(400_000)
    assert law.reach(near) == "clamped"
    assert law.vocabulary_for(near) == 262_144
    with pytest.raises(ValueError, match="target"):
        law.vocabulary_for(0)
    with pytest.raises(ValueError, match="maximum"):
        law.vocabulary_for(5e4, minimum=100, maximum=50)
    with pytest.raises(ValueError, match="multiple"):
        law.vocabulary_for(5e4, minimum=130, maximum=140, multiple=128)


def test_bad_fits_are_flagged_and_few_sizes_refused():
    assert {"negative_exponent", "not_monotone"} <= set(fit_power_law([1, 2, 3], [1, 2, 4]).flags)
    assert not fit_power_law([1000, 2000, 3000, 4000], [9, 8, 6, 3]).good  # falls faster and faster
    assert "negative_asymptote" in fit_power_law([1, 2, 3], [3, 2, 1.5]).flags
    two = fit_power_law([100, 200], [4.0, 3.0], asymptote=False)
    assert two.c == 0
    assert two.predict(100) == pytest.approx(4)
    assert two.predict(200) == pytest.approx(3)
    with pytest.raises(ValueError, match=r"at least 3 .*asymptote=False"):
        fit_power_law([100, 200], [4.0, 3.0])
    for sizes, counts in (
        ([1, 1, 2], [3, 2, 1]),
        ([1, 2, 3], [3, 2]),
        ([0, 1, 2], [3, 2, 1]),
        ([1, 2, 3], [3, 2, float("nan")]),
    ):
        with pytest.raises(ValueError):
            fit_power_law(sizes, counts)


def test_target_of_least_variance_by_brute_force():
    rng = np.random.default_rng(3)
    laws = {
        f"l{i}": fit_power_law(SIZES, a * SIZES**-0.4 + c)
        for i, (a, c) in enumerate(rng.uniform((1e6, 3e4), (3e6, 6e4), (6, 2)))
    }
    targets = list(range(40_000, 90_000, 1_000))
    choice = choose_target(laws, targets)
    best = {t: np.var([law.predicted_count(t) for law in laws.values()], ddof=1) for t in targets}
    assert choice.target == min(best, key=best.get)
    assert choice.variances == pytest.approx({float(t): v for t, v in best.items()})
    assert choice.sizes == {k: law.vocabulary_for(choice.target) for k, law in laws.items()}
    with pytest.raises(ValueError, match="two languages"):
        choose_target({"l0": laws["l0"]}, targets)
    with pytest.raises(ValueError, match="targets"):
        choose_target(laws, [])


def test_validation_loop_reports_realised_sizes():
    words = [f"{a}{b}" for a in ("ver", "un", "be", "ge", "ent") for b in ("kauf", "stand", "lauf", "nehm", "halt")]
    rng = np.random.default_rng(0)
    corpus = {name: [" ".join(rng.choice(words, n)) for _ in range(40)] for name, n in (("short", 5), ("long", 8))}
    curves = {name: measure_sizes(lines, lines, [256, 264, 280, 300, 5000]) for name, lines in corpus.items()}
    assert curves["long"].realised[-1] < 5000
    assert curves["long"].count_at(264) > curves["long"].count_at(300)
    for name, curve in curves.items():  # one training and truncation = a training per size
        slow = measure_sizes(corpus[name], corpus[name], curve.asked, train=lambda texts, size: train_bpe(texts, size))
        assert curve == slow
    laws = {name: curve.fit() for name, curve in curves.items()}
    targets = np.linspace(300, 900, 13).tolist()
    result = validate_vocabularies(laws, corpus, corpus, targets, minimum=256, maximum=300)
    assert set(result.actual) == {"short", "long"}
    assert result.rmse >= 0
    assert result.realised == {k: int(v) for k, v in result.choice.sizes.items()}
    with pytest.raises(ValueError, match="missing"):
        validate_vocabularies(laws, {"short": []}, corpus, targets, minimum=256, maximum=300)
    with pytest.raises(ValueError, match="one of"):
        curves["long"].count_at(3)
