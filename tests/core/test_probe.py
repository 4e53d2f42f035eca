"""Probes: exact where they are exact, learning what can be learnt, blind to what is masked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.probe import fit_probe


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_least_squares_worked_by_hand():
    """y = 2, 4, 5, 4, 5 over x = 1..5: slope 0.6, constant 2.2."""
    x = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    probe = fit_probe(x, torch.tensor([[2.0], [4.0], [5.0], [4.0], [5.0]], dtype=torch.float64), kind="least_squares")
    assert probe.net.weight.item() == pytest.approx(0.6, abs=1e-12)
    assert probe.net.bias.item() == pytest.approx(2.2, abs=1e-12)
    assert probe(x).dtype == torch.float64


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["linear", "mlp", "least_squares"]))
def test_masked_places_are_not_there(seed, kind):
    x, y = normal(6, 5, 4, seed=seed), torch.arange(30).view(6, 5) % 3
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[0, 0] = True
    wild = torch.where(mask[..., None], x, torch.inf)
    masked = fit_probe(wild, torch.where(mask, y, -1), kind=kind, mask=mask, classes=3, steps=5, seed=seed)
    alone = fit_probe(x[mask], y[mask], kind=kind, classes=3, steps=5, seed=seed)
    assert torch.allclose(masked(x), alone(x), atol=1e-5)


def test_linear_reads_a_plane_and_mlp_what_a_plane_cannot():
    x = normal(400, 2)
    plane, parity = (x[:, 0] > 0).long(), ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    assert float(fit_probe(x, plane).hits(x, plane).mean()) > 0.98
    assert float(fit_probe(x, parity).hits(x, parity).mean()) < 0.65
    assert float(fit_probe(x, parity, kind="mlp").hits(x, parity).mean()) > 0.95
    values = x @ torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    assert (fit_probe(x, values)(x) - values).detach().square().mean().item() < 1e-3


def test_scale_and_place_of_the_features_do_not_matter():
    x, y = normal(200, 3), torch.arange(200) % 2
    x[:, 0] += 2.0 * y
    moved = 1000.0 * x + 500.0
    assert float((fit_probe(x, y, steps=50)(x) - fit_probe(moved, y, steps=50)(moved)).abs().max()) < 1e-2


def test_the_seed_sets_everything_and_the_global_state_stays():
    x, y = normal(2000, 4), torch.arange(2000) % 3
    state = torch.random.get_rng_state()
    one, two, other = (fit_probe(x, y, kind="mlp", steps=4, seed=seed)(x) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.random.get_rng_state())
    source = x.clone().requires_grad_()
    fit_probe(source, y, steps=1)
    assert source.grad is None


def test_half_precision_features():
    x, y = normal(64, 4).bfloat16(), torch.arange(64) % 2
    assert fit_probe(x, y, steps=2)(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"kind": "svm"}, ValueError, "kind"), ({"steps": 0}, ValueError, "steps"), ({"hidden": 0}, ValueError, "hidden"),
        ({"x": torch.zeros(4, 2).long()}, TypeError, "x"), ({"y": torch.zeros(3).long()}, ValueError, "y must be classes"),
        ({"x": torch.full((4, 2), torch.nan)}, ValueError, "x"), ({"classes": 1}, ValueError, r"0\.\.0"),
        ({"mask": torch.zeros(4, dtype=torch.bool)}, ValueError, "mask"), ({"mask": torch.ones(4)}, TypeError, "mask"),
        ({"y": torch.full((4, 1), torch.inf)}, ValueError, "y"), ({"learning_rate": 0.0}, ValueError, "learning_rate"),
    ],
)  # fmt: skip
def test_bad_input(change, error, word):
    given_ = {"x": normal(4, 2), "y": torch.arange(4) % 2, **change}
    with pytest.raises(error, match=word):
        fit_probe(given_.pop("x"), given_.pop("y"), **given_)


def test_a_feature_that_stood_still_cannot_explode():
    x, y = normal(200, 3), torch.arange(200) % 2
    x[:, 1] += 3.0 * y
    x[:, 0] = 7.0
    probe = fit_probe(x, y)
    moved = x.clone()
    moved[:, 0] += 1e-3 * normal(200, seed=1)
    assert float((probe(moved) - probe(x)).abs().max()) < 0.01
    assert fit_probe(x.bfloat16(), y, kind="least_squares")(x).dtype == torch.float32
