"""The instances that the contract tests of a wing run over, and what holds for every one of them."""

import pickle
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tokenry.catalog import systems
from tokenry.testing import check_contract, contract_instances


def of_wing(wing):
    """A parameter per instance of every built row of the wing; a row without instances stops the collection and says so."""
    return [
        pytest.param(instance, id=f"{row.slug}: {name}")
        for row in systems(wing)
        if row.status == "built"
        for name, instance in contract_instances(row).items()
    ]


@contextmanager
def random_state_kept():
    """The block leaves the global random state of torch, numpy and random as it was."""

    def states():
        return {"torch": torch.get_rng_state().numpy(), "numpy": np.random.get_state(), "random": random.getstate()}  # noqa: NPY002

    before = states()
    yield
    changed = [name for name, state in states().items() if pickle.dumps(state) != pickle.dumps(before[name])]
    assert not changed, f"the global random state was changed: {changed}"


def keeps_contract(instance):
    """Its contract holds, and the check draws nothing from the global random state."""
    with random_state_kept():
        check_contract(instance)
