from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

from tests.contracts import random_state_kept
from tests.text.tokenizers import llama, make
from tokenry import UnsupportedModelError
from tokenry.core.seeding import seeded
from tokenry.hosts.text import ByteVocabulary, is_canonical
from tokenry.text.consistency import (
    STOP_WORDS,
    CanonicalOnly,
    ConsistencyProbe,
    Forbidden,
    MarkedPassage,
    PromptFormat,
    TargetMask,
    TokenText,
    align_targets,
    judge_output,
    mark_words,
    merge_results,
    select_passages,
    split_words,
)

TEXT = "The quick brown fox isn't over the lazy dog's bones, and \u201cthose\u201d andes return there."


def fast(layout: str = "gpt2") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=make(layout), bos_token="<s>", eos_token="</s>")


def test_words_are_cut_from_their_punctuation() -> None:
    words = [word.text for word in split_words('He said: "don\'t", state-of-the-art [now]!', "[]")]
    assert words == ["He", "said", ":", '"', "don't", '",', "state-of-the-art", "now", "!"]
    assert split_words(" \n") == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["gpt2", "cl100k", "o200k", "sentencepiece", "digits"]))
def test_marked_words_keep_their_tokens(seed: int, layout: str) -> None:
    vocabulary = ByteVocabulary.of(make(layout))
    passage = mark_words(TEXT, make(layout), share=0.3, seed=seed)
    plain = TokenText(vocabulary.encode_text(TEXT), vocabulary)
    assert passage.marked.replace("[", "").replace("]", "") == TEXT
    for target in passage.targets:
        assert target.text.lower() not in STOP_WORDS
        assert target.index > 0
        assert passage.marked[target.marked_start : target.marked_end] == target.text == TEXT[target.start : target.end]
        assert plain.span(target.start, target.end).ids == target.ids
    assert passage == mark_words(TEXT, make(layout), share=0.3, seed=seed)


def test_places_of_the_brackets() -> None:
    options = {"words": ["lazy", "bones", "andes"], "share": 1.0}
    assert mark_words(TEXT, make("gpt2"), **options).marked.count("[ lazy]") == 1
    assert " [lazy] " in mark_words(TEXT, make("gpt2"), placement="around_word", **options).marked
    assert "\u201c[those]\u201d" in mark_words(
        TEXT, make("gpt2"), placement="around_word", share=1.0, words=["those"], stop_words=()
    ).marked  # fmt: skip
    with pytest.raises(ValueError, match="brackets"):
        mark_words("a [b] c", make("gpt2"))
    with pytest.raises(ValueError, match="a word that can be marked"):
        mark_words("the and of", make("gpt2"))
    with pytest.raises(ValueError, match="share"):
        mark_words(TEXT, make("gpt2"), share=0.0)
    assert select_passages(["a b", "a b c", "a"], min_words=2, max_words=2) == ["a b"]


def places(source: str, written: str, *targets: str) -> list[str | None]:
    left, right = split_words(source), split_words(written, "[]")
    index = [next(i for i, word in enumerate(left) if word.text == target) for target in targets]
    found = align_targets(left, right, index)
    return [None if place is None else " ".join(word.text for word in right[place[0] : place[1]]) for place in found]


def test_alignment_of_targets() -> None:
    source = "The small dog ran over the hill and the small cat slept"
    assert places(source, "The big dog ran over the hill and the small cat slept", "small") == ["big"]
    assert places(source, "The very big dog ran over the hill", "small") == ["very big"]
    assert places(source, "The [small] dog ran over the hill", "small") == ["small"]
    assert places(source, "The dog ran over the hill", "small") == [None]
    assert places(source, "", "small", "cat") == [None, None]
    assert places(source, "Nothing of this was ever said", "hill") == [None]
    assert places(source, "The small dog ran over the mountain and the small kitten slept", "hill", "cat") == [
        "mountain",
        "kitten",
    ]
    assert places(source, "The big hound ran over the hill", "small", "dog") == ["big", "hound"]
    assert places(source, "Sure! The big dog ran over", "small") == ["big"]


def judged(output: list[int], passage: MarkedPassage, layout: str = "gpt2") -> list[str]:
    vocabulary = ByteVocabulary.of(make(layout))
    shown = TokenText(vocabulary.encode_text(passage.marked), vocabulary)
    spans = [shown.span(target.marked_start, target.marked_end) for target in passage.targets]
    return [trial.outcome for trial in judge_output(0, passage, spans, output, vocabulary)]


def test_generated_ids_decide() -> None:
    vocabulary = ByteVocabulary.of(make("gpt2"))
    passage = mark_words(TEXT, make("gpt2"), share=1.0, words=["lazy"])
    own = vocabulary.encode(TEXT)
    assert judged(own, passage) == ["unchanged"]
    span = TokenText(own, vocabulary).span(passage.targets[0].start, passage.targets[0].end)
    spelled = [vocabulary.encode(bytes([byte]))[0] for byte in b" lazy"]
    other = [*own[: span.first], *spelled, *own[span.last :]]
    assert judged(other, passage) == ["different"]
    assert judged(vocabulary.encode(TEXT.replace("lazy", "idle")), passage) == ["replaced"]
    assert judged(vocabulary.encode(TEXT.replace("lazy", "Lazy")), passage) == ["replaced"]
    assert judged(vocabulary.encode(TEXT.replace(" lazy", "\nlazy")), passage) == ["different"]
    assert judged([], passage) == ["unalignable"]
    assert judged(own[:3], passage) == ["unalignable"]


def test_equal_looks_are_flagged() -> None:
    vocabulary = ByteVocabulary.of(make("gpt2"))
    text = "We met at the caf\u00e9 near the river again."
    passage = mark_words(text, make("gpt2"), share=1.0, words=["caf\u00e9"])
    spans = [
        TokenText(vocabulary.encode_text(passage.marked), vocabulary).span(t.marked_start, t.marked_end)
        for t in passage.targets
    ]
    (trial,) = judge_output(0, passage, spans, vocabulary.encode(text.replace("\u00e9", "e\u0301")), vocabulary)
    assert trial.outcome == "replaced"
    assert trial.looks_same


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["gpt2", "sentencepiece", "superword"]),
    st.sampled_from(["the", "fox", "caf\u00e9", "a"]),
    st.integers(0, 10_000),
)
def test_a_masked_word_is_never_written(layout: str, word: str, seed: int) -> None:
    """Random walks over allowed tokens that like the word never spell it as a whole word."""
    vocabulary = ByteVocabulary.of(make(layout))
    mask = TargetMask(vocabulary, [[word]], 0)
    draw = np.random.default_rng(seed)
    near = [
        token for token, piece in enumerate(vocabulary.pieces) if piece and piece.strip() and piece.strip() in word.encode()
    ]
    near += [token for token, piece in enumerate(vocabulary.pieces) if piece in (b" ", b"\n", b".", b"\xc3", b"\xa9")]
    ids: list[int] = []
    for _ in range(20):
        choices = np.setdiff1d(np.array(near), mask.forbidden_tokens(ids))
        ids.append(int(draw.choice(choices)))
        text = TokenText(ids, vocabulary).text
        assert word not in [found.text for found in split_words(text)], [vocabulary.pieces[i] for i in ids]


def test_only_completing_tokens_are_forbidden() -> None:
    pieces = ["cat", " cat", "c", "at", "cats", " ", "\n", "\ncat", "at.", "atx", " c", "t", "a"]
    mask = TargetMask(ByteVocabulary.of(pieces), [["cat"]], 0)
    names = lambda ids: [pieces[i] for i in mask.forbidden_tokens(ids)]  # noqa: E731
    assert names([]) == ["cat", " cat", "\ncat"]
    assert names([2]) == [" cat", "at", "\ncat", "at."]
    assert names([10]) == [" cat", "at", "\ncat", "at."]
    assert names([2, 12]) == [" cat", "\ncat", "t"]
    assert names([4]) == names([9, 2]) == [" cat", "\ncat"]  # a match fails inside a word
    first = TargetMask(ByteVocabulary.of(pieces), [["cat"]], 0, mode="first_token")
    assert [pieces[i] for i in first.forbidden_tokens([])] == ["cat", " cat", "\ncat"]
    assert len(first.forbidden_tokens([2])) == 2  # " cat" and "\ncat" start a new word; the split word is let through


def test_masks_count_behind_their_context_only() -> None:
    pieces = ["the", " cat", " sat", " on", " dog", "[", " ", "the\n\ncat"]
    mask = TargetMask(ByteVocabulary.of(pieces), [[Forbidden("cat", ("the",))]], 0)
    assert mask.forbidden_tokens([0]).tolist() == [1]
    assert mask.forbidden_tokens([0, 5]).tolist() == [1, 7]
    assert mask.forbidden_tokens([0, 4]).tolist() == []
    loose = TargetMask(ByteVocabulary.of(pieces), [[Forbidden("cat", ("the", ""))]], 0)
    assert loose.forbidden_tokens([0, 4]).tolist() == [1, 7]
    assert TargetMask(ByteVocabulary.of(pieces), [[]], 0).forbidden_tokens([0]).tolist() == []


def test_masks_that_leave_nothing() -> None:
    vocabulary = ByteVocabulary.of(["cat", " cat"])
    scores = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="no token"):
        TargetMask(vocabulary, [["cat"]], 0)(torch.zeros(2, 0, dtype=torch.long), scores)
    mask = TargetMask(vocabulary, [["cat"], []], 0, on_empty="release")
    assert torch.equal(mask(torch.zeros(2, 0, dtype=torch.long), scores), scores)
    assert mask.released == 1
    with pytest.raises(ValueError, match="row per prompt"):
        mask(torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="outer white space"):
        TargetMask(vocabulary, [[" cat"]], 0)
    with pytest.raises(ValueError, match="mode"):
        TargetMask(vocabulary, [["cat"]], 0, mode="all")


@pytest.mark.parametrize("layout", ["gpt2", "cl100k", "sentencepiece"])
def test_canonical_constraint_in_generate(layout: str) -> None:
    tokenizer = fast(layout)
    vocabulary = ByteVocabulary.of(tokenizer)
    model = llama(vocabulary.size)
    prompt = torch.tensor([[0, *vocabulary.encode("the quick")]])
    made: dict[bool, list[list[int]]] = {}
    for constrained in (False, True):
        processors = [CanonicalOnly(tokenizer, prompt.shape[1])] if constrained else []
        with seeded(0):
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True, num_return_sequences=3, max_new_tokens=12,
                eos_token_id=None, pad_token_id=1, logits_processor=LogitsProcessorList(processors), return_dict_in_generate=True,
            ).sequences  # fmt: skip
        made[constrained] = [row[1:] for row in out.tolist()]
    starts = [
        row in vocabulary.canonical.tips(vocabulary.prefix + vocabulary.decode(row))
        for row in made[True]
        if text_part(row, vocabulary)
    ]
    assert starts
    assert all(starts)
    assert not all(is_whole(row, vocabulary) for row in made[False])


def text_part(row: list[int], vocabulary: ByteVocabulary) -> bool:
    return all(vocabulary.pieces[token] for token in row)


def is_whole(row: list[int], vocabulary: ByteVocabulary) -> bool:
    try:
        return is_canonical(row, vocabulary)
    except ValueError:
        return False


def _bare(passage: MarkedPassage, tokenizer: object) -> str:
    return passage.marked + "\n"


BARE = PromptFormat("bare", _bare, stop="\n\n")


@pytest.mark.parametrize("intervention", ["none", "mask", "first_token", "canonical"])
def test_probe_on_a_real_llama(intervention: str) -> None:
    tokenizer = fast()
    model = llama(len(tokenizer), seed=1)
    probe = ConsistencyProbe(format=BARE, share=0.3, intervention=intervention, batch_size=2, max_new_tokens=10)
    with random_state_kept():
        result = probe.run(model, tokenizer, [TEXT, TEXT[:60], TEXT])
    assert len(result.outputs) == 3
    assert all(len(ids) <= 10 for ids in result.outputs)
    assert len(result.trials) == sum(len(p.targets) for p in probe.mark([TEXT, TEXT[:60], TEXT], tokenizer))
    assert result == probe.run(model, tokenizer, [TEXT, TEXT[:60], TEXT])
    if intervention == "canonical":
        assert result.canonical_tokens >= 0.9
    if not result.aligned:
        with pytest.warns(UserWarning, match="aligned"):
            assert math.isnan(result.rates()["different"].value)
    assert len(result.to_rows()) == len(result.trials)
    assert list(result.to_frame().columns)[:2] == ["passage", "target"]
    merged = merge_results([result, result])
    assert merged.trials[-1].passage == 5
    assert merged.canonical_tokens == pytest.approx(result.canonical_tokens)


class Copier(torch.nn.Module):
    """Stands in for a model: `generate` gives fixed ids."""

    def __init__(self, rows: list[list[int]]) -> None:
        super().__init__()
        self.rows, self.device = rows, torch.device("cpu")

    def generate(self, input_ids: torch.Tensor, **options: object) -> object:
        width = max(map(len, self.rows))
        rows = [row + [1] * (width - len(row)) for row in self.rows]
        return type("Output", (), {"sequences": torch.cat([input_ids, torch.tensor(rows)], dim=1)})


def test_rates_add_up() -> None:
    tokenizer = fast()
    vocabulary = ByteVocabulary.of(tokenizer)
    passage = mark_words(TEXT, tokenizer, share=1.0, words=["lazy", "quick", "bones"])
    letters = [vocabulary.trie.with_bytes(bytes([byte]))[0] for byte in TEXT.encode()]
    rows = [vocabulary.encode(TEXT), letters, vocabulary.encode(TEXT.replace("lazy", "idle").replace("bones", "bone"))]
    result = ConsistencyProbe(format=BARE).run(Copier(rows), tokenizer, [passage] * 3)
    rates = result.rates()
    assert sum(rate.value for rate in rates.values()) == pytest.approx(1.0)
    assert [rates[name].count for name in ("unchanged", "replaced", "different")] == [4, 2, 3]
    assert result.aligned_share == 1.0
    assert sum(result.artefacts().values()) == 3
    assert result.shapes()["split"] == 3
    assert result.shapes()["1->1"] == 0
    assert result.canonical_outputs == pytest.approx(2 / 3)


def test_probe_refuses_bad_settings() -> None:
    for bad in (
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"share": 2.0},
        {"format": "essay"},
        {"intervention": "pray"},
        {"batch_size": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            ConsistencyProbe(**bad)
    tokenizer = fast()
    with pytest.raises(UnsupportedModelError):
        ConsistencyProbe().run(object(), tokenizer, [TEXT])
    with pytest.raises(ValueError, match="passages"):
        ConsistencyProbe().run(llama(len(tokenizer)), tokenizer, [])
    with pytest.raises(ValueError, match="chat template"):
        ConsistencyProbe().run(llama(len(tokenizer)), tokenizer, [TEXT])


@pytest.mark.parametrize("name", ["few_shot", "copy_edit"])
def test_prompts_hold_the_passage(name: str) -> None:
    tokenizer = fast()
    probe = ConsistencyProbe(format=name, temperature=0.0, max_new_tokens=3, share=0.2)
    result = probe.run(llama(len(tokenizer)), tokenizer, [TEXT])
    vocabulary = ByteVocabulary.of(tokenizer)
    for trial in result.trials:
        assert vocabulary.decode(trial.before).decode().strip() == trial.word
    with pytest.raises(ValueError, match="one line"):
        probe.run(llama(len(tokenizer)), tokenizer, [TEXT.replace(" over", "\nover")])


def test_instruction_uses_the_chat_template() -> None:
    tokenizer = fast()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"
    result = ConsistencyProbe(max_new_tokens=3).run(llama(len(tokenizer)), tokenizer, [TEXT])
    assert result.settings["format"] == "instruction"
    assert result.trials
