"""Every system of the codecs wing keeps its contract."""

import pytest

from tests.contracts import of_wing
from tokenry.testing import check_contract


@pytest.mark.parametrize("instance", of_wing("codecs"))
def test_contract(instance):
    check_contract(instance)
