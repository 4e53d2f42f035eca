"""Options and the state every test starts from."""

import logging
import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENRY_OFFLINE", "1")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run tests that take minutes or need downloaded assets")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests run side by side on few cores: one thread each, and sums in one order."""
    import torch

    torch.set_num_threads(1)


class _NoDeprecations(logging.Handler):
    """transformers logs most deprecations: a test that makes it say so fails."""

    def emit(self, record):
        assert "deprecated" not in record.getMessage(), record.getMessage()


@pytest.fixture(autouse=True, scope="session")
def _deprecations_fail():
    logging.getLogger("transformers").addHandler(_NoDeprecations(logging.WARNING))
