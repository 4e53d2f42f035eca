"""The audit by Ray with two workers gives the numbers of one process, and the same errors."""

from __future__ import annotations

import logging

import pytest

from tests.text.test_audit import CORPUS, HARD, byte_level, quick, word_level
from tokenry.text.audit import LineFile

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


def test_two_workers_one_result(cluster, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(CORPUS["de"] * 20), encoding="utf-8")
    corpora = {"p": CORPUS, "d": HARD, "f": LineFile(path)}
    tokenizers = {"x": byte_level(), "y": word_level()}
    one = quick(tokenizers, vocabulary=True, batch=256).run(corpora)
    two = quick(tokenizers, vocabulary=True, batch=256, engine="ray", workers=2).run(corpora)
    for left, right in zip(one.to_rows(), two.to_rows(), strict=True):
        left.pop("megabytes_per_second"), right.pop("megabytes_per_second")
        assert left == right
    assert (one.failures, one.samples, one.vocabularies, one.spreads) == (
        two.failures,
        two.samples,
        two.vocabularies,
        two.spreads,
    )
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n" * 2000 + b"bad \xff here\n")
    with pytest.raises(ValueError, match=r"bad\.txt, line 2001: byte 0xff at column 5"):
        quick(tokenizers, engine="ray", workers=2, batch=512).run({"d": LineFile(bad)})
