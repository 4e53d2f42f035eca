"""D2O: the published formulas by hand, its invariants as properties, and the method inside a model."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenry.core.seeding import seeded
from tokenry.hosts.release import cache_of
from tokenry.pruning import D2O
from tokenry.pruning.d2o import attention_density, compress, layer_ratios
from tokenry.pruning.kv_baselines import H2O
from tokenry.testing import tiny


def reference(keys, values, scores, heavy, recent, tau, *, merge="weighted", new=0.7, old=None, sinks=4):
    """One sequence [H,T,D], one slot at a time, as the formulas read."""
    old = 1 - new if old is None else old
    heads, total, _ = keys.shape
    if total <= heavy + recent:
        return keys, values, scores, tau
    ranked = scores.clone()
    ranked[:, :sinks] = math.inf
    kept, gone, match, target, cosine = [], [], [], [], []
    for h in range(heads):
        order = sorted(range(total - recent), key=lambda t, h=h: (-float(ranked[h, t]), t))[:heavy]
        stay = sorted(order) + list(range(total - recent, total))
        drop = [t for t in range(total) if t not in stay]
        u = torch.nn.functional.cosine_similarity(keys[h, drop][:, None], keys[h, stay][None], dim=-1)
        kept.append(stay)
        gone.append(drop)
        cosine.append(u)
        match.append(u.max(1).values)
        target.append(u.argmax(1))
    mean = torch.stack(match).mean()
    tau = mean if tau is None else old * tau + new * mean
    accept = torch.stack(match).mean(0) >= tau
    new_keys, new_values = [], []
    for h in range(heads):
        for source, out in ((keys, new_keys), (values, new_values)):
            rows = []
            for j, slot in enumerate(kept[h]):
                mine = [e for e in range(len(gone[h])) if bool(accept[e]) and int(target[h][e]) == j]
                if merge == "weighted":
                    weights = [math.exp(float(cosine[h][e, j])) for e in mine]
                    top = math.e * source[h, slot] + sum(w * source[h, gone[h][e]] for w, e in zip(weights, mine, strict=True))
                    rows.append(top / (math.e + sum(weights)))
                else:
                    top = source[h, slot] + sum(float(cosine[h][e, j]) * source[h, gone[h][e]] for e in mine)
                    rows.append(top / (1 + len(mine)))
            out.append(torch.stack(rows))
    return torch.stack(new_keys), torch.stack(new_values), torch.stack([scores[h, kept[h]] for h in range(heads)]), tau


def cache(batch=2, heads=2, total=12, size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    base = torch.randn(batch, heads, 1, size, generator=g)
    keys = base + torch.randn(batch, heads, total, size, generator=g)
    return keys, torch.randn(batch, heads, total, size, generator=g), torch.rand(batch, heads, total, generator=g)


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(1, 16),
    heavy=st.integers(0, 6),
    recent=st.integers(0, 5),
    sinks=st.integers(0, 5),
    merge=st.sampled_from(["weighted", "scatter_mean"]),
    started=st.booleans(),
    old=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
@example(12, 6, 5, 4, "weighted", False, None, 3)  # one slot to drop, as in every decode step
@example(12, 6, 5, 0, "scatter_mean", True, 0.5, 4)
def test_compress_equals_the_formulas_slot_by_slot(total, heavy, recent, sinks, merge, started, old, seed):
    if heavy + recent == 0:
        recent = 1
    keys, values, scores = cache(total=total, seed=seed)
    tau = torch.tensor([0.2, 0.9]) if started else None
    options = {"merge": merge, "new_weight": 0.7 if old is None else 0.5, "old_weight": old, "sinks": sinks}
    got = compress(keys, values, scores, heavy=heavy, recent=recent, threshold=tau, **options)
    for b in range(2):
        want = reference(
            keys[b], values[b], scores[b], heavy, recent, None if tau is None else tau[b],
            merge=merge, new=options["new_weight"], old=old, sinks=sinks,
        )  # fmt: skip
        for mine, theirs in zip(got[:3], want[:3], strict=True):
            torch.testing.assert_close(mine[b], theirs, atol=1e-5, rtol=1e-5)
        if want[3] is not None:
            torch.testing.assert_close(got[3][b], want[3])
        else:
            assert got[3] is None
    assert got[0].shape[2] == min(total, heavy + recent)


def test_a_threshold_above_one_is_plain_h2o():
    keys, values, scores = cache(total=20)
    k, v, s, tau = compress(keys, values, scores, heavy=5, recent=4, threshold=50.0, new_weight=0.0)
    assert (tau == 50.0).all()
    order = scores.clone()
    order[..., :4] = math.inf
    top = order[..., :16].topk(5).indices.sort().values
    index = torch.cat((top, torch.arange(16, 20).expand(2, 2, 4)), -1)
    wide = index[..., None].expand(-1, -1, -1, 6)
    assert torch.equal(k, keys.gather(2, wide))
    assert torch.equal(v, values.gather(2, wide))
    assert torch.equal(s, scores.gather(2, index))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_weighted_merge_is_convex_and_the_input_stays(seed):
    keys, values, scores = cache(total=18, seed=seed)
    copies = [x.clone() for x in (keys, values, scores)]
    k, v, _, tau = compress(keys, values, scores, heavy=4, recent=3, threshold=-2.0, new_weight=0.0)
    assert k.norm(dim=-1).max() <= keys.norm(dim=-1).max() + 1e-5
    assert v.norm(dim=-1).max() <= values.norm(dim=-1).max() + 1e-5
    assert torch.isfinite(tau).all()
    assert all(torch.equal(a, b) for a, b in zip((keys, values, scores), copies, strict=True))


def test_absorbing_an_exact_copy_leaves_a_key_unchanged():
    keys = torch.eye(4)[None, None].repeat(1, 1, 2, 1)  # slots 4..7 repeat 0..3
    k, _, _, tau = compress(keys, keys, torch.arange(8.0)[None, None], heavy=0, recent=4, sinks=0)
    torch.testing.assert_close(k, keys[:, :, 4:])
    torch.testing.assert_close(tau, torch.ones(1))


@pytest.mark.parametrize("merge", ["weighted", "scatter_mean"])
def test_merging_twins_beats_dropping_them(merge):
    """Every token stored twice with slightly different values: dropping one twin loses more than merging it."""
    g = torch.Generator().manual_seed(0)
    keys = 3 * torch.randn(1, 2, 32, 16, generator=g)
    values = torch.randn(1, 2, 32, 16, generator=g)
    first, second = values + 0.5 * torch.randn(values.shape, generator=g), values + 0.5 * torch.randn(values.shape, generator=g)
    both_keys, both_values = torch.cat((keys, keys), 2), torch.cat((first, second), 2)
    scores = torch.cat((torch.zeros(1, 2, 32), torch.ones(1, 2, 32)), -1)
    query = torch.randn(1, 2, 8, 16, generator=g)

    def attend(k, v):
        return torch.softmax(query @ k.transpose(-1, -2) * 0.25, -1) @ v

    exact = attend(both_keys, both_values)
    merged = compress(both_keys, both_values, scores, heavy=0, recent=32, sinks=0, merge=merge)
    plain = compress(both_keys, both_values, scores, heavy=0, recent=32, sinks=0, threshold=9.0, new_weight=0.0)
    error, without = (attend(merged[0], merged[1]) - exact).norm(), (attend(plain[0], plain[1]) - exact).norm()
    assert error < 0.05 * without


def test_batches_padding_and_half_precision():
    keys, values, scores = cache(batch=3, total=20)
    whole = compress(keys, values, scores, heavy=5, recent=4)
    for b in range(3):
        alone = compress(keys[b : b + 1], values[b : b + 1], scores[b : b + 1], heavy=5, recent=4)
        for x, y in zip(whole, alone, strict=True):
            torch.testing.assert_close(x[b : b + 1], y)
    half = compress(keys.bfloat16(), values.bfloat16(), scores, heavy=5, recent=4)
    assert half[0].dtype == torch.bfloat16
    torch.testing.assert_close(half[0].float(), whole[0], atol=0.05, rtol=0.05)
    zero = compress(torch.zeros_like(keys), values, scores, heavy=5, recent=4)
    assert all(torch.isfinite(x).all() for x in zero)
    single = compress(keys[:1, :1], values[:1, :1], scores[:1, :1], heavy=5, recent=4)
    assert single[0].shape == (1, 1, 9, 6)


# ---- layer level -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.floats(0.02, 0.5), st.floats(0.0, 0.5), st.randoms())
def test_layer_ratios(density, heavy, recent, random):
    f = torch.tensor(density, dtype=torch.float64)
    free = layer_ratios(f, heavy, recent, lower=0.0, upper=1.0)
    expected = torch.softmax(-f, 0) * len(f) * (heavy + recent)
    torch.testing.assert_close(free, expected.clamp(0, 1))
    order = list(range(len(f)))
    random.shuffle(order)
    torch.testing.assert_close(layer_ratios(f[order], heavy, recent), layer_ratios(f, heavy, recent)[order])
    ascending = layer_ratios(f.sort().values, heavy, recent)
    assert (ascending.diff() <= 1e-12).all()  # smaller variance never gets less
    assert layer_ratios(torch.full_like(f, 2.0), heavy, recent).allclose(torch.tensor(heavy + recent, dtype=torch.float64))


def test_density_of_both_kinds():
    maps = torch.softmax(torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)), -1)
    sums = maps.sum(2)
    torch.testing.assert_close(attention_density(maps), torch.stack([sums[b].mean(0).var() for b in range(2)]).mean())
    v = sums.var(-1).mean(0)
    released = ((v - v.min()) / (v.max() - v.min() + 1e-6)).mean()
    torch.testing.assert_close(attention_density(maps, "released"), released)
    torch.testing.assert_close(attention_density(sums, "released"), released)
    assert attention_density(maps, per_sequence=True).shape == (2,)
    assert 0 <= float(released) <= 1
    assert float(attention_density(torch.ones(1, 2, 5))) == 0.0


# ---- inside a model ----------------------------------------------------------------------------------------------------


def llama(layers=4):
    return tiny("llama", vocab_size=97, num_hidden_layers=layers, eos_token_id=None, initializer_range=0.3)


def generate(model, ids, steps=6, mask=None, **options):
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.stack(out.logits, 1), [layer.keys.shape[-2] for layer in cache_of(out).layers], out.sequences


IDS = torch.randint(2, 97, (1, 50), generator=torch.Generator().manual_seed(3))


def test_full_budget_is_the_plain_model_bit_for_bit():
    model = llama()
    plain = generate(model, IDS)
    for method in (D2O(budget=1.0), D2O(budget=500, skip_layers=())):
        with method.attach(model) as trace:
            same = generate(model, IDS)
        assert torch.equal(plain[0], same[0])
        assert torch.equal(plain[2], same[2])
        assert not trace.kept


def test_lengths_follow_the_layer_budgets_and_skipped_layers_grow():
    model = llama(6)
    with D2O(budget=0.3).attach(model) as trace:
        _, held, _ = generate(model, IDS, steps=7)
    ratios = trace.facts["ratios"]
    assert sorted(ratios) == [0, 1, 2, 3, 4, 5]
    assert sum(r[0] for r in ratios.values()) == pytest.approx(6 * 0.3, rel=1e-5)
    for i in (2, 3, 4):
        assert held[i] == 2 * int(50 * ratios[i][0] * 0.5 + 1e-6)
    assert [held[i] for i in (0, 1, 5)] == [56, 56, 56]
    assert trace.facts["cache_bytes"] < trace.facts["cache_bytes_full"]
    for entry in trace.kept:
        assert entry.indices.shape[0] == 2
        for head in entry.indices:
            assert head[:4].tolist() == [0, 1, 2, 3]
            assert head[-7:].tolist() == list(range(43, 50))
            assert (head.diff() > 0).all()


def test_exact_budget_counts_the_skipped_layers():
    method = D2O(budget=0.6, exact_budget=True)
    compressed = torch.tensor([False, False, True, True, True, True, True, False])
    ratios = method.ratios(torch.rand(2, 8, dtype=torch.float64), [100, 50], compressed)
    torch.testing.assert_close(ratios.mean(1), torch.full((2,), 0.6, dtype=torch.float64))
    with pytest.raises(ValueError, match="exact_budget"):
        D2O(budget=0.2, exact_budget=True).ratios(torch.rand(1, 8), [100], compressed)


def test_not_merging_equals_h2o_with_sinks():
    model = llama()
    with H2O(budget=0.4, sinks=4).attach(model):
        expected = generate(model, IDS)
    with D2O(budget=0.4, merge=None, density=None, skip_layers=()).attach(model):
        got = generate(model, IDS)
    assert torch.equal(expected[0], got[0])
    with D2O(budget=0.4, density=None, skip_layers=()).attach(model):
        assert not torch.equal(generate(model, IDS)[0], got[0])


@pytest.mark.parametrize("method", [D2O(budget=0.4, skip_layers=()), D2O(budget=14, skip_layers=(), score="window", window=8)])
def test_padded_batch_equals_single_rows(method):
    model = llama()
    ids = torch.cat((IDS, IDS.flip(1), IDS), 0)
    mask = torch.ones_like(ids)
    mask[1, :21] = 0
    with method.attach(model):
        whole = generate(model, ids, mask=mask)[0]
        short = generate(model, ids[1:2, 21:])[0]
        long = generate(model, ids[:1])[0]
    torch.testing.assert_close(whole[0], whole[2])
    torch.testing.assert_close(whole[1:2], short, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(whole[:1], long, atol=2e-3, rtol=2e-3)


def test_state_is_fresh_for_every_prompt_and_sampling_works():
    model = llama()
    with D2O(budget=0.3, skip_layers=()).attach(model) as trace:
        first = generate(model, IDS)
        generate(model, IDS.flip(1))
        assert torch.equal(generate(model, IDS)[0], first[0])
        sample = seeded(0)(lambda: model.generate(IDS, max_new_tokens=5, do_sample=True))
        assert torch.equal(sample(), sample())
    assert {entry.image for entry in trace.kept} == set(range(5))


def test_cutting_less_often_and_short_prompts():
    model = llama()
    with D2O(budget=10, skip_layers=(), cut_every=4, density=None).attach(model):
        assert set(generate(model, IDS, steps=9)[1]) <= {10, 11, 12, 13}
    with D2O(budget=10, skip_layers=(), density=None).attach(model):
        assert set(generate(model, IDS[:, :1], steps=5)[1]) == {5}
        assert set(generate(model, IDS[:, :1], steps=20)[1]) == {10}
    with pytest.warns(UserWarning, match="rounds to 0 slots"), D2O(budget=0.01, skip_layers=()).attach(model):
        generate(model, IDS, steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.0}, "budget as a ratio"),
        ({"budget": 75.0}, "budget as a ratio"),
        ({"budget": True}, "budget must be"),
        ({"heavy_share": 1.5}, "heavy_share"),
        ({"merge": "mean"}, "merge must be one of"),
        ({"density": "std"}, "density must be one of"),
        ({"score": "last"}, "score must be one of"),
        ({"lower": 0.5, "upper": 0.2}, "lower must be"),
        ({"new_weight": 2.0}, "new_weight"),
        ({"sinks": -1}, "sinks"),
        ({"cut_every": 0}, "cut_every"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        D2O(**options)


def test_bad_arguments_are_named():
    keys, values, scores = cache()
    good = {"keys": keys, "values": values, "scores": scores, "heavy": 3, "recent": 3}
    bad = [
        ({"keys": keys * float("nan")}, "keys must be finite"),
        ({"values": values[:, :, :5]}, "values must have shape"),
        ({"scores": scores[:1]}, "scores must have shape"),
        ({"heavy": 0, "recent": 0}, "heavy \\+ recent must be"),
        ({"heavy": 2.5}, "heavy must be an int"),
        ({"threshold": torch.zeros(5)}, "threshold must be"),
        ({"merge": "none"}, "merge must be one of"),
    ]
    for change, message in bad:
        with pytest.raises((ValueError, TypeError), match=message):
            compress(**{**good, **change})
    for density, heavy, recent in ((torch.zeros(3), 0.0, 0.0), (torch.zeros(3), 0.8, 0.5), (torch.zeros(0), 0.1, 0.1)):
        with pytest.raises(ValueError):
            layer_ratios(density, heavy, recent)
    model = llama()
    with pytest.raises(ValueError, match="skip_layers"), D2O(skip_layers=(9,)).attach(model):
        generate(model, IDS)
