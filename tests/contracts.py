"""The instances that the contract tests of a wing run over."""

import pytest

from tokenry.catalog import systems
from tokenry.testing import contract_instances


def of_wing(wing):
    """A parameter per instance of every built row of the wing; a row without instances stops the collection and says so."""
    return [
        pytest.param(instance, id=f"{row.slug}: {name}")
        for row in systems(wing)
        if row.status == "built"
        for name, instance in contract_instances(row).items()
    ]
