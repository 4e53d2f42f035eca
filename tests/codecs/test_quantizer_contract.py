"""Every system of the codecs wing keeps its contract."""

import pytest

from tests.contracts import keeps_contract, of_wing


@pytest.mark.parametrize("instance", of_wing("codecs"))
def test_contract(instance):
    keeps_contract(instance)
