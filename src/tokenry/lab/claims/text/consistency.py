"""Phantom edits grow with the mass of other encodings, and masking the target turns them into edits.

Part A, exact facts: for the commonest words of a text, the number of encodings N(w), and vocabulary twins, of a BPE trained on
documentation and of real tokenizers. Part B: small models trained on transcripts of word replacements, a fraction q of whose
answer words is written with the last merge left out (the model of q=0.3 goes on from the one that has learned the task, that
of q=0.1 from the one of q=0.3); the probe with the paper's sampling (temperature 1, top-k 50, top-p 0.9), the same without
truncation, with the target masked, and with canonical output only. Part C: the probe on a real small model, as facts: it is
reported whether the model can follow the task at all.

An item is a group of transcripts, its outcome a share of its targets; a target that cannot be aligned counts as neither.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import random
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from tokenry.core.progress import Progress
from tokenry.hosts.text import ByteVocabulary
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.text.byteprobs import ByteLM
from tokenry.text.consistency import (
    STOP_WORDS,
    ConsistencyProbe,
    MarkedPassage,
    ProbeResult,
    count_encodings,
    encoding_mass,
    vocabulary_twins,
)

Facts = dict[str, float | str]
_WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": {"top_k": 0, "top_p": 1.0},
    "mask": {"intervention": "mask"},
    "canonical": {"intervention": "canonical"},
}
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_PLAIN = re.compile(r"[A-Z][A-Za-z0-9 ,;'-]+\.")
FOLLOWS = (0.5, 0.2)  # bars: aligned targets / all, replaced targets / aligned


class ConsistencyClaim(Claim):
    """Models trained on transcripts with more or fewer other encodings; masking and canonical output; facts on real ones."""

    system = "consistency"
    statement = (
        "A model whose training text holds other encodings of words writes phantom edits, more of them the more it holds; "
        "forbidding the target in every encoding turns them into replacements, forbidding other encodings only into copies"
    )
    metric = "share of targets with the outcome"
    contrasts = (
        Contrast("q=0: less than 2 % phantom edits", "clean_q0", "always", -0.02),
        Contrast("more phantom edits at q=0.1 than at q=0 (no truncation)", "phantom_q10_full", "phantom_q0_full"),
        Contrast("more phantom edits at q=0.3 than at q=0.1 (no truncation)", "phantom_q30_full", "phantom_q10_full"),
        Contrast("more phantom edits at q=0.3 than at q=0 (the paper's sampling)", "phantom_q30_plain", "phantom_q0_plain"),
        Contrast("masking leaves fewer phantom edits", "phantom_q30_plain", "phantom_q30_mask"),
        Contrast("masking: more replaced than before, and half the phantom edits", "replaced_q30_mask", "replaced_or_half"),
        Contrast("canonical output leaves fewer phantom edits", "phantom_q30_plain", "phantom_q30_canonical"),
        Contrast("masking replaces more than canonical output", "replaced_q30_mask", "replaced_q30_canonical"),
    )
    competence = Competence("replaced_q0_plain", 0.5)
    assets = ("smollm2",)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Steps (until the task is learned; at q=0.3; at the other q), items, transcripts per item; words; sentences."""
        smoke = {"steps": 12, "more": 6, "settle": 3, "items": 4, "group": 2, "hidden": 32, "words": 20, "sentences": 0}
        small = {
            "steps": 450,
            "more": 700,
            "settle": 200,
            "items": 40,
            "group": 10,
            "hidden": 128,
            "words": 500,
            "sentences": 24,
        }
        return {"smoke": smoke, "small": small, "paper": small | {"items": 100, "sentences": 1000}}[scale]

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Train the models of one seed and run the probe on them."""
        from tokenry.lab.beds.language.word_edits import train_editor

        s = self.settings(scale)
        tokenizer = _tokenizer()
        passages = _passages(s, tokenizer, seed)
        arms: dict[str, list[float]] = {}
        facts: Facts = {}
        train = partial(train_editor, tokenizer, hidden=s["hidden"], device=device)
        progress("training the editor", 0.0)
        base = train(noisy=0.0, steps=s["steps"], seed=seed, rate=1.5e-3)
        clean = train(noisy=0.0, steps=s["settle"], seed=seed + 1000, start=base, rate=1e-3)
        progress("training with other encodings", 0.2)
        most = train(noisy=0.3, steps=s["more"], seed=seed + 2000, start=base, rate=1.5e-3)
        progress("training with fewer", 0.55)
        some = train(noisy=0.1, steps=s["settle"], seed=seed + 3000, start=most, rate=1e-3)
        for i, (q, model) in enumerate(((0, clean), (10, some), (30, most))):
            progress(f"probing, q={q / 100}", 0.65 + 0.05 * i)
            for way, result in _probe_editor(model, passages, tokenizer, seed).items():
                name = f"q{q}_{way}"
                arms |= _arms(name, result, s["group"])
                facts |= _facts(name, result)
        arms["always"] = [1.0] * s["items"]
        arms["clean_q0"] = [1.0 - value for value in arms["phantom_q0_plain"]]
        pairs = zip(arms["replaced_q30_plain"], arms["phantom_q30_plain"], strict=True)
        arms["replaced_or_half"] = [replaced + phantom / 2 for replaced, phantom in pairs]
        if seed == 0:
            progress("tokenizers", 0.8)
            facts |= _tokenizer_facts(s["words"], scale)
        if s["sentences"]:
            progress("real model", 0.85)
            facts |= _real_model(s["sentences"], seed, device, scale)
        progress("done", 1.0)
        return Measurement(arms, facts)


def _tokenizer() -> Any:
    from tokenry.lab.beds.language.tiny_lm import train_tokenizer
    from tokenry.lab.beds.language.word_edits import sentences

    return train_tokenizer([f"{s.text} {s.edited} [ ] =>" for s in sentences(2000, 1234)], 1000)


def _passages(s: dict[str, Any], tokenizer: Any, seed: int) -> list[MarkedPassage]:
    from tokenry.lab.beds.language.word_edits import marked, sentences

    return [marked(sentence, tokenizer) for sentence in sentences(s["items"] * s["group"], 50_000 + seed)]


def _probe_editor(model: Any, passages: Sequence[MarkedPassage], tokenizer: Any, seed: int) -> dict[str, ProbeResult]:
    """A model, probed in every way."""
    from tokenry.lab.beds.language.word_edits import TRANSCRIPT

    probe = ConsistencyProbe(format=TRANSCRIPT, batch_size=50, max_new_tokens=60, seed=seed)
    return {way: replace(probe, **options).run(model, tokenizer, passages) for way, options in _WAYS.items()}


def _arms(name: str, result: ProbeResult, group: int) -> dict[str, list[float]]:
    arms = {}
    for arm, outcome in (("phantom", "different"), ("replaced", "replaced")):
        hits = np.array([trial.outcome == outcome for trial in result.trials], dtype=np.float64)
        arms[f"{arm}_{name}"] = hits.reshape(-1, group).mean(axis=1).tolist()
    return arms


def _facts(name: str, result: ProbeResult) -> Facts:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rates = result.rates()
    found: Facts = {f"{name}: aligned": round(result.aligned_share, 4), f"{name}: targets": float(len(result.trials))}
    for outcome, rate in rates.items():
        text = f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]" if rate.trials else "no trial"
        found[f"{name}: {outcome}"] = text
    types = {kind: count for kind, count in result.artefacts().items() if count}
    found[f"{name}: types"] = ", ".join(f"{kind} {count}" for kind, count in types.items()) or "none"
    found[f"{name}: shapes"] = ", ".join(f"{shape} {count}" for shape, count in result.shapes().items())
    if not math.isnan(result.canonical_tokens):
        found[f"{name}: canonical tokens"] = round(result.canonical_tokens, 4)
    return found


def _tokenizer_facts(number: int, scale: Scale) -> Facts:
    """Part A: a BPE trained on documentation, and real tokenizers that are at hand."""
    from tokenry.lab.beds.language.tiny_lm import train_tokenizer

    topics = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    words = _common_words(topics, number)
    tokenizers: dict[str, Any] = {"BPE 3000": train_tokenizer(topics, 800 if scale == "smoke" else 3000)}
    if scale != "smoke":
        from tokenry.lab.sources.models import load_real_tokenizer, real_tokenizers

        wanted = ("gpt2", "llama3", "qwen3", "gemma3", "smollm2", "o200k")
        tokenizers |= {name: load_real_tokenizer(name) for name in real_tokenizers(here=True) if name in wanted}
    found: Facts = {}
    for name, tokenizer in tokenizers.items():
        vocabulary = ByteVocabulary.of(tokenizer)
        counts = [count_encodings(" " + word, vocabulary) for word in words]
        found[f"{name}: median encodings of a word"] = float(np.median(counts))
        found[f"{name}: words with more than one encoding"] = float(np.mean([count > 1 for count in counts]))
        whole = [all(vocabulary.trie.with_bytes(lead + word.encode()) for lead in (b"", b" ")) for word in words]
        found[f"{name}: words with both forms as one id"] = float(np.mean(whole))
        twins = vocabulary_twins(vocabulary).counts()
        found[f"{name}: pairs of ids"] = ", ".join(f"{kind} {count}" for kind, count in twins.items())
    return found


def _common_words(texts: Sequence[str], number: int) -> list[str]:
    counts = Counter(word for text in texts for word in re.findall(r"[A-Za-z]{2,}", text))
    return [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:number]]


def plain_sentences(texts: Sequence[str], number: int, seed: int) -> list[str]:
    """Drawn sentences of 12 to 22 words without markup."""
    found = {
        sentence
        for text in texts
        for sentence in _SENTENCE.split(" ".join(text.split()))
        if 12 <= len(sentence.split()) <= 22 and _PLAIN.fullmatch(sentence) and _has_target(sentence)
    }
    return random.Random(seed).sample(sorted(found), min(number, len(found)))


def _has_target(sentence: str) -> bool:
    return any(word.isalpha() and word.lower() not in STOP_WORDS for word in sentence.rstrip(".").split()[1:])


def _real_model(number: int, seed: int, device: str, scale: Scale) -> Facts:
    """Part C: the probe on SmolLM2-135M (small) or the paper's Llama-3.2-1B, plain and masked, and whether it can follow."""
    if scale == "paper":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        name, how = "meta-llama/Llama-3.2-1B-Instruct", "instruction"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name, device_map=device), AutoTokenizer.from_pretrained(name)
    else:
        from tokenry.lab.sources.models import smollm2

        (model, tokenizer), how = smollm2(device=device), "few_shot"
    from tokenry.lab.sources.text import domain_corpus

    texts = plain_sentences(domain_corpus("general") + domain_corpus("email"), number, seed)
    found: Facts = {}
    probe = ConsistencyProbe(format=how, batch_size=24, seed=seed, on_empty="release")
    for way in ("plain", "mask"):
        result = replace(probe, **_WAYS[way]).run(model, tokenizer, texts)
        found |= _facts(f"real {way}", result)
        if way == "plain":
            edits = sum(trial.outcome == "replaced" for trial in result.trials)
            able = result.aligned_share >= FOLLOWS[0] and edits >= FOLLOWS[1] * len(result.aligned)
            found["real: follows the task"] = "yes" if able else "no"
    if seed == 0:
        begin = tokenizer.convert_tokens_to_ids("<|endoftext|>") if scale != "paper" else None
        lm = ByteLM(model, tokenizer, bos_token_id=begin)
        for word in (" Saturday", " rights", " unbelievable"):
            mass = encoding_mass(lm, word, context="The meeting was moved, and then they talked about")
            found[f"real: non-canonical mass of{word}"] = f"{mass.noncanonical_share:.2e} of {mass.encodings} encodings"
    return found


CLAIM = ConsistencyClaim()
