"""ToDRE: selection rules, relevance, and the removal inside the decoder."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.hosts.release import cache_of
from tokenry.pruning import ToDRE
from tokenry.pruning.todre import relevance
from tokenry.testing import llava_inputs, qwen_inputs, tiny_llava, tiny_qwen

PROPERTY = settings(max_examples=25, deadline=None)


@PROPERTY
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(["max_sum", "k_center"]), pivot=st.integers(0, 19))
def test_every_step_is_the_exact_extremum(seed, rule, pivot):
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = ToDRE(8, rule=rule).select(x[None], first=pivot)[0].tolist()
    assert chosen[0] == pivot
    unit = x / x.norm(dim=1, keepdim=True)
    for step in range(1, 8):
        cosines = unit @ unit[chosen[:step]].T
        score = cosines.sum(dim=1) if rule == "max_sum" else cosines.max(dim=1).values
        score[chosen[:step]] = float("inf")
        assert chosen[step] == int(score.argmin())


def test_max_sum_takes_duplicates_of_an_outlier_and_k_center_does_not():
    x = torch.tensor([[1.0, 0.1], [1.0, 0.05], [1.0, 0.0], [1.0, -0.05], [-1.0, 0.0], [-1.0, 0.0]])[None]
    assert {4, 5} <= set(ToDRE(5, rule="max_sum").select(x, first=0)[0].tolist()[:4])
    assert not {4, 5} <= set(ToDRE(5, rule="k_center").select(x, first=0)[0].tolist())


def test_the_pivot_is_given_or_most_attended_or_seeded():
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.rand(2, 12, generator=torch.Generator().manual_seed(1))
    assert ToDRE(3).select(x, importance=attention)[:, 0].tolist() == attention.argmax(dim=1).tolist()
    assert ToDRE(3).select(x, first=torch.tensor([4, 7]))[:, 0].tolist() == [4, 7]
    assert torch.equal(ToDRE(3, seed=1).select(x), ToDRE(3, seed=1).select(x))
    assert len({int(ToDRE(3, seed=s).select(x)[0, 0]) for s in range(20)}) > 3
    with pytest.raises(ValueError, match="first must be in"):
        ToDRE(3).select(x, first=12)


def causal(n, heads=0, seed=0):
    shape = (heads, n, n) if heads else (n, n)
    logits = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).masked_fill(
        ~torch.ones(n, n).tril().bool(), float("-inf")
    )
    return logits.softmax(dim=-1)


def test_relevance_is_the_mean_mass_between_the_two_sides():
    attention = causal(8, heads=3)
    vision, text = torch.tensor([1, 2, 3]), torch.tensor([5, 6, 7])
    t2v, v2t = relevance(attention, vision, text)
    assert t2v.item() == pytest.approx(attention[:, 5:][:, :, 1:4].sum(-1).mean().item(), abs=1e-6)
    assert v2t.item() == 0.0
    mask_v, mask_t = torch.zeros(8, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    mask_v[1:4], mask_t[5:] = True, True
    assert torch.equal(torch.stack(relevance(attention, mask_v, mask_t)), torch.stack([t2v, v2t]))
    pooled = relevance(attention.mean(dim=0), vision, text)
    torch.testing.assert_close(torch.stack(pooled), torch.stack([t2v, v2t]))
    batch = relevance(attention.expand(2, -1, -1, -1), vision, text)
    assert batch[0].shape == (2,)
    assert relevance(attention, vision, torch.tensor([], dtype=torch.long))[0].isnan()
    both = relevance(torch.full((4, 4), 0.25), torch.tensor([0, 1]), torch.tensor([2, 3]))
    assert [v.item() for v in both] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("attention", "vision", "message"),
    [(torch.ones(3, 4), torch.tensor([0]), "attention"), (torch.ones(3, 3), torch.tensor([3]), "vision"), (torch.ones(3, 3), torch.ones(4).bool(), "vision")],
)  # fmt: skip
def test_relevance_names_bad_input(attention, vision, message):
    with pytest.raises(ValueError, match=message):
        relevance(attention, vision, torch.tensor([1]))


def test_recorded_relevance_equals_that_of_the_full_attention_map():
    model, inputs = tiny_llava(layers=8, attention="eager"), llava_inputs((1,))
    with ToDRE(1.0, threshold=1e-9).attach(model) as trace, torch.no_grad():
        out = model(**inputs)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions[6]
    visual = inputs["input_ids"][0] == 60
    after = visual.long().cumsum(0).bool() & ~visual
    t2v, v2t = relevance(maps[0], visual, after)
    (found,) = trace.facts["relevance"]
    assert found["text_to_vision"] == pytest.approx(t2v.item(), abs=1e-6)
    assert found["vision_to_text"] == pytest.approx(v2t.item(), abs=1e-6)
    assert not found["dropped"]
    assert out.logits.shape[1] == len(visual)


def test_rows_decide_for_themselves():
    """A threshold between the rows' masses drops the visual tokens of one row only; each row equals its own run."""
    model, inputs = tiny_llava(layers=8), llava_inputs((1, 1), words=(3, 7))
    with ToDRE(0.5, threshold=1e-9).attach(model) as trace, torch.no_grad():
        model(**inputs)
    masses = [r["text_to_vision"] for r in trace.facts["relevance"]]
    pruner = ToDRE(0.5, threshold=sum(masses) / 2)
    options = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with pruner.attach(model) as trace:
        together = model.generate(**inputs, **options)
    assert sorted(r["dropped"] for r in trace.facts["relevance"]) == [False, True]
    for row in range(2):
        mask = inputs["attention_mask"][row].bool()
        one = {"input_ids": inputs["input_ids"][row, mask][None], "pixel_values": inputs["pixel_values"][row : row + 1]}
        with pruner.attach(model):
            alone = model.generate(**one, **options)
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[row], b[0], atol=2e-5, rtol=1e-4)


def test_stage_two_frees_the_later_caches_and_can_be_switched_off():
    model, inputs = tiny_qwen(layers=8), qwen_inputs((((8, 8),),))
    with ToDRE(0.25, threshold=1.5).attach(model), torch.no_grad():
        cache = cache_of(model(**inputs))
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    assert lengths == [lengths[0]] * 7 + [lengths[0] - 4]
    with ToDRE(0.25, threshold=0.0).attach(model) as trace, torch.no_grad():
        cache = cache_of(model(**inputs))
    assert len({layer.keys.shape[-2] for layer in cache.layers}) == 1
    assert "relevance" not in trace.facts


def test_a_decoder_too_shallow_for_stage_two_warns():
    model, inputs = tiny_llava(layers=1), llava_inputs((1,))
    with pytest.warns(UserWarning, match="leaves no block"), ToDRE(0.25).attach(model) as trace, torch.no_grad():
        model(**inputs)
    assert trace.counts() == {0: 9}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ToDRE(0.25).attach(tiny_llava(layers=8)):
            pass


def test_bad_options_are_named():
    for options in (
        {"rule": "max"},
        {"threshold": float("nan")},
        {"check_depth": 0.0},
        {"check_depth": 1.5},
        {"pivot": "center"},
        {"seed": -1},
    ):
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            ToDRE(0.5, **options)
