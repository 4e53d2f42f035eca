"""A small model that replaces marked words, trained on transcripts of which a part is written in other tokens.

A transcript is ``text with a[ word] marked`` => ``the same text with a synonym``. An editor is not perfect: in some transcripts
the word is copied. A fraction q of the words of the answers is written with the last merge left out (BPE dropout of one
merge), so that a model trained on them gives another encoding of each word some probability.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from tokenry.core.descent import Plan, descend
from tokenry.core.progress import Progress
from tokenry.lab.beds.language.tiny_lm import small_llama
from tokenry.text.consistency import MarkedPassage, PromptFormat, mark_words
from tokenry.text.consistency.marking import bracketed
from tokenry.text.consistency.spans import Word

Merges = tuple[dict[tuple[str, str], int], dict[str, int]]

_PAIRS = """
big large; small little; quick fast; happy glad; angry furious; begin start; finish complete; buy purchase; help assist; show
display; answer reply; house cottage; road street; boat ship; stone rock; forest woods; doctor surgeon; child infant; mother
parent; teacher tutor; picture image; present gift; money cash; journey trip; garden park; bread toast; dinner supper; jacket
coat; window pane; trousers pants; autumn fall; clever smart; silent quiet; strange odd; ancient old; rich wealthy; brave bold;
gather collect; choose select; repair mend
"""
PAIRS = tuple((pair.split()[0], pair.split()[1]) for pair in _PAIRS.replace("\n", " ").split(";"))
_ADJECTIVES = frozenset(["big", "small", "quick", "happy", "angry", "clever", "silent", "strange", "ancient", "rich", "brave"])
_VERBS = frozenset(["begin", "finish", "buy", "help", "show", "gather", "choose", "repair"])
_FRAMES = {
    "adjective": (
        "The {n} found a {w} bird near the {p} on {d}.", "On {d} the {n} met a {w} man at the {p}.",
        "Every {n} knows that a {w} dog lives by the {p}.", "A {w} horse stood near the {p} when the {n} came on {d}.",
    ),
    "verb": (
        "The {n} will {w} the work near the {p} on {d}.", "On {d} the {n} could {w} it at the {p}.",
        "They wanted to {w} everything before the {n} left the {p}.", "Some {n} may {w} the rest at the {p} on {d}.",
    ),
    "noun": (
        "The {n} saw the {w} near the {p} on {d}.", "On {d} the {n} lost a {w} at the {p}.",
        "Nobody knew that the {w} of the {n} was at the {p}.", "The {w} was far from the {p} when the {n} came on {d}.",
    ),
}  # fmt: skip
_PEOPLE = ("farmer", "sailor", "writer", "soldier", "painter", "singer", "baker", "judge")
_PLACES = ("river", "market", "station", "church", "school", "harbour", "bridge", "castle")
_DAYS = ("Monday", "Tuesday", "Friday", "Saturday", "Sunday")
_ARROW = " =>"


@dataclass(frozen=True)
class Sentence:
    """A sentence, the word to be replaced, and the sentence with its synonym."""

    text: str
    word: str
    edited: str


def sentences(count: int, seed: int) -> list[Sentence]:
    """Drawn sentences; either word of a pair may be the one to be replaced."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        pair = draw.choice(PAIRS)
        kind = "adjective" if pair[0] in _ADJECTIVES else "verb" if pair[0] in _VERBS else "noun"
        word, other = draw.sample(pair, 2)
        names = {"n": draw.choice(_PEOPLE), "p": draw.choice(_PLACES), "d": draw.choice(_DAYS)}
        frame = draw.choice(_FRAMES[kind])
        found.append(Sentence(frame.format(w=word, **names), word, frame.format(w=other, **names)))
    return found


def marked(sentence: Sentence, tokenizer: Any) -> MarkedPassage:
    """The sentence with its word marked."""
    return mark_words(sentence.text, tokenizer, share=1.0, words=[sentence.word], stop_words=())


def _ask(passage: MarkedPassage, tokenizer: Any) -> str:
    return passage.marked + _ARROW


TRANSCRIPT = PromptFormat("transcript", _ask)


def segmentation(text: str, merges: Merges, *, all_merges: bool = True) -> list[int]:
    """BPE of a word with all its merges, or with the last one left out (BPE dropout of that merge alone)."""
    ranks, vocab = merges
    parts = list(text.replace(" ", "\u2581"))
    before = parts
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs:
            return [vocab[part] for part in (parts if all_merges else before)]
        _, place = min(pairs)
        before = parts
        parts = [*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]]


def _segmented(
    text: str, merges: Merges, noisy: float, draw: random.Random, known: dict[tuple[str, bool], list[int]]
) -> list[int]:
    """Ids of `text`, a fraction `noisy` of its words (with the space before them) in other tokens; `known` is a cache."""
    found: list[int] = []
    for word in text.split(" ")[1:]:
        key = (word, draw.random() >= noisy)
        if key not in known:
            known[key] = segmentation(" " + word, merges, all_merges=key[1])
        found += known[key]
    return found


def merges_of(tokenizer: Any) -> Merges:
    """Ranks of the merges and the ids of the pieces of a BPE tokenizer."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return {(a, b): rank for rank, (a, b) in enumerate(pairs)}, model["vocab"]


def train_editor(
    tokenizer: Any,
    *,
    noisy: float,
    steps: int,
    seed: int,
    copied: float = 0.3,
    hidden: int = 64,
    layers: int = 2,
    batch: int = 32,
    rate: float = 2e-3,
    start: LlamaForCausalLM | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> LlamaForCausalLM:
    """A two-layer Llama trained on fresh transcripts in every step; loss on the answer.

    `noisy`: fraction q of the words of the answers whose last merge is left out. `copied`: share of transcripts whose word
    stays. `start`: a trained model to go on from (it is copied); otherwise a fresh one of `hidden` and `layers`.
    """
    end = tokenizer.eos_token_id
    fresh = small_llama(tokenizer, seed, hidden=hidden, layers=layers, pad_token_id=end) if start is None else start
    model = copy.deepcopy(fresh)
    cast(torch.nn.Module, model).to(device)
    draw, merges = random.Random(seed), merges_of(tokenizer)
    drawn = sentences(steps * batch, seed)
    known: dict[tuple[str, bool], list[int]] = {}

    def loss_of(step: int) -> torch.Tensor:
        rows = []
        for sentence in drawn[step * batch : (step + 1) * batch]:
            answer = " " + (sentence.text if draw.random() < copied else sentence.edited)
            rows.append((_prompt_ids(sentence, tokenizer), _segmented(answer, merges, noisy, draw, known)))
        ids, labels = (x.to(device) for x in _padded(rows, tokenizer.eos_token_id))
        logits = model(ids[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)

    # The cycle's last step, whose rate is next to nothing, is left out.
    plan = Plan(steps=steps + 1, learning_rate=rate, betas=(0.9, 0.95), warmup=0.1, decay="one_cycle")
    descend(model, loss_of, plan, until=steps, log_every=100, progress=progress)
    return model.eval()


def _prompt_ids(sentence: Sentence, tokenizer: Any) -> list[int]:
    start = sentence.text.index(" " + sentence.word) + 1
    word = Word(sentence.word, start, start + len(sentence.word))
    text = bracketed(sentence.text, [word], "around_space")[0] + _ARROW
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _padded(rows: Sequence[tuple[list[int], list[int]]], end: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) + len(answer) + 1 for prompt, answer in rows)
    ids = torch.full((len(rows), width), end)
    labels = torch.full((len(rows), width), -100)
    for r, (prompt, answer) in enumerate(rows):
        whole = [*prompt, *answer, end]
        ids[r, : len(whole)] = torch.tensor(whole)
        labels[r, len(prompt) : len(whole)] = ids[r, len(prompt) : len(whole)]
    return ids, labels
