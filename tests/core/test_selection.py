"""Budgets, top-k and the greedy selector, against plain reference implementations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.selection import RULES, complement, gather_tokens, greedy_select, min_max, resolve_budget, top_k
from tokenry.core.similarity import cosine, cosine_matrix, nearest, unit_rows

PROPERTY = settings(max_examples=25, deadline=None)


def reference(features, k, rule, importance=None, balance=0.5, first=None, per_round=1):
    """The rules as written in the papers, with the full similarity matrix, one row at a time, float64."""
    x = features.double()
    x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
    similarity = x @ x.T
    n = len(x)
    weight = None
    if importance is not None:
        w = importance.double()
        weight = (w - w.min()) / (w.max() - w.min() + (1e-8 if rule == "product" else 1e-6))
        if rule == "product" and w.max() == w.min():
            weight = torch.ones_like(w)

    def best(score, count):
        return sorted(range(n), key=lambda i: (-score[i], i))[:count]

    if first is not None:
        chosen = [first]
    else:
        chosen = best((weight if weight is not None else torch.zeros(n)).tolist(), min(per_round, k))
    while len(chosen) < k:
        m = similarity[:, chosen].max(dim=1).values
        score = {
            "mmr": lambda m=m: balance * weight - (1 - balance) * m,
            "product": lambda m=m: weight * (1 - m).clamp(min=0),
            "max_min": lambda m=m: -m,
            "max_sum": lambda chosen=chosen: -similarity[:, chosen].sum(dim=1),
        }[rule]()
        score[chosen] = -math.inf
        chosen += best(score.tolist(), min(per_round, k - len(chosen)))
    return chosen


@PROPERTY
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 90), rule=st.sampled_from(RULES), share=st.floats(0.05, 1.0),
    balance=st.sampled_from([0.0, 0.3, 0.5, 1.0]), per_round=st.sampled_from([1, 1, 4]),
)  # fmt: skip
def test_greedy_equals_the_reference(seed, n, rule, share, balance, per_round):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, n, 12, generator=generator, dtype=torch.float64)
    importance = torch.randn(2, n, generator=generator, dtype=torch.float64)
    k = max(1, round(n * share))
    got = greedy_select(features, k, rule=rule, importance=importance, balance=balance, per_round=per_round)
    expected = [reference(f, k, rule, w, balance, None, per_round) for f, w in zip(features, importance, strict=True)]
    assert got.tolist() == expected


@PROPERTY
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(["max_min", "max_sum"]), first=st.integers(0, 19))
def test_diversity_rules_start_where_told(seed, rule, first):
    features = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    got = greedy_select(features, 9, rule=rule, first=first)
    assert got[0].tolist() == reference(features[0], 9, rule, first=first)
    assert got[0, 0] == first


@PROPERTY
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(RULES))
def test_prefixes_nest_and_row_scale_does_not_matter(seed, rule):
    generator = torch.Generator().manual_seed(seed)
    features, importance = torch.randn(1, 30, 8, generator=generator), torch.rand(1, 30, generator=generator)
    long = greedy_select(features, 12, rule=rule, importance=importance)
    assert torch.equal(greedy_select(features, 7, rule=rule, importance=importance), long[:, :7])
    scaled = features * torch.rand(1, 30, 1, generator=generator).add(0.5)
    shifted = 3 * importance + 2
    assert torch.equal(greedy_select(scaled, 12, rule=rule, importance=shifted), long)


def test_balance_one_is_top_k_and_zero_is_farthest_point():
    generator = torch.Generator().manual_seed(0)
    features, importance = torch.randn(2, 40, 8, generator=generator), torch.rand(2, 40, generator=generator)
    assert torch.equal(greedy_select(features, 9, rule="mmr", importance=importance, balance=1.0), top_k(importance, 9))
    far = greedy_select(features, 9, rule="max_min", first=importance.argmax(dim=1))
    assert torch.equal(greedy_select(features, 9, rule="mmr", importance=importance, balance=0.0), far)


@PROPERTY
@given(seed=st.integers(0, 1000), n=st.integers(3, 9), k=st.integers(1, 3))
def test_farthest_point_is_a_two_approximation_in_the_angular_metric(seed, n, k):
    from itertools import combinations

    features = torch.randn(1, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angles = cosine_matrix(features[0], features[0]).clamp(-1, 1).acos()

    def radius(centres):
        return float(angles[:, list(centres)].min(dim=1).values.max())

    chosen = greedy_select(features, k, rule="max_min", first=0)[0].tolist()
    assert radius(chosen) <= 2 * min(radius(c) for c in combinations(range(n), k)) + 1e-6


def test_ties_go_to_the_lowest_index_and_duplicates_come_last():
    same = torch.ones(1, 5, 4)
    flat = torch.ones(1, 5)
    for rule in RULES:
        assert greedy_select(same, 5, rule=rule, importance=flat)[0].tolist() == [0, 1, 2, 3, 4]
    twins = torch.eye(4).repeat(2, 1)[None]
    assert set(greedy_select(twins, 4, rule="mmr", importance=torch.ones(1, 8))[0].tolist()) == {0, 1, 2, 3}
    assert top_k(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3).tolist() == [[1, 2, 3]]


def test_zero_rows_have_no_similarity_and_masked_tokens_are_never_chosen():
    features = torch.zeros(1, 6, 3)
    features[0, 2:] = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    chosen = greedy_select(features, 6, rule="max_min", first=2)
    assert sorted(chosen[0].tolist()) == list(range(6))
    mask = torch.tensor([[True, False, True, True, False, True]])
    for rule in RULES:
        chosen = greedy_select(features, 4, rule=rule, importance=torch.rand(1, 6), mask=mask)
        assert sorted(chosen[0].tolist()) == [0, 2, 3, 5]


def test_a_large_run_needs_no_n_by_n_matrix():
    """Float32 features are not copied: beyond the input, memory stays far below N x N (and below the features)."""
    n, width, k = 3000, 256, 40
    features = torch.randn(1, n, width, generator=torch.Generator().manual_seed(0))
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.untyped_storage().nbytes() if tensor.data_ptr() != features.data_ptr() else 0)
            return out

    with Watch():
        greedy_select(features, k, rule="max_min")
    assert largest < n * n * 4 / 20


@pytest.mark.parametrize(
    ("n", "keep", "rounding", "expected"),
    [
        (10, 0.25, "half_even", 2), (6, 0.25, "half_even", 2), (576, 0.3334, "floor", 192), (576, 0.2223, "floor", 128),
        (576, 0.1112, "floor", 64), (10, 0.01, "half_even", 1), (10, 10, "half_even", 10), (10, 1.0, "floor", 10),
        (0, 0.5, "floor", 0), (14, 0.25, "half_even", 4),
    ],
)  # fmt: skip
def test_budgets(n, keep, rounding, expected):
    assert resolve_budget(n, keep, rounding=rounding) == expected


@pytest.mark.parametrize("keep", [0, 0.0, -1, -0.5, 1.5, 75.0, float("nan"), float("inf"), 11])
def test_bad_budgets_name_the_argument_and_what_is_allowed(keep):
    with pytest.raises(ValueError, match="keep"):
        resolve_budget(10, keep)


@pytest.mark.parametrize("keep", [True, "0.5", None, [1]])
def test_budgets_of_the_wrong_type(keep):
    with pytest.raises(TypeError, match="keep must be a float"):
        resolve_budget(10, keep)


def test_a_percentage_is_answered_with_the_ratio():
    with pytest.raises(ValueError, match="pass the int 75"):
        resolve_budget(10, 75.0)
    with pytest.raises(ValueError, match=r"did you mean 0\.125"):
        resolve_budget(10, 12.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be"), ({"k": 9}, "k must be"), ({"k": True}, "k must be an int"), ({"rule": "maxmin"}, "rule must be one of"),
        ({"importance": None, "rule": "mmr"}, "importance must be given"), ({"importance": torch.ones(1, 7)}, "importance must have shape"),
        ({"importance": torch.ones(1, 8).long()}, "importance must be a floating"), ({"balance": 1.5}, "balance must be"),
        ({"first": 8}, "first must be"), ({"first": torch.tensor([0, 1])}, "first must have shape"), ({"per_round": 0}, "per_round must be"),
        ({"mask": torch.ones(1, 8)}, "mask must be a bool"), ({"mask": torch.zeros(1, 8, dtype=torch.bool)}, "mask must leave"),
        ({"features": torch.full((1, 8, 2), float("nan"))}, "features must be finite"), ({"features": torch.ones(8, 2)}, "features must have shape"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, message):
    arguments = {"features": torch.randn(1, 8, 2), "k": 3, "rule": "max_min", "importance": torch.rand(1, 8), **change}
    features, k = arguments.pop("features"), arguments.pop("k")
    with pytest.raises((ValueError, TypeError), match=message):
        greedy_select(features, k, **arguments)


def test_gather_and_complement():
    x = torch.arange(12.0).view(1, 6, 2)
    index = torch.tensor([[4, 1]])
    assert gather_tokens(x, index)[0, :, 0].tolist() == [8.0, 2.0]
    assert complement(index, 6).tolist() == [[0, 2, 3, 5]]
    assert min_max(torch.tensor([[1.0, 3.0, 9.0]]), mask=torch.tensor([[True, True, False]]))[0, 1] == pytest.approx(
        1.0, abs=1e-6
    )


def test_similarity():
    a = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unit_rows(torch.zeros(1, 3)), torch.zeros(1, 3))
    torch.testing.assert_close(cosine(a, a), torch.ones(2, 5))
    values, index = nearest(a, a.flip(1), chunk=2)
    assert index[0].tolist() == [4, 3, 2, 1, 0]
    torch.testing.assert_close(values, torch.ones(2, 5))
