"""Cutting a BPE vocabulary and growing it into superwords: all else that a tokenizer has is carried over, or it is refused."""

from __future__ import annotations

import json

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, processors

from tests.text.tokenizers import LAYOUTS, TEXT, make
from tokenry import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary
from tokenry.testing.tokenizers import check_tokenizer
from tokenry.text.bpe import bpe_parts, train_bpe, truncate
from tokenry.text.premium import extend_superword


def dressed() -> Tokenizer:
    """A byte-level tokenizer with all that can be lost: normaliser, added tokens before and behind the vocabulary, template, ..."""
    tokenizer = train_bpe(TEXT, 420, special_tokens=["<s>", "</s>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken("<|late|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("the dog", single_word=True)])
    late = tokenizer.token_to_id("<|late|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|late|>", special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("<|late|>", late)]
    )
    tokenizer.enable_padding(pad_id=late, pad_token="<|late|>")
    definition = json.loads(tokenizer.to_str())
    definition["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(definition))


def carried(tokenizer: Tokenizer) -> dict:
    definition = json.loads(tokenizer.to_str())
    model = {key: value for key, value in definition.pop("model").items() if key not in ("vocab", "merges")}
    added = [{key: value for key, value in token.items() if key != "id"} for token in definition.pop("added_tokens")]
    padding = definition.pop("padding")
    return {
        "model": model, "added": added, "normalizer": definition["normalizer"], "decoder": definition["decoder"],
        "template": definition["post_processor"]["single"], "padding": padding["pad_token"],
    }  # fmt: skip


@pytest.mark.parametrize("shorten", [True, False])
def test_everything_is_carried_over(shorten):
    tokenizer = dressed()
    made = truncate(tokenizer, 300) if shorten else extend_superword(tokenizer, TEXT, 520)
    assert carried(made) == carried(tokenizer)
    size, late = len(bpe_parts(made)[0]), made.token_to_id("<|late|>")
    assert size == 300 if shorten else 420 < size <= 520
    assert late == size
    assert made.encode("fox").ids[-1] == late
    assert made.padding["pad_id"] == late
    assert made.get_added_tokens_decoder()[made.token_to_id("the dog")].single_word
    made.no_padding()
    text = "a <think> the dog, the dogs \u00e9"
    assert made.decode(made.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert made.token_to_id("<think>") in made.encode(text).ids
    if shorten:  # the same pieces split alike: the long ones fall apart into those that are left
        assert bpe_parts(made)[1] == bpe_parts(tokenizer)[1][: len(bpe_parts(made)[1])]
    check_tokenizer(made, normalizer=lambda text: normalizers.NFC().normalize_str(text))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cut_vocabulary_still_encodes_or_is_refused(layout):
    tokenizer = make(layout)
    if layout == "unigram":
        with pytest.raises(UnsupportedModelError, match="Unigram"):
            truncate(tokenizer, tokenizer.get_vocab_size(with_added_tokens=False) - 40)
        return
    size = len(bpe_parts(tokenizer)[0])
    made = truncate(tokenizer, size - 40)
    for text in TEXT[:3]:
        ids = made.encode(text, add_special_tokens=False).ids
        assert made.decode(ids, skip_special_tokens=False) == tokenizer.decode(
            tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False
        )
    assert truncate(tokenizer, size).to_str() == tokenizer.to_str()


def test_characters_behind_the_merges_are_not_dropped():
    """As in the vocabularies of Llama 2: bytes, merges, and the single characters last."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "th",
        "the",
        "\u2581the",
        "t",
        "h",
        "e",
        "\u2581",
    ]
    definition = json.loads(make("sentencepiece").to_str())
    definition["model"] |= {
        "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": [["t", "h"], ["th", "e"], ["\u2581", "the"]],
    }  # fmt: skip
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    with pytest.raises(UnsupportedModelError, match=r"pieces that no merge makes stand at its end .* would be lost"):
        truncate(tokenizer, 263)
    with pytest.raises(UnsupportedModelError, match="its pieces are text and not bytes"):
        extend_superword(tokenizer, TEXT, 300)
    with pytest.raises(UnsupportedModelError, match="Unigram"):
        truncate(make("unigram"), 100)


def test_superwords_do_not_reach_over_added_tokens():
    base = train_bpe(TEXT, 400)
    base.add_tokens(["over"])
    made = extend_superword(base, ["the fox over the dog over the fox"] * 40, 440)
    pieces = [piece for piece in ByteVocabulary.of(made).pieces if piece]
    assert any(b"the fox" in piece for piece in pieces)
    assert not any(b"over" in piece and piece != b"over" for piece in pieces if b" " in piece.strip())
