"""Every built system's claim runs at scale smoke, offline, and says what it is supposed to say."""

import numpy as np
import pytest

from tokenry.catalog import system, systems
from tokenry.lab.evidence.claim import SCALES
from tokenry.lab.evidence.results import load_all
from tokenry.lab.evidence.run import rejudge, reproduce

MARGINS = {
    "audiotokens": [0.0, 0.0, 0.0, 0.0, 0.02, 0.0, -1.0, 0.0, -0.05, 1.0, 0.3],
    "byteprobs": [0.0] * 6 + [-0.05, 0.0, 0.0],
    "consistency": [-0.02] + [0.0] * 7,
    "d2o": [0.0] * 12,
    "eet": [-0.02, 0.0, -0.05, 0.0],
    "glsim": [0.5, -0.1, 1.0],
    "idpruner": [0.0, -0.02, -0.02] * 2,
    "kl3m": [0.0] * 5 + [0.02, 0.0],
    "lexinvariant": [0.0, 0.15, -0.02, -0.02, 1.0, 0.0, 0.5],
    "premium": [0.0] * 4,
    "todre": [0.0, -0.01, 0.0],
    "vq": [0.3] * 5 + [0.0] * 8 + [-0.05] * 2,
    "wordpool": [0.0] * 7 + [-0.005],
    "zooprune": [0.0, -0.02, -0.02] * 2,
}
BUILT = [row.slug for row in systems() if row.status == "built"]


@pytest.mark.parametrize("slug", BUILT)
def test_smoke(slug, tmp_path):
    claim = system(slug).load_claim()
    seen = []
    result = reproduce(claim, scale="smoke", seeds=1, out=tmp_path, progress=lambda message, fraction: seen.append(fraction))
    assert result.complete
    assert {name for c in claim.contrasts for name in (c.better, c.worse)} <= set(result.arm_means())
    assert all(np.isfinite(value) for value in result.arm_means().values())
    assert all(0.0 <= fraction <= 1.0 + 1e-9 for fraction in seen)
    assert len(result.comparisons) == len(claim.contrasts)


@pytest.mark.parametrize("slug", BUILT)
def test_a_claim_is_a_sentence_with_a_bar_and_three_scales(slug):
    claim = system(slug).load_claim()
    assert claim.system == slug
    assert len(claim.statement.split()) > 8
    assert claim.contrasts
    assert claim.metric
    sizes = [claim.settings(scale) for scale in SCALES]
    assert sizes[0] != sizes[1] != sizes[2]


def test_committed_results_are_intact_and_belong_to_todays_claims(pytestconfig):
    found = load_all(pytestconfig.rootpath / "results")
    assert {r.system for r in found if r.scale == "small"} == set(BUILT)
    for result in found:
        claim = system(result.system).load_claim()
        assert result.complete
        assert len(result.seeds) >= 3
        assert (result.statement, result.settings) == (claim.statement, claim.settings(result.scale))


def test_committed_results_are_judged_as_today(pytestconfig):
    """`judge` over the stored outcomes gives the stored comparisons, reason and verdict of every committed result.

    Numbers may differ in the last digits, where another scipy rounds its t distribution otherwise.
    """
    for stored in load_all(pytestconfig.rootpath / "results"):
        again = rejudge(system(stored.system).load_claim(), stored)
        assert (again.verdict, again.reason) == (stored.verdict, stored.reason), stored.system
        for now, then in zip(again.comparisons, stored.comparisons, strict=True):
            assert now.keys() == then.keys()
            numbers = [key for key, value in then.items() if isinstance(value, float)]
            assert [now[key] for key in numbers] == pytest.approx([then[key] for key in numbers], rel=1e-12, abs=1e-14)
            assert [now[key] for key in now if key not in numbers] == [then[key] for key in then if key not in numbers]


def test_margins_stay_where_they_were_set():
    """A margin is set before the first run and never moved after: whoever moves one has to say so here and on the page."""
    for slug, margins in MARGINS.items():
        assert [contrast.margin for contrast in system(slug).load_claim().contrasts] == margins, slug


def test_no_verdict_depends_on_the_load_of_the_machine(monkeypatch, tmp_path):
    """GLSim is the one claim about cost: its arms are counts, the same when the clock runs wild."""
    first = reproduce(system("glsim").load_claim(), scale="smoke", seeds=1, out=tmp_path / "quiet")
    ticks = iter(range(10**9))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks) ** 2))
    second = reproduce(system("glsim").load_claim(), scale="smoke", seeds=1, out=tmp_path / "busy")
    assert second.seeds[0]["arms"] == first.seeds[0]["arms"]
    assert second.seeds[0]["facts"] != first.seeds[0]["facts"]
