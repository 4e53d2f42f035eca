"""The contracts of the text wing, over every system of the catalogue."""

import pytest

from tests.contracts import keeps_contract, of_wing
from tokenry.catalog import system
from tokenry.testing import check_language_model, check_probe, contract_instances
from tokenry.text.consistency import ConsistencyProbe
from tokenry.text.wordpool import FlatLM


@pytest.mark.parametrize("instance", of_wing("text"))
def test_contract(instance):
    keeps_contract(instance)


def test_the_public_entry_point_catches_a_broken_model():
    case = contract_instances(system("wordpool"))["flat"]

    class Broken(FlatLM):
        def forward(self, input_ids, **rest):
            return super().forward(input_ids.flip(0), **rest)

    def make():
        model = Broken(case["model"].config)
        model.load_state_dict(case["model"].state_dict())
        return model

    with pytest.raises(AssertionError, match="Broken breaks the contract 'batch equals loop'"):
        check_language_model(make, lambda: case["batch"])


def test_a_probe_that_draws_from_the_global_state_is_caught():
    class Broken(ConsistencyProbe):
        def run(self, *arguments, **options):
            import torch

            torch.rand(1)
            return super().run(*arguments, **options)

    with pytest.raises(AssertionError, match="the global random state was changed"):
        check_probe(Broken(share=0.3, format="few_shot"))
