"""The contract of the pruning wing, over every pruner of visual tokens."""

import pytest

from tokenry.pruning import (
    Compose,
    DivPrune,
    FastV,
    IDPruner,
    RandomPruner,
    ToDRE,
    TopK,
    UniformGrid,
    ZOOPrune,
)
from tokenry.testing import PRUNER_CHECKS, check_pruner

PRUNERS = [
    IDPruner(0.25),
    IDPruner(0.25, importance_transform="soft_topk"),
    IDPruner(0.25, per_round=3),
    ZOOPrune(0.25),
    ToDRE(0.25),
    ToDRE(0.25, rule="k_center"),
    RandomPruner(0.25),
    UniformGrid(0.25),
    TopK(0.25),
    DivPrune(0.25),
    FastV(0.25),
    Compose.named("norm+max_min", 0.25),
    Compose.named("norm+product", 0.25),
]


@pytest.mark.parametrize("pruner", PRUNERS, ids=repr)
@pytest.mark.parametrize("check", PRUNER_CHECKS, ids=lambda c: c.__name__.strip("_"))
def test_contract(pruner, check):
    check(pruner)


def test_the_public_entry_point_catches_a_broken_pruner():
    class Broken(TopK):
        def select(self, features, *, importance=None, mask=None):
            return super().select(features, importance=importance, mask=mask).flip(0)

    check_pruner(TopK(0.25))
    with pytest.raises(AssertionError, match="Broken breaks the contract"):
        check_pruner(Broken(0.25))
