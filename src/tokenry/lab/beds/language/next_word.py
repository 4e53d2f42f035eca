"""Testbed for units of language modelling: exact next-word prediction with characters, bytes, subwords, words or pooled words.

One text, split contiguously; every arm sees it in its own units and is asked for the same words. A word is right when every
unit of it, its end included, is the arg-max given the units before it: that is exactly when greedy spelling gives the word.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice, check_int
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded
from tokenry.text.wordpool import ByteUnits, CharUnits, FlatLM, FlatLMConfig, WordPoolConfig, WordPoolForCausalLM, WordSplitter
from tokenry.text.wordpool.data import contiguous_split

KINDS = ("char", "byte", "subword", "word", "pooled")
_HEADS = 4
_END = "\u2581"


@dataclass(frozen=True)
class WordCorpus:
    """Training and test words of one text, lower-cased, punctuation apart, cut at `max_word` characters."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    max_word: int = 12

    @classmethod
    def of(cls, text: str, *, characters: int, max_word: int = 12, test_share: float = 0.2) -> WordCorpus:
        """The first `characters` of a text."""
        words = [w[:max_word] for w in WordSplitter(lower=True, max_word=max_word).words(text[:characters])]
        train, test = contiguous_split(words, test_share)
        return cls(tuple(train), tuple(test), max_word)

    @cached_property
    def counts(self) -> Counter[str]:
        """Occurrences in the training part."""
        return Counter(self.train)

    def items(self, count: int, margin: int, *, rare: bool, seed: int) -> list[int]:
        """Positions of `count` test words with at least `margin` words before them; `rare`: seen 1 to 5 times in training."""
        places = [
            i for i in range(margin, len(self.test)) if not rare or 1 <= self.counts[self.test[i]] <= 5
        ]  # fmt: skip
        if len(places) < count:
            raise ValueError(f"count must be at most {len(places)} (rare={rare}), got {count}")
        order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
        return sorted(places[i] for i in order[:count].tolist())


@dataclass(frozen=True)
class UnitCoder:
    """Words in the units of one arm; `size` ids. A word of a flat arm ends with its end (space, suffix of the last piece)."""

    kind: str
    encode: Callable[[str], list[int]]
    size: int


def unit_coder(kind: str, corpus: WordCorpus, vocabulary: int) -> UnitCoder:
    """Units of an arm, learnt from the training words; `vocabulary` sizes subwords and whole words."""
    check_choice("kind", kind, KINDS)
    if kind == "pooled":
        chars = CharUnits.build("".join(corpus.counts))
        return UnitCoder(kind, chars.encode, chars.size)
    if kind in ("char", "byte"):
        units: Any = CharUnits.build("".join(corpus.counts)) if kind == "char" else ByteUnits()
        return UnitCoder(kind, lambda word: [*units.encode(word), 0], units.size)
    if kind == "word":
        index = {w: i + 1 for i, (w, _) in enumerate(corpus.counts.most_common(vocabulary - 1))}
        return UnitCoder(kind, lambda word: [index.get(word, 0)], vocabulary)
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    # The end of a word is a character of its own: with `end_of_word_suffix` the trainer numbers pieces in any order.
    bpe: Any = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<unk>"], show_progress=False)
    bpe.train_from_iterator([" ".join(word + _END for word in corpus.train)], trainer)
    known: dict[str, list[int]] = {}

    def encode(word: str) -> list[int]:
        if word not in known:
            known[word] = bpe.encode(word + _END).ids
        return known[word]

    return UnitCoder(kind, encode, bpe.get_vocab_size())


@dataclass(frozen=True)
class Sizes:
    """Sizes of an arm: width, blocks, window in its own units (words for a pooled model), batch, steps."""

    width: int
    layers: int
    window: int
    batch: int
    steps: int
    prefix: int = 1
    learning_rate: float = 2e-3


def build(coder: UnitCoder, sizes: Sizes, canvas: int, seed: int) -> nn.Module:
    """An untrained arm."""
    with seeded(seed):
        if coder.kind == "pooled":
            return WordPoolForCausalLM(
                WordPoolConfig(
                    vocab_size=coder.size, num_prefix=sizes.prefix, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
                    num_attention_heads=_HEADS, word_heads=_HEADS, word_intermediate_size=4 * sizes.width,
                    block_size=sizes.window, canvas_size=canvas, dropout=0.0,
                )
            )  # fmt: skip
        return FlatLM(
            FlatLMConfig(
                vocab_size=coder.size, hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=_HEADS,
                block_size=sizes.window, dropout=0.0,
            )
        )  # fmt: skip


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def matched_width(coder: UnitCoder, layers: int, window: int, target: int) -> int:
    """The width (a multiple of 4) whose flat model has the number of parameters nearest to `target`."""

    def count(width: int) -> int:
        return layers * (12 * width * width + 13 * width) + (2 * coder.size + window + 2) * width

    return min(range(_HEADS, 1024, _HEADS), key=lambda width: abs(count(width) - target))


def train(model: nn.Module, coder: UnitCoder, words: Sequence[str], sizes: Sizes, seed: int, device: str = "cpu") -> None:
    """AdamW (betas 0.9 and 0.95, weight decay 0.1, clip 1.0), warm-up and linear decay; random windows of training words."""
    check_int("steps", sizes.steps, 0)
    model.to(device)
    batches = _pooled_batches if coder.kind == "pooled" else _flat_batches
    draw = batches(coder, words, sizes, torch.Generator().manual_seed(seed))
    plan = Plan(
        steps=sizes.steps, learning_rate=sizes.learning_rate, betas=(0.9, 0.95), weight_decay=0.1,
        warmup=max(1, sizes.steps // 20), decay="linear",
    )  # fmt: skip
    descend(model, lambda step: model(**{name: x.to(device) for name, x in draw().items()}).loss, plan)
    model.eval()


def _flat_batches(
    coder: UnitCoder, words: Sequence[str], sizes: Sizes, generator: torch.Generator
) -> Callable[[], dict[str, Tensor]]:
    stream = torch.tensor([unit for word in words for unit in coder.encode(word)])

    def draw() -> dict[str, Tensor]:
        starts = torch.randint(len(stream) - sizes.window + 1, (sizes.batch, 1), generator=generator)
        ids = stream[starts + torch.arange(sizes.window)]
        return {"input_ids": ids, "labels": ids}

    return draw


def pooled_tensor(coder: UnitCoder, words: Sequence[str], canvas: int) -> Tensor:
    """Units of every word, padded to the canvas: [n, canvas]."""
    index = {word: i for i, word in enumerate(dict.fromkeys(words))}
    table = torch.zeros(len(index), canvas, dtype=torch.long)
    for word, i in index.items():
        units = coder.encode(word)
        table[i, : len(units)] = torch.tensor(units)
    return table[torch.tensor([index[word] for word in words])]


def _pooled_batches(
    coder: UnitCoder, words: Sequence[str], sizes: Sizes, generator: torch.Generator
) -> Callable[[], dict[str, Tensor]]:
    table = pooled_tensor(coder, words, max(len(w) for w in words))

    def draw() -> dict[str, Tensor]:
        starts = torch.randint(len(table) - sizes.window + 1, (sizes.batch, 1), generator=generator)
        units = table[starts + torch.arange(sizes.window)]
        return {"input_units": units, "labels": units}

    return draw


@dataclass(frozen=True)
class Prediction:
    """Per item: whether greedy spelling gives the word, its bits; bits per character over all items (ends of words count)."""

    right: list[float]
    bits: list[float]
    bits_per_character: float


@torch.no_grad()
def predict(
    model: nn.Module, coder: UnitCoder, corpus: WordCorpus, places: Sequence[int], window: int, *, chunk: int = 64
) -> Prediction:
    """Predict the test words at `places` from the window before them."""
    right: list[float] = []
    bits: list[float] = []
    for start in range(0, len(places), chunk):
        some = places[start : start + chunk]
        ask = _predict_pooled if coder.kind == "pooled" else _predict_flat
        hits, spent = ask(model, coder, corpus, some, window)
        right += hits.float().tolist()
        bits += (-spent / math.log(2)).tolist()
    characters = sum(len(corpus.test[i]) + 1 for i in places)
    return Prediction(right, bits, sum(bits) / characters)


def _predict_pooled(
    model: Any, coder: UnitCoder, corpus: WordCorpus, places: Sequence[int], window: int
) -> tuple[Tensor, Tensor]:
    """The window holds the asked word too, as in training: window - 1 words of context."""
    device = next(model.parameters()).device
    context = torch.stack([pooled_tensor(coder, corpus.test[i - window + 1 : i], corpus.max_word) for i in places]).to(device)
    asked = pooled_tensor(coder, [corpus.test[i] for i in places], corpus.max_word).to(device)
    hits = (model.generate_words(context).units[:, 0] == asked).all(dim=1)
    return hits, model.score_words(context, candidates=asked[:, None])[:, 0]


def _predict_flat(
    model: Any, coder: UnitCoder, corpus: WordCorpus, places: Sequence[int], window: int
) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    rows, asked = [], []
    for i in places:
        target = coder.encode(corpus.test[i])
        context: list[int] = []
        back = i - 1
        while back >= 0 and len(context) + len(target) < window:
            context = coder.encode(corpus.test[back]) + context
            back -= 1
        rows.append((context + target)[-window:])
        asked.append(len(target))
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    log_probs = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    position = torch.arange(1, longest, device=device)
    counted = position >= longest - torch.tensor(asked, device=device)[:, None]
    hit = (log_probs.argmax(-1) == ids[:, 1:]) | ~counted
    spent = log_probs.gather(-1, ids[:, 1:, None])[..., 0].masked_fill(~counted, 0.0).sum(1)
    known = torch.ones(len(places), dtype=torch.bool, device=device)
    if coder.kind == "word":
        known = ids[:, -1] != 0  # the id of unknown words spells nothing
    return hit.all(dim=1) & known, spent
