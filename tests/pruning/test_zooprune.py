"""ZOO-Prune: the estimator against the exact derivative, and the selection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tokenry.core.seeding import seeded
from tokenry.core.selection import greedy_select
from tokenry.pruning import ZOOPrune
from tokenry.pruning.sensitivity import _triangle, low_rank, two_layer, unit_directions
from tokenry.testing import llava_inputs, tiny_llava

PROPERTY = settings(max_examples=25, deadline=None)


def projector(width=12, hidden=24, out=20, seed=0, dtype=torch.float64):
    with seeded(seed):
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out)).to(dtype).eval()


def exact_mean(module, x, directions):
    """mean_j ||J u_j|| from the full Jacobian of every token."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        jacobian = torch.autograd.functional.jacobian(module, token)
        rows.append(torch.linalg.vector_norm(jacobian @ directions.T, dim=0).mean())
    return torch.stack(rows).view(x.shape[:2])


@PROPERTY
@given(seed=st.integers(0, 10_000), step=st.sampled_from([0.02, 0.01, 0.005]))
def test_both_methods_agree_with_the_jacobian(seed, step):
    generator = torch.Generator().manual_seed(seed)
    module, x = projector(seed=seed), torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    directions = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    unit = directions / (directions.norm(dim=1, keepdim=True) + 1e-12)
    truth = exact_mean(module, x, unit)
    pruner = ZOOPrune(2, step=step)
    torch.testing.assert_close(pruner.sensitivity(module, x, directions, method="exact"), truth, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(pruner.sensitivity(module, x, directions), truth, rtol=1e-4, atol=1e-9)


def test_the_error_of_the_difference_falls_with_the_square_of_the_step():
    module, x = projector(), torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    directions = torch.randn(16, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = ZOOPrune(2).sensitivity(module, x, directions, method="exact")
    errors = [(ZOOPrune(2, step=h).sensitivity(module, x, directions) - exact).abs().max() for h in (0.4, 0.2, 0.1)]
    assert 3.0 < errors[0] / errors[1] < 5.0
    assert 3.0 < errors[1] / errors[2] < 5.0


@seeded(0)
def test_forward_mode_serves_projectors_that_are_not_two_layers():
    module = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 20)).double().eval()
    x = torch.randn(1, 4, 12, dtype=torch.float64)
    directions = unit_directions(5, 12, generator=torch.Generator().manual_seed(0)).double()
    assert two_layer(module) is None
    torch.testing.assert_close(
        ZOOPrune(2).sensitivity(module, x, directions, method="exact"), exact_mean(module, x, directions)
    )


def test_the_triangular_factor_gives_the_same_norms():
    weight = torch.randn(700, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.randn(9, 600, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks = _triangle(weight)
    assert len(blocks) == 8
    square = sum((y[:, start:] @ rows).square().sum(dim=1) for start, rows in blocks)
    torch.testing.assert_close(square.sqrt(), torch.linalg.vector_norm(y @ weight.T, dim=1))


def test_more_directions_estimate_the_expectation_better():
    module, x = projector(), torch.randn(1, 64, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    truth = ZOOPrune(2, directions=4096).sensitivity(module, x, generator=torch.Generator().manual_seed(9), method="exact")
    errors = []
    for count in (4, 64):
        runs = [
            ZOOPrune(2, directions=count).sensitivity(module, x, generator=torch.Generator().manual_seed(s), method="exact")
            for s in range(8)
        ]
        errors.append(torch.stack([(r - truth).pow(2).mean().sqrt() for r in runs]).mean())
    assert 2.5 < errors[0] / errors[1] < 6.5  # 1/sqrt(m): a factor of 4


@seeded(0)
def test_a_linear_projector_is_equally_sensitive_everywhere_and_selection_is_pure_diversity():
    linear = nn.Sequential(nn.Linear(12, 24), nn.Identity(), nn.Linear(24, 20)).double().eval()
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    scores = ZOOPrune(4).sensitivity(linear, x, generator=torch.Generator().manual_seed(0), method="exact")
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores))
    flat = torch.ones(1, 10, dtype=torch.float64)
    z = linear(x).detach()
    assert torch.equal(ZOOPrune(4).select(z, importance=flat), greedy_select(z, 4, rule="max_min", first=0))


def test_output_scale_scales_sensitivity_and_not_the_selection():
    module, x = projector(), torch.randn(1, 16, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    pruner = ZOOPrune(5)
    plain = pruner.sensitivity(module, x)
    with torch.no_grad():
        module[2].weight *= 3
        module[2].bias *= 3
    scaled = pruner.sensitivity(module, x)
    torch.testing.assert_close(scaled, 3 * plain, rtol=1e-6, atol=1e-9)
    z = module(x).detach()
    assert torch.equal(pruner.select(z, importance=plain), pruner.select(z, importance=scaled))


def test_the_same_seed_gives_the_same_tokens_and_permuted_tokens_permuted_scores():
    module, x = projector(dtype=torch.float32), torch.randn(1, 16, 12)
    pruner = ZOOPrune(5)
    assert torch.equal(pruner.sensitivity(module, x), pruner.sensitivity(module, x))
    order = torch.randperm(16)
    torch.testing.assert_close(
        pruner.sensitivity(module, x)[:, order], pruner.sensitivity(module, x[:, order]), rtol=1e-3, atol=1e-5
    )
    assert (
        pruner.select(module(x).detach(), importance=pruner.sensitivity(module, x))[0, 0]
        == pruner.sensitivity(module, x).argmax()
    )


def test_half_precision_projectors_are_probed_in_float32():
    module, x = projector(dtype=torch.float32), torch.randn(1, 8, 12)
    wide = ZOOPrune(2).sensitivity(module, x)
    narrow = ZOOPrune(2).sensitivity(module.bfloat16(), x.bfloat16())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, rtol=0.05, atol=0.02)


def test_low_rank_probe():
    module = projector(dtype=torch.float32)
    full = low_rank(projector(12, 12, 12, dtype=torch.float32), 12)
    torch.testing.assert_close(
        full(torch.ones(1, 3, 12)), projector(12, 12, 12, dtype=torch.float32)(torch.ones(1, 3, 12)), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="rank must be"):
        low_rank(module, 13)
    with pytest.raises(ValueError, match="linear-activation-linear"):
        low_rank(nn.Linear(2, 2), 1)
    model, inputs = tiny_llava(), llava_inputs((1,))
    with ZOOPrune(0.25, rank=8).attach(model) as trace, torch.no_grad():
        model(**inputs)
    assert trace.counts() == {0: 9}


def test_attachment_scores_equal_the_method_on_the_projector_input():
    model, inputs = tiny_llava(), llava_inputs((2,))
    seen = []
    for method in ("finite_difference", "exact"):
        pruner = ZOOPrune(0.25, method=method)
        with pruner.attach(model) as trace, torch.no_grad():
            model(**inputs)
        handle = model.model.multi_modal_projector.register_forward_hook(lambda m, a, o: seen.append(a[0]))
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        expected = pruner.sensitivity(model.model.multi_modal_projector, seen[-1])
        torch.testing.assert_close(torch.stack([e.scores for e in trace.kept]), expected, rtol=1e-3, atol=1e-5)


def test_bad_input_is_named():
    module, x = projector(dtype=torch.float32), torch.randn(1, 6, 12)
    for options, message in (
        ({"directions": 0}, "directions"),
        ({"step": 0.0}, "step"),
        ({"method": "central"}, "method"),
        ({"rank": 0}, "rank"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            ZOOPrune(2, **options)
    noisy = nn.Sequential(nn.Linear(12, 4), nn.Dropout(0.5), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="projector must be in eval mode"):
        ZOOPrune(2).sensitivity(noisy, x)
    with pytest.raises(ValueError, match="projector must act on every token by itself"):
        ZOOPrune(2).sensitivity(lambda t: t - t.mean(dim=-2, keepdim=True), x)
    with pytest.raises(ValueError, match="projector must map N tokens to N"):
        ZOOPrune(2).sensitivity(lambda t: t[..., ::2, :], x)
    with pytest.raises(ValueError, match="x must be finite"):
        ZOOPrune(2).sensitivity(module, x * float("nan"))
    with pytest.raises(ValueError, match="directions must have shape"):
        ZOOPrune(2).sensitivity(module, x, torch.randn(3, 5))
    with pytest.raises(ValueError, match="importance must be given"):
        ZOOPrune(2).select(x)


def test_budgets_round_down():
    assert [ZOOPrune(k).plan(576) for k in (0.3334, 0.2223, 0.1112)] == [192, 128, 64]
