from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.text.tokenizers import TEXT, llama, make
from tokenry import UnsupportedModelError
from tokenry.hosts.paths import PathScorer
from tokenry.hosts.text import ByteVocabulary
from tokenry.testing import check_byte_model, tiny
from tokenry.text import ByteEnsemble, ByteLM
from tokenry.text.byteprobs import byte_decoding, fill_in_the_middle, healed_next_byte, naive_next_byte
from tokenry.text.byteprobs.sampling import sample_symbol, tempered


def fast(tokenizer: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **roles)


@cache
def letters() -> Tokenizer:
    vocab = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "aa": 4, "ab": 5, "aab": 6, "ba": 7}
    merges = [("a", "a"), ("a", "b"), ("aa", "b"), ("b", "a")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@cache
def letter_lm() -> ByteLM:
    return ByteLM(llama(8), fast(letters()))


@cache
def text_lm(layout: str, seed: int = 0) -> ByteLM:
    tokenizer = make(layout)
    bos, eos = (tokenizer.token_to_id(name) for name in ("<s>", "</s>"))
    return ByteLM(llama(tokenizer.get_vocab_size() + 5, seed=seed, bos_token_id=bos, eos_token_id=eos), fast(tokenizer))


def log_prob(lm: ByteLM, ids) -> float:
    """Chain rule after the beginning token, without any cache."""
    path = torch.tensor([[lm.begin_id, *ids]])
    with torch.no_grad():
        rows = lm.model(path).logits[0, :, : lm.vocabulary.size].float().log_softmax(-1)
    return sum(float(rows[i, token]) for i, token in enumerate(ids))


def brute_covers(tokenizer: Tokenizer, text: str, alphabet: str, longest: int) -> set[tuple[int, ...]]:
    """Covers by definition: encode everything that begins with `text`, cut behind the token that reaches its end."""
    found = set()
    for length in range(longest + 1):
        for tail in itertools.product(alphabet, repeat=length):
            ids, total, count = tokenizer.encode(text + "".join(tail), add_special_tokens=False).ids, 0, 0
            while total < len(text):
                total, count = total + len(tokenizer.id_to_token(ids[count])), count + 1
            found.add(tuple(ids[:count]))
    return found


# the lemma


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="ab", min_size=1, max_size=9))
def test_covers_equal_brute_force(text):
    lm = letter_lm()
    covers = lm.start(text).covers()
    assert {tuple(ids) for ids, _, _ in covers} == brute_covers(letters(), text, "ab", 3)
    for ids, left, score in covers:
        assert lm.vocabulary.decode(ids) == text.encode() + left
        assert score == pytest.approx(log_prob(lm, ids), abs=1e-4)
    assert lm.logprob(text) == pytest.approx(np.logaddexp.reduce([score for *_, score in covers]), abs=1e-9)
    assert [list(ids) for ids, left, _ in covers if not left] == [lm.vocabulary.encode(text)]


@settings(max_examples=25, deadline=None)
@given(st.text(alphabet="ab", min_size=1, max_size=9))
def test_next_byte_is_the_ratio_of_prefixes(text):
    """S[b] over sum S, where S[b] is the mass of the covers of x b, the released recursion (section 3.4)."""
    lm = letter_lm()
    probs = lm.next_byte(text)
    assert float(probs.sum()) == pytest.approx(1.0, abs=1e-12)
    masses = {c: math.exp(lm.logprob(text + c)) for c in "ab"}
    own = lm.vocabulary.encode(text)
    specials = sum(math.exp(log_prob(lm, [*own, token])) for token in lm.specials)
    total = sum(masses.values()) + specials
    for char, mass in masses.items():
        assert float(probs[ord(char)]) == pytest.approx(mass / total, rel=1e-3)


class Markov(LlamaForCausalLM):
    """A token LM that is exactly the tokenized Markov chain over letters: it never leaks onto sequences the tokenizer cannot make."""

    def __init__(self, transition, pieces, longest):
        super().__init__(llama(len(pieces)).config)
        self.chain, self.pieces, self.longest = transition, pieces, longest

    def forward(self, input_ids, use_cache=None, logits_to_keep=0, **_):
        rows = torch.stack([torch.stack([self.next(ids[:n]) for n in range(1, len(ids) + 1)]) for ids in input_ids.tolist()])
        return type("Output", (), {"logits": rows[:, -logits_to_keep:]})()

    _is_stateful = True  # no key-value cache: every run gets the whole path

    def next(self, ids):
        text = "".join(self.pieces[i] for i in ids[1:])
        if ids[-1] == 1:
            return torch.zeros(len(self.pieces))
        out = torch.full((len(self.pieces),), -torch.inf)
        masses = {}
        for word in itertools.product("AB", repeat=self.longest + 1):
            path, previous = 1.0, text[-1:] or "A"
            for char in word:
                path *= self.chain[previous + char]
                previous = char
            masses["".join(word)] = path
        # The maximal prefix encoding decides the next token once enough letters are known.
        allowed = {}
        for word, mass in masses.items():
            own = longest_prefix(text + word, self.pieces)
            if own[: len(ids) - 1] == ids[1:]:
                allowed[own[len(ids) - 1]] = allowed.get(own[len(ids) - 1], 0.0) + mass
        for token, mass in allowed.items():
            out[token] = math.log(mass / sum(allowed.values()))
        return out


def longest_prefix(text, pieces):
    ids = []
    while text:
        token = max((i for i, p in enumerate(pieces) if i > 1 and text.startswith(p)), key=lambda i: len(pieces[i]))
        ids.append(token)
        text = text[len(pieces[token]) :]
    return ids


def test_a_markov_chain_is_recovered_exactly():
    """The paper's toy: maximal prefix encoding over A, B, AA. The naive answer is 0 where the truth is p."""
    pieces = ["<s>", "</s>", "A", "B", "AA"]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<s>", continuing_subword_prefix=""))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    chain = {"AA": 0.7, "AB": 0.3, "BA": 0.2, "BB": 0.8}
    lm = ByteLM(Markov(chain, pieces, 3), fast(tokenizer))
    for prompt in ("A", "AA", "BA", "AAB", "BAAA", "ABBA"):
        probs = lm.next_byte(prompt)
        for char in "AB":
            assert float(probs[ord(char)]) == pytest.approx(chain[prompt[-1] + char], abs=1e-6), prompt
    assert float(naive_next_byte(lm, "BA")[ord("A")]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("layout", ["gpt2", "cl100k", "sentencepiece", "metaspace", "superword"])
def test_steps_equal_covers_from_scratch(layout):
    lm = text_lm(layout)
    text = "fox isn't\n\n  12 caf\u00e9 \u4e2d".encode()
    state = lm.start()
    for count, byte in enumerate(text):
        scratch = lm.start(text[:count])
        walked = {(tuple(ids), left): score for ids, left, score in state.covers()}
        fresh = {(tuple(ids), left): score for ids, left, score in scratch.covers()}
        if count:
            assert walked.keys() == fresh.keys(), text[:count]
            assert all(abs(walked[key] - fresh[key]) < 1e-3 for key in walked)
        assert torch.allclose(state.next_probs(), scratch.next_probs(), atol=1e-5)
        assert float(state.next_probs().sum()) == pytest.approx(1.0, abs=1e-9)
        state.advance(byte)


@pytest.mark.parametrize("layout", ["gpt2", "o200k", "sentencepiece", "added"])
def test_covers_are_valid_and_no_prefixes_of_each_other(layout):
    lm = text_lm(layout)
    for prompt in ("the quick bro", "fox\n", "a 1", "the ", ""):
        covers = lm.start(prompt).covers()
        paths = [tuple(ids) for ids, _, _ in covers]
        assert len(set(paths)) == len(paths)
        longer = {ids[:n] for ids in paths for n in range(len(ids))}
        assert not longer & set(paths) or prompt == ""
        for ids, left, _ in covers:
            assert b"".join(lm.vocabulary.pieces[t] for t in ids) == lm.vocabulary.prefix + prompt.encode() + left


def test_anchor_free_search_equals_summing_over_every_encoding_of_every_continuation():
    """For one-token-per-byte vocabularies the byte model is the token model itself."""
    tokenizer = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "a": 2, "b": 3}, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    lm = ByteLM(llama(4), fast(tokenizer))
    probs = lm.next_byte("abba")
    with torch.no_grad():
        row = lm.model(torch.tensor([[0, 2, 3, 3, 2]])).logits[0, -1].softmax(-1)
    assert float(probs[ord("a")]) == pytest.approx(float(row[2]), abs=1e-6)
    assert float(probs[256 + lm.specials.index(1)]) == pytest.approx(float(row[1]), abs=1e-6)


def test_renumbering_ids_changes_nothing():
    order = [4, 5, 7, 2, 0, 3, 6, 1]
    names = sorted(letters().get_vocab(), key=letters().get_vocab().get)
    vocab = {name: order[i] for i, name in enumerate(names)}
    other = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "a"), ("a", "b"), ("aa", "b"), ("b", "a")]))
    other.add_special_tokens(["<s>", "</s>"])
    model = llama(8)
    moved = llama(8)
    inverse = torch.tensor([order.index(i) for i in range(8)])
    with torch.no_grad():
        moved.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[inverse])
        moved.lm_head.weight.copy_(model.lm_head.weight[inverse])
    first, second = letter_lm().next_byte("aab"), ByteLM(moved, fast(other)).next_byte("aab")
    assert torch.allclose(first[:256], second[:256], atol=1e-5)


# fast mode, baselines


def test_fast_mode_equals_exact_when_nothing_leaks():
    exact = letter_lm()
    loose = ByteLM(exact.model, fast(letters()), valid_only=False)
    assert float(loose.next_byte("ab").sum()) == pytest.approx(1.0)
    assert loose.logprob("ab") >= exact.logprob("ab")  # it counts sequences that the tokenizer never makes
    gap = (loose.next_byte("aab") - exact.next_byte("aab")).abs().max()
    assert 0 < gap < 1


def test_naive_and_healed_are_what_they_say():
    lm = letter_lm()
    own = lm.vocabulary.encode("ba")
    row = [math.exp(log_prob(lm, [*own, t]) - log_prob(lm, own)) for t in range(8)]
    naive = naive_next_byte(lm, "ba")
    assert float(naive[ord("a")]) == pytest.approx(sum(row[t] for t in (2, 4, 5, 6)), abs=1e-5)
    head = own[:-1]
    before = [math.exp(log_prob(lm, [*head, t]) - log_prob(lm, head)) for t in range(8)]
    assert own == [7]  # "ba" is dropped; only itself starts with it
    mass = {"a": before[7] * sum(row[t] for t in (2, 4, 5, 6)), "b": before[7] * sum(row[t] for t in (3, 7))}
    ends = before[7] * (row[0] + row[1])
    healed = healed_next_byte(lm, "ba")
    assert float(healed[ord("a")]) == pytest.approx(mass["a"] / (mass["a"] + mass["b"] + ends), abs=1e-5)


# runs and caches


def test_one_run_of_the_model_per_byte():
    lm = text_lm("sentencepiece")
    state = lm.start("the quick")
    state.next_probs()
    for byte in b" brown fox":
        before = lm.scorer.runs
        state.advance(byte)
        state.next_probs()
        assert lm.scorer.runs - before <= 1


def test_batches_equal_single_prompts():
    lm = text_lm("gpt2")
    prompts = ["the qu", "", "fox isn", "12345\n", "caf\u00e9".encode()[:-1]]
    together = lm.generate(prompts, 12, temperature=0)
    assert together == [lm.generate(prompt, 12, temperature=0) for prompt in prompts]


def test_paths_with_shared_beginnings_score_as_without_a_cache():
    model = llama(50)
    scorer = PathScorer(model, 50)
    draw = torch.Generator().manual_seed(0)
    base = torch.randint(50, (40,), generator=draw).tolist()
    for _ in range(6):
        paths = [
            base[: int(n)] + torch.randint(50, (3,), generator=draw).tolist()
            for n in torch.randint(1, 40, (3,), generator=draw)
        ]
        for path, rows in zip(paths, scorer.run(paths, [2, 1, 3]), strict=True):
            with torch.no_grad():
                whole = model(torch.tensor([path])).logits[0].log_softmax(-1)
            assert torch.allclose(rows, whole[-len(rows) :], atol=1e-4)
    scored = PathScorer(model, 50).token_log_probs(base)
    with torch.no_grad():
        whole = model(torch.tensor([base])).logits[0].double().log_softmax(-1)
    assert torch.allclose(scored, whole[:-1].gather(1, torch.tensor(base[1:])[:, None])[:, 0], atol=1e-4)


GEMMA3 = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


@pytest.mark.parametrize(("family", "changes"), [("gemma3", GEMMA3), ("gpt2", {}), ("mamba", {})])
def test_models_with_windows_learned_positions_or_states(family, changes):
    """Beyond the sliding window of 8, with rows of different length in one run."""
    tokens = {"vocab_size": make("gpt2").get_vocab_size(), "bos_token_id": 0, "eos_token_id": 1}
    lm = ByteLM(tiny(family, **tokens, **changes), fast(make("gpt2")))
    prompt = "the quick brown fox isn't over the lazy d"
    exact = lm.start(prompt)
    for ids, _, score in exact.covers()[:4]:
        assert score == pytest.approx(log_prob(lm, ids), abs=2e-3)
    state = lm.start("the quick brown fox isn't")
    for byte in b" over the lazy d":
        state.advance(byte)
        state.next_probs()
    assert torch.allclose(state.next_probs(), exact.next_probs(), atol=1e-4)


def test_half_precision_is_read_in_float32():
    lm = text_lm("gpt2")
    half = ByteLM(llama(425, bos_token_id=lm.begin_id).to(torch.bfloat16), fast(make("gpt2")))
    probs = half.next_byte("the qu")
    assert probs.dtype == torch.float64
    assert float(probs.sum()) == pytest.approx(1.0)


# prompts and specials


def test_prompts_that_end_inside_a_character():
    lm = text_lm("gpt2")
    whole = "a\u4e2d".encode()
    for cut in (1, 2):
        state = lm.start(whole[: 1 + cut])
        probs = state.next_probs()
        assert float(probs[:0x80].sum() + probs[0xC0:256].sum() + probs[256:].sum()) == pytest.approx(
            float(probs[256:].sum()), abs=1e-12
        )  # only continuation bytes can follow
        assert lm.start(b"a").log_prob() >= state.log_prob() >= lm.start(whole).log_prob()


def test_empty_prompt_and_special_text():
    lm = text_lm("gpt2")
    assert lm.logprob("") == 0.0
    assert lm.start("").covers() == [([], b"", 0.0)]
    ids = {token for ids, _, _ in lm.start("a<s>b").covers() for token in ids}
    assert not ids & set(lm.specials)


def test_generation_stops_at_the_end_of_the_sequence():
    lm = text_lm("gpt2")
    model = llama(425)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[1] = 100.0 * model.model.norm.weight.sign()
    stopping = ByteLM(model, fast(make("gpt2")))
    text = stopping.generate("a", 20, generator=torch.Generator().manual_seed(0))
    assert len(text) < 20
    assert lm.ends == {1}
    assert list(lm.bytes_after("the", 3, temperature=0)) == list(lm.generate("the", 3, temperature=0))


def test_context_stands_for_the_beginning():
    lm = text_lm("gpt2")
    context = [lm.begin_id, *lm.vocabulary.encode("the dog"), 1]
    state = lm.start(" ju", context=context)
    ids, _, score = state.covers()[0]
    path = torch.tensor([[*context, *ids]])
    with torch.no_grad():
        rows = lm.model(path).logits[0, :, : lm.vocabulary.size].log_softmax(-1)
    assert score == pytest.approx(sum(float(rows[len(context) - 1 + i, t]) for i, t in enumerate(ids)), abs=1e-3)


@pytest.mark.parametrize("layout", ["gpt2", "sentencepiece"])
def test_generate_of_transformers(layout):
    lm = text_lm(layout)
    tokenizer = fast(make(layout))
    prompt = tokenizer("the quick bro", return_tensors="pt").input_ids
    prompt = torch.cat([torch.tensor([[lm.begin_id]]), prompt], dim=1)
    seen = {"attention_mask": torch.ones_like(prompt)}
    out = lm.model.generate(
        prompt, **seen, custom_generate=byte_decoding(lm), max_new_tokens=5, do_sample=False, pad_token_id=0
    )
    text = lm.vocabulary.decode([t for t in out[0].tolist()[1:] if t not in lm.specials])
    assert out[0, 0] == lm.begin_id
    assert text.startswith(b"the quick bro")
    assert text == b"the quick bro" + lm.generate("the quick bro", len(text) - 13, temperature=0)
    with pytest.raises(ValueError, match="num_beams"):
        lm.model.generate(prompt, custom_generate=byte_decoding(lm), num_beams=2, max_new_tokens=2)


def test_fill_in_the_middle_puts_the_prefix_last():
    tokenizer = Tokenizer.from_str(make("gpt2").to_str())
    tokenizer.add_special_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    model = llama(tokenizer.get_vocab_size())
    lm = ByteLM(model, fast(tokenizer))
    made = fill_in_the_middle(lm, "def fo", "return x", max_bytes=4)
    first, second, third = (tokenizer.token_to_id(f"<fim_{part}>") for part in ("prefix", "suffix", "middle"))
    context = [lm.begin_id, first, second, *lm.vocabulary.encode("return x"), third]
    assert made == lm.generate("def fo", 4, temperature=0, context=context)
    with pytest.raises(ValueError, match="markers"):
        fill_in_the_middle(letter_lm(), "a", "b")


# ensembles


def test_ensembles():
    one, two = text_lm("gpt2"), text_lm("sentencepiece", 3)
    prompt = "the fox isn"
    alone = ByteEnsemble([one]).next_byte(prompt)
    assert torch.allclose(alone[:256], one.next_byte(prompt)[:256], atol=1e-9)
    copies = ByteEnsemble([one, one, one], mode="geometric").next_byte(prompt)
    assert torch.allclose(copies, alone, atol=1e-9)
    mixed = ByteEnsemble([one, two], weights=[0.25, 0.75]).next_byte(prompt)
    own = ByteEnsemble([two]).next_byte(prompt)
    assert torch.allclose(mixed, 0.25 * alone + 0.75 * own, atol=1e-9)
    product = ByteEnsemble([one, two], mode="geometric").next_byte(prompt)
    expected = (alone * own).sqrt() / (alone * own).sqrt().sum()
    assert torch.allclose(product, expected, atol=1e-9)
    state = ByteEnsemble([one, two]).start(prompt)
    total = ByteEnsemble([one, two]).logprob("the")
    assert total < 0
    assert len(state.next_probs()) == 259
    assert len(state.covers()) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [0.5, 0.6]}, "sum to 1"),
        ({"weights": [1.5, -0.5]}, "non-negative"),
        ({"weights": [1.0]}, "one number per member"),
        ({"weights": [float("nan"), 1.0]}, "non-negative"),
        ({"mode": "harmonic"}, "mode"),
    ],
)
def test_bad_ensembles(options, message):
    with pytest.raises(ValueError, match=message):
        ByteEnsemble([letter_lm(), letter_lm()], **options)
    with pytest.raises(ValueError, match="members"):
        ByteEnsemble([])
    with pytest.raises(TypeError, match="members"):
        ByteEnsemble([object()])


# the contract, refusals


@pytest.mark.parametrize("layout", ["gpt2", "sentencepiece"])
def test_contract(layout):
    check_byte_model(text_lm(layout), prompts=(b"", b"the qu", b"fox:\n\n", "caf\u00e9".encode()[:-1]))


def test_contract_of_ensembles():
    check_byte_model(ByteEnsemble([text_lm("gpt2"), text_lm("cl100k", 1)]), prompts=(b"a", b"the "))


def test_sampling():
    probs = torch.tensor([0.5, 0.3, 0.2])
    assert tempered(probs, 1.0).tolist() == pytest.approx([0.5, 0.3, 0.2])
    hot = (probs.double() + 1e-7) ** 2
    assert torch.allclose(tempered(probs, 0.5), hot / hot.sum())
    assert tempered(probs, 1.0, 0.6).tolist() == pytest.approx([0.625, 0.375, 0.0])
    assert tempered(probs, 0.05).tolist() == [1.0, 0.0, 0.0]
    draws = [sample_symbol(probs, generator=torch.Generator().manual_seed(i)) for i in range(400)]
    assert 0.4 < draws.count(0) / 400 < 0.6


def test_refusals():
    tokenizer = fast(make("gpt2"))
    with pytest.raises(ValueError, match="logit for each of the tokenizer's"):
        ByteLM(llama(100), tokenizer)
    with pytest.raises(UnsupportedModelError, match="causal language models"):
        ByteLM(torch.nn.Linear(2, 2), tokenizer)
    lower = Tokenizer.from_str(make("gpt2").to_str())
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="Lowercase"):
        ByteLM(llama(425), fast(lower))
    with pytest.raises(ValueError, match="window of 16 tokens, got"):
        ByteLM(llama(425, max_position_embeddings=16), tokenizer).next_byte(TEXT[0])
    with pytest.raises(ValueError, match="bos_token_id"):
        ByteLM(llama(425), tokenizer, bos_token_id=9999)
    with pytest.raises(ValueError, match="context"):
        letter_lm().start("a", context=[])
    with pytest.raises(ValueError, match="data must survive"):
        letter_lm().start("abc")
    with pytest.raises(ValueError, match=r"byte must have a probability above zero here, got 99 \(b'c'\)"):
        letter_lm().start("ab").advance(ord("c"))
    assert letter_lm().logprob("a") > -math.inf
    assert ByteVocabulary.of(letters()).kind == "plain"
