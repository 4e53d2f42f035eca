"""Tips that wait for their run: the same bytes, the same distribution, the same probabilities, with fewer runs of the model."""

from __future__ import annotations

import collections
import math
import warnings

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput

from tests.text.test_byteprobs import fast, letter_lm, log_prob, text_lm
from tests.text.tokenizers import LAYOUTS, TEXT, llama, make
from tokenry import UnsupportedModelError
from tokenry.core.seeding import seeded
from tokenry.hosts.path_runs import drive
from tokenry.hosts.paths import WindowFullError
from tokenry.hosts.text import is_prefix
from tokenry.text import ByteEnsemble, ByteLM
from tokenry.text.byteprobs import byte_decoding
from tokenry.text.byteprobs.sampling import choose, sample_symbol

PROMPT = "the quick brown fox isn"


def greedy_by_whole_distributions(lm, prompt, count):
    state, made = lm.start(prompt), bytearray()
    for _ in range(count):
        symbol = int(state.next_probs().argmax())
        if symbol >= 256:
            break
        made.append(symbol)
        state.advance(symbol)
    return bytes(made)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("valid_only", [True, False])
def test_greedy_bytes_and_what_is_known_after_them(layout, valid_only):
    count = 6 if layout == "unigram" else 24
    inner = text_lm(layout)
    lm = ByteLM(inner.model, fast(make(layout)), valid_only=valid_only)
    assert lm.generate(PROMPT, count, temperature=0) == greedy_by_whole_distributions(lm, PROMPT, count)
    state = lm.start(PROMPT)
    for step in range(count):
        (symbol,) = drive([state.choose(temperature=0.0)])
        if symbol >= 256:
            break
        state.advance(symbol)
        if not is_prefix(state.text):
            break  # fast mode over random weights
        if step % 6 == 5:
            scratch, here = lm.start(state.text), state.copy()
            assert torch.allclose(here.next_probs(), scratch.next_probs(), atol=1e-6)
            assert here.log_prob() == pytest.approx(scratch.log_prob(), abs=1e-4)
            walked = {(tuple(ids), left): score for ids, left, score in here.covers()}
            fresh = {(tuple(ids), left): score for ids, left, score in scratch.covers()}
            assert walked.keys() == fresh.keys()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"temperature": 1.6}, {"temperature": 0.8, "top_p": 0.9}])
def test_draws_follow_the_whole_distribution(steps, settings):
    """Chi-squared of the first, or the first two symbols, drawn 500 times from a state with much mass on tips."""
    lm, draws = letter_lm(), 500
    begun = lm.start("ab").advance(ord("a"))  # nothing is run yet: the draw has to decide what is
    generator = torch.Generator().manual_seed(5)
    found = collections.Counter()
    for _ in range(draws):
        state, drawn = begun.copy(), []
        for _ in range(steps):
            (symbol,) = drive([choose(state, generator=generator, **settings)])
            drawn.append(symbol)
            if symbol >= 256:
                break
            state.advance(symbol)
        found[tuple(drawn)] += 1
    expected = distribution(begun.copy(), steps, settings)
    assert set(found) <= {key for key, share in expected.items() if share > 0}
    large = {key: share for key, share in expected.items() if share * draws >= 5}
    rest = 1.0 - sum(large.values())
    statistic = sum((found[key] - share * draws) ** 2 / (share * draws) for key, share in large.items())
    freedom = len(large) - 1
    if rest * draws >= 5:
        others = draws - sum(found[key] for key in large)
        statistic, freedom = statistic + (others - rest * draws) ** 2 / (rest * draws), freedom + 1
    # The mean of chi-squared is its degrees of freedom, its variance twice as much: 4 standard deviations.
    assert freedom >= 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom), (statistic, freedom)


def distribution(state, steps, settings):
    from tokenry.text.byteprobs.sampling import tempered

    found = {}
    probs = state.next_probs()
    shares = tempered(probs, **settings) * (probs > 0)
    for symbol, share in enumerate((shares / shares.sum()).tolist()):
        if steps > 1 and symbol < 256 and share > 1e-5:
            for tail, part in distribution(state.copy().advance(symbol), steps - 1, settings).items():
                found[(symbol, *tail)] = share * part
        else:
            found[(symbol,)] = share
    return found


def trained(layout="gpt2", steps=60):
    """A small model that has learnt a few lines, so that one byte leads, as in a real one."""
    tokenizer = make(layout)
    size = tokenizer.get_vocab_size()
    model = llama(size, bos_token_id=tokenizer.token_to_id("<s>"), eos_token_id=1, initializer_range=0.05)
    ids = torch.tensor([[model.config.bos_token_id, *tokenizer.encode(TEXT[0] + TEXT[2], add_special_tokens=False).ids]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return ByteLM(model.eval(), fast(tokenizer))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_about_one_run_a_token(temperature):
    lm = trained()
    state = lm.start("the quick bro")
    state.next_probs()
    before, made = lm.scorer.runs, bytearray()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        (symbol,) = drive([state.choose(temperature=temperature, generator=generator)])
        if symbol >= 256:
            break
        made.append(symbol)
        state.advance(symbol)
    tokens = len(lm.vocabulary.encode(state.text)) - len(lm.vocabulary.encode("the quick bro"))
    assert tokens < len(made)  # tokens of several bytes: a run a byte would not do
    assert lm.scorer.runs - before <= 1.3 * tokens + 2


def test_bytes_given_one_by_one_run_nothing_until_asked():
    lm = trained()
    state, before = lm.start("the"), lm.scorer.runs
    for byte in b" quick":
        state.advance(byte)
    assert lm.scorer.runs == before
    assert torch.allclose(state.next_probs(), lm.next_byte("the quick"), atol=1e-6)


# what ends a text


@pytest.mark.parametrize("layout", ["gpt2", "sentencepiece", "thinking"])
def test_nothing_ends_inside_a_character(layout):
    lm = text_lm(layout)
    for character in ("\u00e9", "\u4e2d", "\U0001f600"):
        for cut in range(1, len(character.encode())):
            state = lm.start(b"a " + character.encode()[:cut])
            assert float(state.next_probs()[256:].sum()) == 0.0
            assert float(state.next_probs().sum()) == pytest.approx(1.0)


def test_only_the_encoding_of_the_whole_text_can_end_it():
    """GPT-2 leaves two encodings of a trailing "\\n\\n" open; encode() gives one of them, and only it can stand before an end."""
    lm = text_lm("gpt2")
    state = lm.start("fox\n\n")
    own = lm.vocabulary.encode("fox\n\n")
    assert len(state.tips) == 2
    scores = state.scores()
    ended = log_prob(lm, [*own, lm.specials[1]])
    assert float(scores[257] / scores[ord("a")]) == pytest.approx(math.exp(ended - lm.logprob("fox\n\na")), rel=1e-3)


@pytest.mark.parametrize("layout", ["gpt2", "cl100k", "sentencepiece", "metaspace", "added", "thinking", "superword"])
def test_a_text_is_at_least_as_probable_as_its_own_encoding(layout):
    lm = text_lm(layout)
    text = "<think>\nfox isn't 12\n\n\nthe dog</think> \u4e2d"
    for end in range(1, len(text) + 1, 5):
        own = lm.vocabulary.encode(text[:end])
        assert lm.logprob(text[:end]) >= log_prob(lm, own) - 1e-4
        walked = lm.start()
        for byte in text[:end].encode():
            walked.advance(byte)
        assert walked.log_prob() == pytest.approx(lm.logprob(text[:end]), abs=2e-3)


# scoring, ensembles


@pytest.mark.parametrize("layout", ["gpt2", "sentencepiece", "metaspace", "thinking"])
def test_byte_log_probs_equal_stepping(layout):
    lm = text_lm(layout)
    text = (TEXT[0] + "\u4e2d")[:170]
    state, stepped = lm.start(), []
    for byte in text.encode():
        stepped.append(float(state.next_probs()[byte].log()))
        state.advance(byte)
    before = lm.scorer.runs
    found = lm.byte_log_probs(text)
    assert lm.scorer.runs - before <= len(stepped) / 5
    assert torch.allclose(found, torch.tensor(stepped, dtype=torch.float64), atol=2e-4)
    assert len(lm.byte_log_probs("")) == 0
    assert torch.allclose(lm.byte_log_probs("the\n", context=[1]), lm.byte_log_probs("the\n", context=[1]))


def test_ensembles_wait_too():
    one, two = trained(), text_lm("sentencepiece", 3)
    both = ByteEnsemble([one, two], [0.9, 0.1])
    state, made = both.start(PROMPT), bytearray()
    for _ in range(12):
        made.append(int(state.next_probs()[:256].argmax()))
        state.advance(made[-1])
    before = one.scorer.runs
    assert both.generate(PROMPT, 12, temperature=0) == bytes(made)
    assert one.scorer.runs - before < 12
    text = b"the quick brown"
    state, total = both.start(), 0.0
    for byte in text:
        total += math.log(float(state.next_probs()[byte]))
        state.advance(byte)
    assert both.logprob(text) == pytest.approx(total, abs=1e-3)


def test_draws_of_an_ensemble():
    both = ByteEnsemble([letter_lm(), ByteLM(llama(8, seed=4), letter_lm_tokenizer())], [0.3, 0.7])
    begun, draws = both.start("ab"), 1000
    expected = begun.copy().next_probs().numpy()
    generator = torch.Generator().manual_seed(0)
    found = np.bincount([drive([begun.copy().choose(generator=generator)])[0] for _ in range(draws)], minlength=len(expected))
    large = expected * draws >= 5
    statistic = float((((found - expected * draws) ** 2)[large] / (expected * draws)[large]).sum())
    freedom = int(large.sum()) - 1
    assert freedom >= 2
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def letter_lm_tokenizer():
    from tests.text.test_byteprobs import letters

    return fast(letters())


# windows and generate's options


def test_a_full_window_keeps_the_bytes():
    config = GPT2Config(vocab_size=make("gpt2").get_vocab_size(), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    with seeded(0):
        lm = ByteLM(GPT2LMHeadModel(config).eval(), fast(make("gpt2")))
    with pytest.warns(UserWarning, match=r"stopped after \d+ bytes: the model's window of 24 tokens is full"):
        made = lm.generate("the fox", 400, temperature=0)
    assert 0 < len(made) < 400
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert lm.generate(["the fox", "fo"], 400, temperature=0)[0] == made
        ids = torch.tensor([[lm.begin_id, *lm.vocabulary.encode("the fox")]])
        out = lm.model.generate(ids, custom_generate=byte_decoding(lm), max_new_tokens=100, do_sample=False, pad_token_id=0)
    assert out.shape[1] > ids.shape[1]
    with pytest.raises(WindowFullError, match="window of 24 tokens, got"):
        lm.generate(TEXT[0], 4)


def test_options_of_generate():
    lm = text_lm("gpt2")
    ids = torch.tensor([[lm.begin_id, *lm.vocabulary.encode("the fox")]])
    common = {"custom_generate": byte_decoding(lm), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    plain = lm.model.generate(ids, **common)
    dressed = lm.model.generate(ids, return_dict_in_generate=True, **common)
    assert isinstance(dressed, GenerateDecoderOnlyOutput)
    assert torch.equal(dressed.sequences, plain)
    for name, value in (("repetition_penalty", 1.3), ("no_repeat_ngram_size", 2), ("typical_p", 0.5), ("min_p", 0.1)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            lm.model.generate(ids, **common, **{name: value})


def test_sample_symbol_is_the_same_rule():
    probs = letter_lm().next_byte("aab")
    drawn = [sample_symbol(probs, generator=torch.Generator().manual_seed(i)) for i in range(50)]
    assert all(float(probs[symbol]) > 0 for symbol in drawn)


# what is refused, what is read


def test_models_that_are_not_causal_are_refused():
    tokenizer = fast(make("gpt2"))
    size = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with seeded(0):
        masked = BertForMaskedLM(BertConfig(**size, intermediate_size=16, initializer_range=0.5)).eval()
        t5 = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), d_model=16, num_layers=1, num_heads=2, d_ff=16))
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM is no causal language model"):
        ByteLM(masked, tokenizer, bos_token_id=0).logprob("the fox")
    with pytest.raises(UnsupportedModelError, match="causal language models"):
        ByteLM(t5, tokenizer)
    with pytest.raises(TypeError, match="data must be bytes or str"):
        text_lm("gpt2").logprob(None)


def test_drop_out_is_off_and_back_on_again():
    config = GPT2Config(vocab_size=make("gpt2").get_vocab_size(), n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.5)
    with seeded(0):
        model = GPT2LMHeadModel(config).train()
    model.transformer.drop.eval()
    lm = ByteLM(model, fast(make("gpt2")))
    assert lm.logprob("the fox") == lm.logprob("the fox")
    assert model.training
    assert model.transformer.h[0].mlp.dropout.training
    assert not model.transformer.drop.training


def test_a_chat_is_context_and_only_its_last_part_is_text():
    lm = text_lm("gpt2")
    head = [lm.begin_id, *lm.vocabulary.encode("the dog"), 1, lm.begin_id]
    ids = torch.tensor([[*head, *lm.vocabulary.encode("the qu")]])
    seen = {"attention_mask": torch.ones_like(ids)}
    out = lm.model.generate(ids, **seen, custom_generate=byte_decoding(lm), max_new_tokens=3, do_sample=False, pad_token_id=0)
    made = lm.vocabulary.decode([token for token in out[0, len(head) :].tolist() if token not in lm.specials])
    assert out[0, : len(head)].tolist() == head
    assert made == b"the qu" + lm.generate("the qu", len(made) - 6, temperature=0, context=head)


class _Bias(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


class _Stop(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.ones(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"logits_processor": LogitsProcessorList([_Bias()])}, "logits_processor must be empty .* got _Bias"),
        ({"stopping_criteria": StoppingCriteriaList([_Stop()])}, "stopping_criteria must be empty .* got _Stop"),
        ({"eos_token_id": [1, 40]}, "eos_token_id must be special tokens for byte decoding, got 40"),
        ({"max_time": 1.0}, "max_time must be None"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores must be False"),
    ],
)
def test_nothing_is_left_out_silently(options, named):
    lm = text_lm("gpt2")
    ids = torch.tensor([[lm.begin_id, *lm.vocabulary.encode("the fox")]])
    with pytest.raises(ValueError, match=named):
        lm.model.generate(ids, custom_generate=byte_decoding(lm), max_new_tokens=3, do_sample=False, pad_token_id=0, **options)
