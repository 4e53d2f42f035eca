"""Word pooling: an independent forward, the identities of its probabilities, padding, decoding, bad input."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from tokenry.core.seeding import seeded
from tokenry.text.wordpool import WordPoolConfig, WordPoolForCausalLM, check_words, generate_words, score_words

V, P, C = 5, 2, 4


def make(seed=0, **options):
    sizes = {"vocab_size": V, "num_prefix": P, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "word_layers": 2,
             "word_heads": 4, "word_intermediate_size": 24, "block_size": 8, "canvas_size": C, "dropout": 0.0}  # fmt: skip
    with seeded(seed), torch.no_grad():  # codes start at zero: let them matter
        model = WordPoolForCausalLM(WordPoolConfig(**{**sizes, **options})).eval()
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def words(batch, count, seed=0, longest=C, vocabulary=V):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (batch, count), generator=generator)
    units = torch.randint(1, vocabulary, (batch, count, longest), generator=generator)
    return units * (torch.arange(longest) < lengths[..., None]), lengths


# An independent forward in plain tensor operations, one window and one word at a time.


def layer_norm(x, norm):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def attend(q, k, v, allowed):
    scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~allowed, -math.inf)
    return scores.softmax(-1) @ v


def heads_of(x, heads):
    return x.view(len(x), heads, -1).transpose(0, 1)


def causal_blocks(stack, x):
    allowed = torch.ones(len(x), len(x)).tril().bool()
    for block in stack.layers:
        y = layer_norm(x, block.norm_1) @ block.qkv.weight.T + block.qkv.bias
        q, k, v = (heads_of(part, block.heads) for part in y.chunk(3, dim=-1))
        mixed = attend(q, k, v, allowed).transpose(0, 1).reshape(len(x), -1)
        x = x + mixed @ block.out.weight.T + block.out.bias
        y = layer_norm(x, block.norm_2) @ block.up.weight.T + block.up.bias
        y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
        x = x + y @ block.down.weight.T + block.down.bias
    return layer_norm(x, stack.norm) if isinstance(stack.norm, torch.nn.LayerNorm) else x


def encode_word(model, slots, length, quirks):
    """Post-norm, ReLU; clean: pads are no keys; released: pads do not see pads."""
    position = torch.arange(len(slots))
    pad = position > P + length
    allowed = ~(pad[:, None] & pad[None]) if quirks else (~pad)[None].expand(len(slots), -1)
    x = slots
    for layer in model.encoder.layers:
        attention = layer.self_attn
        y = x @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k, v = (heads_of(part, attention.num_heads) for part in y.chunk(3, dim=-1))
        mixed = attend(q, k, v, allowed).transpose(0, 1).reshape(len(x), -1)
        x = layer_norm(x + mixed @ attention.out_proj.weight.T + attention.out_proj.bias, layer.norm1)
        y = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
        x = layer_norm(x + y @ layer.linear2.weight.T + layer.linear2.bias, layer.norm2)
    return x[:P]


def reference(model, units, lengths, quirks):
    """Logits [B,T-1,C,V], loss; the tensor is as wide as the canvas."""
    code, all_logits = model.slot_code[0], []
    terms = []
    for row, sizes in zip(units, lengths, strict=True):
        first = C if quirks else V  # released: counted from the width of the canvas, rows of ordinary units
        slots = [model.embedding.weight[[*range(first, first + P), *word.tolist()]] + code for word in row]
        pooled = [encode_word(model, h, int(n), quirks) for h, n in zip(slots, sizes, strict=True)]
        stream = torch.cat(pooled) + model.word_code[0, : len(row) * P]
        states = causal_blocks(model.words, stream).view(len(row), P, -1)
        for j in range(1, len(row)):
            units_in = slots[j][P:] + code[P:] if quirks else slots[j][P:]
            decoded = causal_blocks(model.decoder, torch.cat([states[j - 1] + code[:P], units_in]))
            logits = decoded[P - 1 : P + C - 1] @ model.head.weight.T
            all_logits.append(logits)
            for k in range(C):
                if quirks or k <= int(sizes[j]):
                    terms.append(-logits[k].log_softmax(-1)[row[j, k]])
    return torch.stack(all_logits).view(len(units), -1, C, V), torch.stack(terms).mean()


@pytest.mark.parametrize("quirks", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_forward_equals_an_independent_one(quirks, seed):
    model = make(seed, released_quirks=quirks)
    units, lengths = words(3, 5, seed)
    kept = lengths.clone()
    out = model(units, lengths, labels=units)
    logits, loss = reference(model, units, lengths, quirks)
    assert torch.allclose(out.logits, logits, atol=1e-5)
    assert float(out.loss) == pytest.approx(float(loss), abs=1e-5)
    assert torch.equal(lengths, kept)
    assert out.logits.shape == (3, 4, C, V)
    assert out.pooled.shape == out.states.shape == (3, 5, P, 16)


def test_the_two_forms_differ_in_all_that_is_listed():
    clean, released = make(), make(released_quirks=True)
    units, lengths = words(3, 5, 3)
    with torch.no_grad():
        a, b = clean(units, lengths, labels=units), released(units, lengths, labels=units)
    assert not torch.allclose(a.pooled, b.pooled)
    assert not torch.allclose(a.logits, b.logits)
    assert float(a.loss) != pytest.approx(float(b.loss), abs=1e-4)


@seeded(0)
def test_initialisation_is_the_papers():
    model = WordPoolForCausalLM(WordPoolConfig(vocab_size=60, hidden_size=64, num_hidden_layers=2, canvas_size=6, block_size=4))
    assert not model.slot_code.any()
    assert not model.word_code.any()
    for weight in (
        model.embedding.weight,
        model.head.weight,
        model.words.layers[0].qkv.weight,
        model.encoder.layers[0].linear1.weight,
    ):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.words.layers[1].up.bias.detach().abs().max()) == 0.0
    assert torch.equal(model.words.norm.weight, torch.ones(64))
    assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()
    config = WordPoolConfig()
    assert (config.num_prefix, config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (4, 512, 8, 8)
    assert (config.word_layers, config.word_heads, config.block_size, config.word_intermediate_size) == (2, 4, 192, 2048)


def all_words(longest, vocabulary):
    strings = [s for n in range(1, longest + 1) for s in itertools.product(range(1, vocabulary), repeat=n)]
    units = torch.zeros(len(strings), longest, dtype=torch.long)
    for i, string in enumerate(strings):
        units[i, : len(string)] = torch.tensor(string)
    return units


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), quirks=st.booleans(), words_before=st.integers(1, 5))
def test_the_probabilities_of_all_words_sum_to_one(seed, quirks, words_before):
    model = make(seed, vocab_size=4, canvas_size=3, released_quirks=quirks)
    units, lengths = words(2, words_before, seed, longest=3, vocabulary=4)
    total = score_words(model, units, lengths, candidates=all_words(3, 4)).exp().sum(1)
    with torch.no_grad():
        pooled = model.pool(check_words(model.config, units, lengths, None))
        state = model.run_words(pooled)[0][:, -1]
        empty = model.head(model.decoder(state + model.slot_code[:, :P])[:, -1]).softmax(-1)[:, 0]
    assert torch.allclose(total + empty, torch.ones(2), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), quirks=st.booleans(), sample=st.booleans())
@torch.no_grad()
def test_decoding_step_by_step_is_the_teacher_forced_chain(seed, quirks, sample):
    model = make(seed, released_quirks=quirks)
    units, lengths = words(2, 3, seed)
    made = generate_words(
        model, units, lengths, max_new_words=4, do_sample=sample, generator=torch.Generator().manual_seed(seed)
    )
    assert bool((made.lengths >= 1).all())
    joined = torch.cat([units, made.units], dim=1)
    chained = model(joined).word_log_probs[:, 2:]
    assert torch.allclose(chained, made.log_probs, atol=1e-4)
    scored = score_words(model, units, lengths, candidates=made.units[:, :1])
    assert torch.allclose(scored, made.log_probs[:, :1], atol=1e-4)
    again = generate_words(
        model, units, lengths, max_new_words=4, do_sample=sample, generator=torch.Generator().manual_seed(seed)
    )
    assert torch.equal(again.units, made.units)


@torch.no_grad()
def test_greedy_units_are_the_arg_max_under_teacher_forcing():
    model = make(4)
    units, lengths = words(2, 3, 9)
    made = generate_words(model, units, lengths)
    logits = model(torch.cat([units, made.units], dim=1)).logits[:, -1]
    logits[:, 0, 0] = -math.inf
    for row in range(2):
        n = min(int(made.lengths[row, 0]) + 1, C)
        assert torch.equal(logits[row, :n].argmax(-1), made.units[row, 0, :n])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), wider=st.integers(1, 3), narrow=st.integers(1, 4))
@torch.no_grad()
def test_a_wider_canvas_changes_nothing(seed, wider, narrow):
    model = make(seed, canvas_size=C + 4)
    units, lengths = words(2, 4, seed, longest=narrow)
    wide = torch.nn.functional.pad(units, (0, wider))
    a, b = model(units, lengths), model(wide, lengths)
    assert torch.allclose(a.pooled, b.pooled, atol=1e-5)
    assert torch.allclose(a.logits, b.logits[:, :, :narrow], atol=1e-5)
    assert torch.allclose(a.word_log_probs, b.word_log_probs, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), quirks=st.booleans())
@torch.no_grad()
def test_words_are_pooled_alone(seed, quirks):
    model = make(seed, released_quirks=quirks)
    units, _ = words(1, 6, seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(model(units[:, order]).pooled, model(units).pooled[:, order], atol=1e-6)


@pytest.mark.parametrize("quirks", [False, True])
@torch.no_grad()
def test_causality_within_and_between_words(quirks):
    model = make(2, released_quirks=quirks)
    units, lengths = words(1, 5, 5)
    units[:, 3], lengths[:, 3] = torch.tensor([1, 2, 3, 0]), 3
    base = model(units, lengths).logits
    later = units.clone()
    later[:, 4] = torch.tensor([4, 0, 0, 0])
    assert torch.allclose(base[:, :3], model(later).logits[:, :3], atol=1e-6)
    inside = units.clone()
    inside[0, 3, 2] = 4  # unit 3 of word 3: predictions of units 1..3 must not move, nor words before it
    moved = model(inside).logits
    assert torch.allclose(base[:, :2], moved[:, :2], atol=1e-6)
    assert torch.allclose(base[:, 2, :3], moved[:, 2, :3], atol=1e-6)
    assert not torch.allclose(base[:, 2, 3], moved[:, 2, 3])


@torch.no_grad()
def test_padded_contexts_generate_as_alone():
    model = make(6)
    units, lengths = words(2, 5, 7)
    for real in (slice(0, 3), slice(2, 5)):
        mask = torch.ones(2, 5, dtype=torch.bool)
        mask[0] = False
        mask[0, real] = True
        together = generate_words(model, units, lengths, word_mask=mask, max_new_words=3)
        alone = generate_words(model, units[:1, real], lengths[:1, real], max_new_words=3)
        assert torch.equal(together.units[:1], alone.units)
        assert torch.allclose(together.log_probs[:1], alone.log_probs, atol=1e-5)


def test_one_word_has_no_target_but_can_be_continued():
    model = make()
    units, _ = words(2, 1)
    assert model(units).logits.shape == (2, 0, C, V)
    assert generate_words(model, units).units.shape == (2, 1, C)
    with pytest.raises(ValueError, match="at least two words"):
        model(units, labels=units)


def test_dropout_path_and_distinct_path_pool_alike():
    model = make(dropout=0.5)
    units, _ = words(2, 5)
    model.train()
    for module in model.modules():  # the path of training, its dropout switched off
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    trained = model(units).pooled
    assert torch.allclose(trained, model.eval()(units).pooled, atol=1e-5)


def test_an_exchanged_body_gets_the_words(tmp_path):
    body = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = make(body=body)
    units, _ = words(2, 5)
    model(units, labels=units).loss.backward()
    assert model.embedding.weight.grad.abs().sum() > 0
    assert not any("wte" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="block_size"):
        make(body=body, block_size=17)
    with pytest.raises(ValueError, match="hidden_size"):
        make(body=body, hidden_size=32)
    with pytest.raises(ValueError, match="model_type"):
        make(body={"n_embd": 16})


def bad_inputs():
    units, lengths = words(2, 3)
    yield "block_size", (words(1, 9)[0], None, None)
    yield "canvas_size", (torch.ones(1, 2, C + 1).long(), None, None)
    yield "word_lengths", (units, lengths * 0, None)
    yield "word_lengths", (units, lengths + C, None)
    yield "word_lengths", (units, lengths.float(), None)
    yield "word_lengths", (units, lengths[:1], None)
    yield "after the end", (torch.full((1, 2, C), 2), torch.full((1, 2), 2), None)
    yield "inside a word", (torch.tensor([[[1, 0, 2, 0]]]), None, None)
    yield "word_lengths", (torch.zeros(1, 2, C).long(), None, None)
    yield "input_units", (torch.full((1, 2, C), V), None, None)
    yield "input_units", (-torch.ones(1, 2, C).long(), None, None)
    yield "input_units", (torch.ones(1, 0, C).long(), None, None)
    yield "input_units", (units.float(), None, None)
    yield "word_mask", (units, lengths, torch.ones(2, 3))
    yield "word_mask", (units, lengths, torch.zeros(2, 3, dtype=torch.bool))


@pytest.mark.parametrize(("message", "inputs"), list(bad_inputs()))
def test_bad_input_is_refused(message, inputs):
    units, lengths, mask = inputs
    with pytest.raises((ValueError, TypeError), match=message):
        make()(units, lengths, mask)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 1), ("num_prefix", 0), ("hidden_size", 0), ("hidden_size", 18), ("dropout", 1.0), ("canvas_size", 0), ("released_quirks", 1),
     ("word_layers", True), ("block_size", 0)],
)  # fmt: skip
def test_bad_sizes_are_refused(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        make(**{name: value})


def test_bad_generation_options_are_refused():
    model = make()
    units, lengths = words(1, 5)
    for options in ({"max_new_words": 0}, {"max_new_words": 9}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            generate_words(model, units, lengths, **options)
    with pytest.raises(ValueError, match="input_units"):
        score_words(model, units, lengths, candidates=torch.full((1, 1, C), V))
