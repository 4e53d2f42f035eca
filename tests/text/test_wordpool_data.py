"""Word pooling from text to training: units, splitter, windows, collator, recipe."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.seeding import seeded
from tokenry.text.wordpool import (
    ByteUnits,
    CharUnits,
    FlatLM,
    FlatLMConfig,
    WordPoolCollator,
    WordPoolConfig,
    WordPoolForCausalLM,
    WordPoolTrainer,
    WordSplitter,
    contiguous_split,
    pad_words,
    word_windows,
    wordpool_training_arguments,
)

text_of_any_kind = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@settings(max_examples=60, deadline=None)
@given(text=text_of_any_kind, overflow=st.sampled_from(["raise", "chunk"]))
@pytest.mark.filterwarnings("ignore:.*longer than max_word")
def test_lossless_splitting_gives_the_text_back(text, overflow):
    splitter = WordSplitter(max_word=300 if overflow == "raise" else 5, overflow=overflow, lossless=True)
    words = splitter.encode(text)
    assert splitter.decode(words) == text
    assert all(words)


@settings(max_examples=40, deadline=None)
@given(text=text_of_any_kind)
def test_plain_splitting_isolates_punctuation_and_has_no_empty_words(text):
    words = WordSplitter(max_word=300).words(text)
    assert all(words)
    assert "".join(words) == re.sub(r"\s", "", text)


def test_worked_examples():
    splitter = WordSplitter(units=CharUnits.build("abcdefghijklmnopqrstuvwxyz',.A"), lower=True, max_word=4)
    assert splitter.words("It's  a\n\ncab, A3.") == ["it", "'", "s", "a", "cab", ",", "a3", "."]
    assert splitter.words("   ") == splitter.words("") == []
    assert WordSplitter(lossless=True).words("a  b, c\n") == ["a", "  b", ",", " c", "\n"]
    assert ByteUnits().encode("a\x00") == [98, 1]
    assert ByteUnits().decode([98, 1, 0, 99]) == "a\x00"
    units = CharUnits.build("ba")
    assert (units.size, units.encode("abx"), units.decode([2, 3, 1, 0, 2])) == (4, [2, 3, 1], "ab�")


def test_long_words_are_never_cut_silently():
    with pytest.raises(ValueError, match="longer than max_word=4"):
        WordSplitter(max_word=4).encode("ab abcdef")
    with pytest.warns(UserWarning, match="1 words longer than max_word=4 units were cut"):
        assert [len(w) for w in WordSplitter(max_word=4, overflow="truncate").encode("ab abcdef")] == [2, 4]
    giant = "天地玄黃宇宙洪荒"  # no spaces: one word of 24 bytes
    with pytest.warns(UserWarning, match="split into several words"):
        pieces = WordSplitter(max_word=9, overflow="chunk", lossless=True).encode(giant)
    assert [len(w) for w in pieces] == [9, 9, 6]


def test_bad_text_options_are_refused():
    for options in (
        {"max_word": 0},
        {"overflow": "drop"},
        {"lossless": True, "lower": True},
        {"lossless": True, "overflow": "truncate"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            WordSplitter(**options)
    with pytest.raises(ValueError, match="valid Unicode"):
        WordSplitter().encode("\ud800")
    with pytest.raises(TypeError, match="text"):
        WordSplitter().encode(b"abc")
    with pytest.raises(ValueError, match="alphabet"):
        CharUnits(("a", "a"))
    with pytest.raises(ValueError, match="at least one character"):
        CharUnits.build("")
    with pytest.raises(ValueError, match="units"):
        ByteUnits().decode([257])


def test_the_split_is_contiguous_and_disjoint():
    train, test = contiguous_split(list(range(10)), 0.2)
    assert (train, test) == (list(range(8)), [8, 9])
    for items, share in (([], 0.2), ([1], 0.5), ([1, 2], 1.0), ([1, 2, 3], 0.01)):
        with pytest.raises(ValueError):
            contiguous_split(items, share)


def test_windows_cover_the_text_and_the_collator_pads_them():
    words = [[i + 1] * (i % 3 + 1) for i in range(9)]
    windows = word_windows(words, 4)
    assert [len(w["words"]) for w in windows] == [4, 4]  # the ninth word alone has nothing to predict
    assert [w for window in word_windows(words[:8], 4) for w in window["words"]] == words[:8]
    batch = WordPoolCollator(canvas_size=5)([windows[0], {"words": words[4:6]}])
    assert batch["input_units"].shape == (2, 4, 4)  # the longest word and its end
    assert batch["word_lengths"].tolist() == [[1, 2, 3, 1], [2, 3, 0, 0]]
    assert batch["word_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    assert torch.equal(batch["labels"], batch["input_units"])
    assert pad_words([words[:4]], 3)[0].shape == (1, 4, 3)


@pytest.mark.parametrize("windows", [[], [[]], [[[]]], [[[1, 2, 3, 4]]], [[[1, 0, 2]]]])
def test_bad_windows_are_refused(windows):
    with pytest.raises(ValueError, match="w"):
        pad_words(windows, 3)


@seeded(0)
def test_the_recipe_trains_and_resumes_from_a_checkpoint(tmp_path):
    pytest.importorskip("accelerate")
    splitter = WordSplitter(max_word=8)
    data = word_windows(splitter.encode("the cat sat on the mat and the dog sat on the log . " * 8), 8)
    model = WordPoolForCausalLM(
        WordPoolConfig(hidden_size=16, num_prefix=1, num_hidden_layers=1, num_attention_heads=2, word_layers=1, word_heads=2,
                       word_intermediate_size=16, block_size=8, canvas_size=8)
    )  # fmt: skip
    arguments = wordpool_training_arguments(str(tmp_path), max_steps=12, learning_rate=3e-3, use_cpu=True, save_steps=6, logging_steps=1,
                                            disable_tqdm=True)  # fmt: skip
    assert (arguments.adam_beta2, arguments.weight_decay, arguments.max_grad_norm, arguments.per_device_train_batch_size) == (
        0.95,
        0.1,
        1.0,
        2,
    )
    trainer = WordPoolTrainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data[:3], data_collator=WordPoolCollator(8)
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    decayed = {id(p) for p in trainer.optimizer.param_groups[0]["params"]}
    assert id(model.head.weight) in decayed
    assert id(model.embedding.weight) not in decayed
    assert trainer.predict(data[:3]).predictions.shape[0] == 3
    again = WordPoolForCausalLM.from_pretrained(tmp_path / "checkpoint-12").eval()
    batch = WordPoolCollator(8)(data[:2])
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)


def test_the_flat_baseline_has_positions_unless_it_is_the_released_one():
    @seeded(0)
    def made(quirks):
        model = FlatLM(
            FlatLMConfig(
                vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, block_size=6, released_quirks=quirks
            )
        ).eval()
        if model.position_code is not None:
            torch.nn.init.normal_(model.position_code)
        return model

    ids = torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    assert torch.allclose(made(True)(ids).logits[:, -1], made(True)(swapped).logits[:, -1], atol=1e-6)  # a bag of units
    assert not torch.allclose(made(False)(ids).logits[:, -1], made(False)(swapped).logits[:, -1])
    with pytest.raises(ValueError, match="block_size"):
        made(False)(torch.ones(1, 7).long())
