"""EET: hash codes, packed codes, Hamming search and mean average precision."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts import random_state_kept
from tokenry import MissingDependencyError
from tokenry.pruning.eet import (
    HammingIndex,
    average_precision,
    binary_codes,
    hamming_distances,
    mean_average_precision,
    pack_codes,
    solve_hash_codes,
    unpack_codes,
)

FAST = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10_000)


def codes(seed: int, n: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 2, (n, bits), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def labels(seed: int, n: int, classes: int = 3) -> torch.Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed + 77))


# Solver -------------------------------------------------------------------------------------------------------------------


def reference(onehot: np.ndarray, v: np.ndarray, b: np.ndarray, sigma: float, delta: float, rounds: int) -> np.ndarray:
    """The four steps in the paper's orientation, one matrix at a time."""
    y, pinv = onehot.T, np.linalg.pinv
    u1, _, u2 = np.linalg.svd(b @ v.T)
    r = u1 @ u2
    for _ in range(rounds):
        b = np.where(r @ v >= 0, 1.0, -1.0)
        u = sigma * y @ v.T @ pinv(sigma * v @ v.T)
        v = pinv(sigma * u.T @ u + delta * r.T @ r) @ (sigma * u.T @ y + delta * r.T @ b)
        u1, _, u2 = np.linalg.svd(b @ v.T)
        r = u1 @ u2
    return b.T


@FAST
@given(seed=SEEDS, bits=st.integers(1, 6), per_class=st.integers(2, 5))
def test_solver_equals_the_written_out_steps(seed, bits, per_class):
    onehot = np.eye(6)[np.arange(6).repeat(per_class)]
    rng = np.random.default_rng(seed)
    v, b = rng.normal(size=(bits, len(onehot))), np.sign(rng.normal(size=(bits, len(onehot))))
    solved = solve_hash_codes(onehot, bits, init=(v, b))
    assert np.array_equal(solved.numpy(), reference(onehot, v, b, 1.0, 1e-4, 15))


@FAST
@given(seed=st.integers(0, 500), bits=st.integers(4, 10))
def test_one_code_per_class_when_bits_do_not_exceed_classes(seed, bits):
    y = torch.arange(10).repeat(12)
    solved = solve_hash_codes(torch.eye(10)[y], bits, seed=seed)
    assert solved.shape == (120, bits)
    assert set(solved.unique().tolist()) <= {-1.0, 1.0}
    assert all(len(solved[y == k].unique(dim=0)) == 1 for k in range(10))


def test_classes_get_different_codes_when_there_is_room():
    y = torch.arange(10).repeat(12)
    for seed in range(5):
        assert len(solve_hash_codes(torch.eye(10)[y], 10, seed=seed).unique(dim=0)) == 10


@pytest.mark.parametrize("mode", ["class", "class_average"])
def test_modes_with_one_code_per_class(mode):
    y = torch.arange(4).repeat(10)
    plain = solve_hash_codes(torch.eye(4)[y], 16)
    assert max(len(plain[y == k].unique(dim=0)) for k in range(4)) > 1
    solved = solve_hash_codes(torch.eye(4)[y], 16, mode=mode)
    assert all(len(solved[y == k].unique(dim=0)) == 1 for k in range(4))
    assert len(solved.unique(dim=0)) == 4


def test_solver_is_deterministic_and_leaves_the_global_state_alone():
    onehot = torch.eye(3)[torch.arange(9) % 3]
    with random_state_kept():
        first = solve_hash_codes(onehot, 5, seed=3)
    assert torch.equal(first, solve_hash_codes(onehot, 5, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"onehot": torch.ones(4, 3)}, "single 1"),
        ({"onehot": torch.zeros(4)}, r"shape \[n, c\]"),
        ({"bits": 0}, "bits"),
        ({"iterations": 0}, "iterations"),
        ({"delta": 0.0}, "delta"),
        ({"init": (np.zeros((2, 4)), np.zeros((3, 4)))}, "init V must have shape"),
        ({"mode": "classes"}, "mode"),
    ],
)
def test_bad_solver_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        solve_hash_codes(**{"onehot": torch.eye(4), "bits": 3, **change})


# Codes --------------------------------------------------------------------------------------------------------------------


def test_sign_of_zero_is_plus_one():
    assert binary_codes(torch.tensor([[0.0, -0.0, -2.0, 3.0]])).tolist() == [[1, 1, -1, 1]]
    with pytest.raises(ValueError, match="finite"):
        binary_codes(torch.tensor([float("nan")]))


@FAST
@given(seed=SEEDS, n=st.integers(0, 20), bits=st.integers(1, 70))
def test_packing_comes_back(seed, n, bits):
    original = codes(seed, n, bits)
    packed = pack_codes(original)
    assert packed.shape == (n, -(-bits // 8))
    assert torch.equal(unpack_codes(packed, bits).long(), original)


def test_bad_codes():
    with pytest.raises(ValueError, match="only -1 and"):
        pack_codes(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="for 20 bits"):
        unpack_codes(torch.zeros(2, 2, dtype=torch.uint8), 20)
    with pytest.raises(TypeError, match="uint8"):
        unpack_codes(torch.zeros(2, 2), 16)


@FAST
@given(seed=SEEDS, bits=st.integers(1, 33), n=st.integers(1, 60), data=st.data())
def test_search_engines_agree_with_each_other_and_with_the_distances(seed, bits, n, data):
    k = data.draw(st.integers(1, n))
    query, database = codes(seed, 4, bits), codes(seed + 1, n, bits)
    distance = hamming_distances(query, database)
    assert torch.equal(distance, (query[:, None] != database[None]).sum(-1))
    order = distance.argsort(dim=1, stable=True)[:, :k]
    for engine in ("numpy", "faiss"):
        index = HammingIndex(bits, engine=engine)
        index.add(database[: n // 2])
        index.add(database[n // 2 :])
        found, numbers = index.search(query, k)
        assert len(index) == n
        assert index.nbytes == n * -(-bits // 8)
        assert torch.equal(numbers, order)
        assert torch.equal(found, distance.gather(1, order))


def test_index_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match=r"tokenry\[search\]"):
        HammingIndex(8, engine="faiss")
    with pytest.raises(ValueError, match="empty"):
        HammingIndex(8, engine="numpy").search(codes(0, 1, 8), 1)


# Mean average precision ---------------------------------------------------------------------------------------------------


def test_average_precision_by_hand():
    query, database = torch.tensor([[1, 1, 1]]), torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, -1], [-1, -1, -1]])
    score = average_precision(query, [7], database, [7, 0, 7, 0])
    assert score.item() == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(query, [7], database, [7, 0, 7, 0], top=2).item() == pytest.approx(1.0)
    assert mean_average_precision(query.repeat(2, 1), [7, 9], database, [7, 0, 7, 0]) == pytest.approx((1 + 2 / 3) / 4)


@FAST
@given(seed=SEEDS)
def test_perfect_codes_score_one(seed):
    table = torch.tensor([[1, 1, 1, 1], [-1, -1, 1, 1], [1, -1, -1, -1]])
    wanted, present = labels(seed, 6), labels(seed + 1, 30)
    present[:3] = torch.arange(3)
    for ties in ("stable", "expected"):
        assert mean_average_precision(table[wanted], wanted, table[present], present, ties=ties) == pytest.approx(1.0)


def test_expected_ties_are_the_mean_over_all_orders():
    query = torch.tensor([[1, 1]])
    database = torch.tensor([[1, 1], [1, -1], [1, -1], [1, -1], [-1, 1], [-1, -1]])
    present = torch.tensor([0, 1, 0, 1, 1, 1])
    orders = [average_precision(query, [1], database[list(p)], present[list(p)]).item() for p in permutations(range(6))]
    assert average_precision(query, [1], database, present, ties="expected").item() == pytest.approx(np.mean(orders))


@FAST
@given(n=st.integers(1, 40), r=st.integers(0, 40))
def test_all_codes_equal_has_the_closed_forms(n, r):
    r = min(r, n)
    query, database = torch.ones(1, 4), torch.ones(n, 4)
    present = torch.tensor([1] * r + [0] * (n - r))
    stable = mean_average_precision(query, [1], database, present)
    assert stable == pytest.approx(1.0 if r else 0.0)
    places = np.arange(1, n + 1)
    slope = (r - 1) / (n - 1) if n > 1 else 0.0
    expected = float((((places - 1) * slope + 1) / places).mean()) if r else 0.0
    assert mean_average_precision(query, [1], database, present, ties="expected") == pytest.approx(expected)


@FAST
@given(seed=SEEDS)
def test_expected_precision_ignores_the_order_of_the_database(seed):
    query, database = codes(seed, 5, 6), codes(seed + 1, 40, 6)
    wanted, present = labels(seed, 5), labels(seed + 1, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    a = average_precision(query, wanted, database, present, ties="expected")
    b = average_precision(query, wanted, database[order], present[order], ties="expected")
    assert torch.allclose(a, b)


def test_bad_rankings():
    good = {"query_codes": codes(0, 2, 4), "query_labels": [0, 1], "database_codes": codes(1, 5, 4), "database_labels": [0] * 5}
    for change, error, message in (
        ({"query_labels": [0.5, 1.0]}, TypeError, "query_labels must hold integer"),
        ({"query_labels": [0]}, ValueError, "query_labels must have shape"),
        ({"database_codes": codes(1, 5, 3)}, ValueError, "database_codes"),
        ({"query_codes": torch.zeros(2, 4)}, ValueError, "only -1 and"),
        ({"top": 6}, ValueError, "top must be"),
        ({"top": 2, "ties": "expected"}, ValueError, "top must be None"),
        ({"ties": "random"}, ValueError, "ties"),
    ):
        with pytest.raises(error, match=message):
            mean_average_precision(**{**good, **change})
