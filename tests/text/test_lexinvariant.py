"""The lexinvariant model: relabelling, an independent forward, caches, semi-lexinvariance, pools, bad input."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig

from tests.contracts import random_state_kept
from tokenry.core.seeding import seeded
from tokenry.hosts.release import CACHE, as_argument, cache_of
from tokenry.testing import tiny
from tokenry.text.lexinvariant import Lexicon, LexinvariantConfig, LexinvariantForCausalLM, draw_lexicon

V, D, B, T = 7, 16, 3, 8


def make(weights=0, **options):
    sizes = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    with seeded(weights), torch.no_grad():
        model = LexinvariantForCausalLM(LexinvariantConfig(**{**sizes, **options})).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(seed=0, shape=(B, T)):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def key(seed, keep=()):
    free = [v for v in range(V) if v not in keep]
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    out = torch.arange(V)
    out[free] = torch.tensor([free[i] for i in order])
    return out


def test_forward_equals_gpt2_on_drawn_embeddings():
    """h_0 = G[x]; logits = <W h, G_v> / sqrt(d)."""
    model = make(readout_map=True)
    other = tiny("gpt2", vocab_size=V, n_embd=D, n_head=2, n_positions=32).transformer
    other.load_state_dict(
        {n.removeprefix("body."): p for n, p in model.state_dict().items() if n.startswith("body.")}, strict=False
    )
    x, table = ids(), torch.randn(B, V, D, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        embedded = torch.stack([table[b][x[b]] for b in range(B)])
        states = other(inputs_embeds=embedded).last_hidden_state
        expected = torch.einsum("btd,bvd->btv", states @ model.readout.weight.T, table) / math.sqrt(D)
        out = model(x, labels=x, lexicon=table)
    assert torch.allclose(out.logits, expected, atol=1e-5)
    nats = -expected.log_softmax(-1)[:, :-1].gather(-1, x[:, 1:, None]).mean()
    assert float(out.loss) == pytest.approx(float(nats), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), table=st.sampled_from(["sequence", "pool"]), rotary=st.booleans(), fixed=st.sampled_from([(), (0,), (2, 5)]),
)  # fmt: skip
@torch.no_grad()
def test_relabelling_the_text_and_the_table_relabels_the_logits(seed, table, rotary, fixed):
    body = (
        LlamaConfig(hidden_size=D, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
        if rotary
        else None
    )
    model = make(seed, table=table, body=body, fixed_tokens=list(fixed))
    x, s = ids(seed), key(seed, keep=fixed)
    lexicon = model.draw(B, seed=seed)
    a, b = model(x, lexicon=lexicon).logits, model(s[x], lexicon=lexicon.relabelled(s)).logits
    assert torch.allclose(b[..., s], a, atol=1e-5)


@torch.no_grad()
def test_a_standard_model_is_not_invariant():
    model = make(random_rate=0.0)
    x, s = ids(), key(3)
    assert not torch.allclose(model(s[x]).logits[..., s], model(x).logits, atol=0.1)


@torch.no_grad()
def test_unseen_symbols_are_equally_likely_on_average():
    model = make(4, hidden_size=32)
    x = torch.tensor([[1, 2, 1]]).expand(4000, -1)
    mean = model(x, seed=0).logits.softmax(-1)[:, -1].mean(0)
    unseen = mean[[0, 3, 4, 5, 6]]
    assert float(unseen.max() - unseen.min()) < 0.02
    assert float((mean[1] - unseen.mean()).abs()) > 0.03  # a symbol of the context is not one of them
    averaged = model.averaged_log_probs(x[:1], draws=600, seed=1)[0, -1].exp()
    assert float((averaged - mean).abs().max()) < 0.05
    assert float(averaged.sum()) == pytest.approx(1.0, abs=1e-4)


def test_a_rate_of_zero_is_the_standard_model_and_of_one_the_lexinvariant():
    full, semi, standard = make(1), make(1, random_rate=0.5), make(1, random_rate=0.0)
    state = semi.state_dict()
    standard.load_state_dict(state)
    full.load_state_dict({n: p for n, p in state.items() if n != "learnt.weight"})
    x = ids()
    with torch.no_grad():
        learnt = semi.learnt.weight.expand(B, -1, -1)
        plain = full(x, lexicon=learnt).logits  # the learnt table as an explicit one
        assert torch.allclose(semi(x, rate=0.0).logits, plain, atol=1e-6)
        assert torch.allclose(standard(x).logits, plain, atol=1e-6)
        assert torch.allclose(semi(x).logits, plain, atol=1e-6)  # learnt embeddings at test time
        assert torch.equal(semi(x, rate=1.0, seed=3).logits, full(x, seed=3).logits)
        lexicon = semi.draw(B, rate=0.5, seed=9)
        mixed = torch.where(lexicon.replaced[..., None], lexicon.rows, learnt)
        assert torch.allclose(semi(x, lexicon=lexicon).logits, full(x, lexicon=mixed).logits, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6), rate=st.sampled_from([0.0]) | st.floats(0.05, 1), table=st.sampled_from(["sequence", "pool"])
)
def test_draws(seed, rate, table):
    def draw():
        return draw_lexicon(40, 30, 8, table=table, rate=rate, fixed_tokens=(2,), generator=torch.Generator().manual_seed(seed))

    lexicon, again = draw(), draw()
    if rate == 0.0:
        assert lexicon.blank
        return
    assert lexicon.same_as(again)
    assert lexicon.table().shape == (40, 30, 8)
    assert not lexicon.replaced[:, 2].any()
    share = float(lexicon.replaced.float().sum() / (40 * 29))
    assert abs(share - rate) < 0.08
    assert not torch.equal(lexicon.table()[0], lexicon.table()[1])  # sequences of a batch do not share a lexicon
    assert abs(float(lexicon.rows.mean())) < 0.3
    x = torch.randint(0, 30, (40, 5))
    states = torch.randn(40, 5, 8)
    table_ = lexicon.table()
    assert torch.equal(lexicon.embed(x), table_.gather(1, x[..., None].expand(-1, -1, 8)))
    assert torch.allclose(lexicon.products(states), torch.einsum("btd,bvd->btv", states, table_), atol=1e-4)


def test_a_pool_is_one_table_for_the_batch():
    model = make(table="pool")
    lexicon = model.draw(B, seed=0)
    assert lexicon.rows.shape == (V, D)
    assert torch.equal(lexicon.index.sort(dim=1).values, torch.arange(V).expand(B, -1))
    assert torch.allclose(model(ids(), lexicon=lexicon).logits, make()(ids(), lexicon=lexicon.table()).logits, atol=1e-5)


def test_nothing_like_a_token_embedding_is_trained():
    model = make()
    model.train()
    lexicon = model.draw(B, seed=1)
    model(ids(), labels=ids(), lexicon=lexicon).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(p.shape[0] == V for p in model.parameters())
    assert lexicon.rows.grad is None
    assert not lexicon.rows.requires_grad
    assert model.get_input_embeddings() is model.get_output_embeddings() is None
    with pytest.raises(ValueError, match="vocab_size"):
        model.resize_token_embeddings(9)


def test_every_call_draws_anew_unless_told():
    model = make()
    x = ids()
    with torch.no_grad():
        assert not torch.equal(model(x).logits, model(x).logits)
        assert torch.equal(model(x, seed=3).logits, model(x, seed=3).logits)
        a, b = (model(x, generator=torch.Generator().manual_seed(8)).logits for _ in range(2))
        assert torch.equal(a, b)
        first, second = make(2), make(2)
        assert torch.equal(first(x).logits, second(x).logits)  # the model's own draws follow config.seed
        assert torch.equal(copy.deepcopy(first)(x).logits, first(x).logits)
        repeated = x[:1].expand(2, -1)
        rows = model(repeated, seed=1).logits
        assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("options", [{}, {"table": "pool"}, {"random_rate": 0.5}, {"fixed_tokens": [0]}])
@torch.no_grad()
def test_cached_and_uncached_decoding_agree(options):
    model = make(5, **options)
    x, lexicon = ids(6), model.draw(B, seed=2)
    whole = model(x, lexicon=lexicon, use_cache=False).logits
    out = model(x[:, :3], lexicon=lexicon)
    parts = [out.logits]
    for t in range(3, T):
        out = model(x[:, t : t + 1], **as_argument(cache_of(out)))  # the cache knows its lexicon
        parts.append(out.logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)


@torch.no_grad()
def test_another_lexicon_with_an_old_cache_is_refused():
    model = make()
    x = ids()
    out = model(x, seed=1)
    for options in ({"seed": 2}, {"lexicon": model.draw(B, seed=2)}, {"generator": torch.Generator()}):
        with pytest.raises(ValueError, match="lexicon differs"):
            model(x[:, :1], **as_argument(cache_of(out)), **options)
    same = Lexicon(out.lexicon.rows.clone())
    model(x[:, :1], **as_argument(cache_of(out)), lexicon=same)
    foreign = DynamicCache()
    foreign.update(torch.zeros(B, 2, 1, 8), torch.zeros(B, 2, 1, 8), 0)
    with pytest.raises(ValueError, match=f"{CACHE} holds"):
        model(x[:, :1], **as_argument(foreign))


@pytest.mark.parametrize("sample", [False, True])
def test_generate_keeps_one_lexicon(sample):
    model = make(7)
    x = ids(1, (2, 5))
    with random_state_kept():
        runs = [model.generate(x, seed=4, max_new_tokens=6, do_sample=sample, use_cache=c) for c in (True, False, True)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    drawn = model.generate(
        x, generator=torch.Generator().manual_seed(1), max_new_tokens=3, do_sample=sample, num_return_sequences=1 + sample
    )
    assert drawn.shape == (2 * (1 + sample), 8)
    with pytest.raises(ValueError, match="num_beams"):
        model.generate(x, num_beams=2)


def test_generation_from_padded_prompts_equals_alone():
    model = make(8)
    x = ids(2, (2, 5))
    mask = torch.ones(2, 5).long()
    mask[0, :2] = 0
    lexicon = model.draw(2, seed=0)
    together = model.generate(x, attention_mask=mask, lexicon=lexicon, max_new_tokens=4, do_sample=False)
    alone = model.generate(x[:1, 2:], lexicon=lexicon.rows[:1], max_new_tokens=4, do_sample=False)
    assert torch.equal(together[0, 5:], alone[0, 3:])


def test_half_precision_tables_are_drawn_in_float32():
    lexicon = draw_lexicon(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    assert torch.equal(lexicon.rows, draw_lexicon(2, 5, 4, generator=torch.Generator().manual_seed(0)).rows.bfloat16())


def test_losses_without_a_target_are_zero_and_finite():
    model = make()
    with torch.no_grad():
        assert float(model(ids(), labels=torch.full((B, T), -100)).loss) == 0.0
        assert float(model(ids()[:, :1], labels=ids()[:, :1]).loss) == 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 0), ("hidden_size", 0), ("hidden_size", 15), ("random_rate", 1.5), ("random_rate", float("nan")), ("table", "shared"),
     ("fixed_tokens", [7]), ("fixed_tokens", [1, 1]), ("fixed_tokens", list(range(7))), ("seed", -1), ("body", {"n_embd": 4})],
)  # fmt: skip
def test_bad_sizes_are_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        make(**{name: value})


def bad_calls():
    nan = torch.full((B, V, D), float("nan"))
    yield "lexicon", {"lexicon": torch.randn(B, V + 1, D)}
    yield "lexicon", {"lexicon": torch.randn(V, D - 1)}
    yield "lexicon", {"lexicon": nan}
    yield "lexicon", {"lexicon": torch.ones(V, D).long()}
    yield "not both", {"lexicon": torch.randn(V, D), "seed": 1}
    yield "not both", {"seed": 1, "generator": torch.Generator()}
    yield "rate", {"rate": 0.5}
    yield "labels", {"labels": torch.full((B, T), V)}
    yield "labels", {"labels": ids()[:, 1:]}


@pytest.mark.parametrize(("message", "options"), list(bad_calls()))
def test_bad_calls_are_refused(message, options):
    with pytest.raises((ValueError, TypeError), match=message):
        make()(ids(), **options)
    with pytest.raises(ValueError, match="draws"):
        make().averaged_log_probs(ids(), draws=0)


def test_dropout_never_separates_equal_tokens():
    """With dropout on, the embeddings that reach the first block are equal for equal tokens of a sequence."""
    model = make(dropout=0.5)
    model.train()
    seen = []
    model.body.h[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.body.wpe.weight.zero_()
        model(torch.tensor([[1, 2, 1, 1]]), seed=0)
    assert torch.equal(seen[0][0, 0], seen[0][0, 2])
    assert torch.equal(seen[0][0, 0], seen[0][0, 3])


def test_the_trainer_of_transformers_trains_it(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = make(max_position_embeddings=16)
    data = [{"input_ids": row, "labels": row} for row in ids(3, (16, 12))]
    arguments = TrainingArguments(str(tmp_path), max_steps=4, per_device_train_batch_size=4, use_cpu=True, report_to=[], logging_steps=1,
                                  disable_tqdm=True, save_steps=4)  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 4
    assert all(math.isfinite(loss) for loss in losses)
    back = LexinvariantForCausalLM.from_pretrained(tmp_path / "checkpoint-4").eval()
    with torch.no_grad():
        assert torch.equal(back(ids(), seed=1).logits, model.eval()(ids(), seed=1).logits)
