"""The tiny models and the checks they serve: all from their own seed."""

import random

import numpy as np
import pytest
import torch

from tests.contracts import random_state_kept
from tokenry.testing import llava_inputs, onevision_inputs, qwen_inputs, tiny
from tokenry.testing.zoo import NAMES


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_follow_from_the_seed_alone(name):
    with random_state_kept():
        model = tiny(name)
    torch.rand(3)
    assert same(model, tiny(name))
    assert not same(model, tiny(name, seed=1))
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) < 100_000


@pytest.mark.parametrize("make", [llava_inputs, onevision_inputs, qwen_inputs])
def test_inputs_follow_from_the_seed_alone(make):
    with random_state_kept():
        first, again, other = make(), make(), make(seed=1)
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_overrides_are_fields_of_the_config_or_arguments_of_the_class():
    model = tiny("llama", num_hidden_layers=3, rms_norm_eps=0.5)
    assert (len(model.model.layers), model.config.rms_norm_eps) == (3, 0.5)
    assert len(tiny("llava", layers=3).model.language_model.layers) == 3
    assert tiny("vit").pooler is None
    assert tiny("vit", add_pooling_layer=True).pooler is not None
    assert tiny("bert", attn_implementation="eager").config._attn_implementation == "eager"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of 'llama', .*'qwen2_5_vl', .*got 'lama'"):
        tiny("lama")


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(), random.random])  # noqa: NPY002
def test_a_draw_from_the_global_state_is_seen(draw):
    with pytest.raises(AssertionError, match="random state was changed"), random_state_kept():
        draw()
