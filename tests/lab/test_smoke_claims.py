"""Every built system's claim runs at scale smoke, offline, and says what it is supposed to say."""

import numpy as np
import pytest

from tokenry.catalog import systems
from tokenry.lab.evidence.claim import SCALES
from tokenry.lab.evidence.results import load_all
from tokenry.lab.evidence.run import claim_of, reproduce

BUILT = [row.slug for row in systems() if row.status == "built"]


@pytest.mark.parametrize("slug", BUILT)
def test_smoke(slug, tmp_path):
    claim = claim_of(slug)
    seen = []
    result = reproduce(claim, scale="smoke", seeds=1, out=tmp_path, progress=lambda message, fraction: seen.append(fraction))
    assert result.complete
    assert {name for c in claim.contrasts for name in (c.better, c.worse)} <= set(result.arm_means())
    assert all(np.isfinite(value) for value in result.arm_means().values())
    assert all(0.0 <= fraction <= 1.0 + 1e-9 for fraction in seen)
    assert len(result.comparisons) == len(claim.contrasts)


@pytest.mark.parametrize("slug", BUILT)
def test_a_claim_is_a_sentence_with_a_bar_and_three_scales(slug):
    claim = claim_of(slug)
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
        claim = claim_of(result.system)
        assert result.complete
        assert len(result.seeds) >= 3
        assert (result.statement, result.settings) == (claim.statement, claim.settings(result.scale))
