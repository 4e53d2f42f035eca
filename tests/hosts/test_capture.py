import pytest
import torch
from torch import nn

from tokenry.hosts.attach import attached


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)

    def method(self):
        return "class"


def state(model):
    return {n: (set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}


def test_hooks_and_patches_go_away_also_after_an_exception():
    model = Toy()
    before, x = state(model), torch.ones(1, 2)
    plain = model(x)
    with pytest.raises(KeyError), attached(model, "A") as hooks:
        hooks.forward(model.linear, lambda m, a, k, out: out * 0)
        hooks.forward_pre(model.linear, lambda m, a, k: ((a[0] * 2,), k))
        hooks.patch(model, "method", lambda: "patched")
        assert model.method() == "patched"
        assert model(x).abs().sum() == 0
        raise KeyError("inside")
    assert state(model) == before
    assert model.method() == "class"
    assert torch.equal(model(x), plain)


def test_an_instance_attribute_returns_and_patches_undo_in_order():
    model = Toy()
    model.note = "mine"
    with attached(model, "A") as hooks:
        hooks.patch(model, "note", "first")
        hooks.patch(model, "note", "second")
    assert model.note == "mine"


def test_a_second_attachment_names_the_first():
    model = Toy()
    with (
        attached(model, "EET"),
        pytest.raises(RuntimeError, match="EET is already attached to this Toy"),
        attached(model, "D2O"),
    ):
        pass
    with attached(model, "D2O"):
        pass
