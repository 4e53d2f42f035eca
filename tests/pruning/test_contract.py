"""The contracts of the pruning wing, over every system of the catalogue and the baselines."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.contracts import keeps_contract, of_wing
from tokenry.pruning import TopK, baselines, kv_baselines, vit_baselines
from tokenry.testing import check_contract, check_pruner

BASELINES = [
    pytest.param(instance, id=name)
    for module in (baselines, kv_baselines, vit_baselines)
    for name, instance in module.contract_instances().items()
]


@pytest.mark.parametrize("instance", of_wing("pruning") + BASELINES)
def test_contract(instance):
    keeps_contract(instance)


class BrokenPatches(vit_baselines.ClsRow):
    def scores(self, signals):
        return super().scores(signals).mean(dim=0, keepdim=True).expand(len(signals.tokens), -1)  # one for all images


class BrokenUnderAutocast(vit_baselines.ClsRow):
    def scores(self, signals):
        scores = super().scores(signals)
        return -scores if signals.content.dtype == torch.bfloat16 and signals.tokens.dtype == torch.float32 else scores


class NarrowScores(vit_baselines.ClsRow):
    def scores(self, signals):
        return super().scores(signals).bfloat16()


class BlindToCompiling(vit_baselines.ClsRow):
    @contextmanager
    def attach(self, model, *, record=True):
        with self.__class__.__mro__[1].attach(self, getattr(model, "_orig_mod", model), record=record) as trace:
            yield trace
        if hasattr(model, "_orig_mod"):
            model._orig_mod.layernorm.weight.data.mul_(2)


class BrokenCache(kv_baselines.StreamingLLM):
    def evict(self, slots, budget, state):
        return super().evict(replace(slots, real=None), budget, state)  # padding is read as sinks


def test_the_public_entry_point_catches_a_broken_pruner():
    class Broken(TopK):
        def select(self, features, *, importance=None, mask=None):
            return super().select(features, importance=importance, mask=mask).flip(0)

    check_pruner(TopK(0.25))
    with pytest.raises(AssertionError, match="Broken breaks the contract"):
        check_pruner(Broken(0.25))
    with pytest.raises(AssertionError, match="BrokenPatches breaks the contract 'batch equals loop'"):
        check_contract(BrokenPatches())
    with pytest.raises(AssertionError, match="BrokenUnderAutocast breaks the contract 'autocast': autocast changes which"):
        check_contract(BrokenUnderAutocast())
    with pytest.raises(AssertionError, match="NarrowScores breaks the contract 'autocast': scores must be float32"):
        check_contract(NarrowScores())
    with pytest.raises(AssertionError, match=r"BlindToCompiling breaks the contract 'compiled before'.* is not plain after"):
        check_contract(BlindToCompiling())
    with pytest.raises(AssertionError, match="BrokenCache breaks the contract 'padding'"):
        check_contract(BrokenCache(0.3))
    with pytest.raises(TypeError, match=r"there is a contract for .*Pruner, .*, none for int"):
        check_contract(3)
