"""A linear map from few inputs: values and gradients of torch's own."""

import pytest
import torch

from tokenry.core.narrow import NARROW, NarrowLinear
from tokenry.core.seeding import seeded


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,)])
@pytest.mark.parametrize("inputs", [3, NARROW, NARROW + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(shape, inputs, bias):
    with seeded(0):
        ours, plain = NarrowLinear(inputs, 7, bias=bias), torch.nn.Linear(inputs, 7, bias=bias)
        x = torch.randn(*shape, inputs)
    plain.load_state_dict(ours.state_dict())
    found, expected = ours(x.requires_grad_()), plain(x)
    assert torch.equal(found, expected)
    gradients = [
        torch.autograd.grad((out * 2).sum() + out.sum(), [x, *module.parameters()])
        for out, module in ((found, ours), (expected, plain))
    ]
    torch.testing.assert_close(*gradients)


def test_second_derivatives_and_frozen_weights():
    with seeded(0):
        module = NarrowLinear(3, 7).double()
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, (x,))
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(module, {"weight": w}, (x,)), (
        x, module.weight.detach().clone().requires_grad_(),
    ))  # fmt: skip
    module.requires_grad_(False)
    module(x).sum().backward()
    assert module.weight.grad is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.float()(x.float()).dtype == torch.bfloat16
