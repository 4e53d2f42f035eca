"""Exact byte probabilities: prompts cut inside words, code filled in, and two models with different vocabularies mixed.

Items are pairs of passages, one of prose and one of code. Every passage is cut at random bytes inside words; the true next byte
is scored under the exact distribution, under the tokenizer's own encoding of the prompt (naive) and under token healing. For
filling in, the lines after the passage stand before it as plain text (the model was not trained on fill-in markers), the
passage ends inside an identifier, and the greedy continuation must spell the rest of it. For the mixture, the domain in which
it is asked to win is chosen on other passages than those it is judged on.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.core.progress import Progress
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.text.byteprobs import ByteEnsemble, ByteLM, healed_next_byte, naive_next_byte

_WORD = re.compile(r"[A-Za-z]{4,}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{5,}")
_FLOOR = 1e-30


@dataclass(frozen=True)
class Models:
    """The two byte models and texts of the two domains."""

    first: ByteLM
    second: ByteLM
    texts: dict[str, list[str]]


def _tiny(seed: int, steps: int, device: str) -> Models:
    import pydoc_data.topics

    from tokenry.lab.beds.language.tiny_lm import train_lm, train_tokenizer

    topics = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    cut = int(0.9 * len(topics))
    lms = []
    for offset, size in enumerate((480, 640)):
        tokenizer = train_tokenizer(topics[:cut], size)
        lms.append(ByteLM(train_lm(topics[:cut], tokenizer, steps=steps, seed=seed + offset, device=device), tokenizer))
    return Models(lms[0], lms[1], {"prose": topics[cut:], "code": topics[cut:]})


def _real(scale: Scale, device: str) -> Models:
    from tokenry.lab.sources.models import gemma3, smollm2
    from tokenry.lab.sources.text import domain_corpus

    texts = {"prose": domain_corpus("email") + domain_corpus("technical"), "code": domain_corpus("code")}
    if scale == "paper":
        from transformers import AutoModelForCausalLM, AutoTokenizer

        names = ("mistralai/Mistral-7B-v0.1", "01-ai/Yi-1.5-6B")
        loaded = [
            (AutoModelForCausalLM.from_pretrained(n, dtype=torch.bfloat16, device_map=device), AutoTokenizer.from_pretrained(n))
            for n in names
        ]
    else:
        loaded = [smollm2(device=device), gemma3(device=device)]
    # Documents of SmolLM2's pre-training begin behind its end-of-text token; its chat tokenizer names another one.
    begin = (None if scale == "paper" else loaded[0][1].convert_tokens_to_ids("<|endoftext|>"), None)
    first, second = (ByteLM(model.eval(), tok, bos_token_id=bos) for (model, tok), bos in zip(loaded, begin, strict=True))
    return Models(first, second, texts)


def _passages(texts: Sequence[str], count: int, length: int, draw: random.Random) -> list[str]:
    """Windows of ASCII text of `length` characters that start behind a line break."""
    found: list[str] = []
    while len(found) < count:
        text = texts[draw.randrange(len(texts))]
        start = text.find("\n", draw.randrange(max(1, len(text) - 2 * length))) + 1
        window = text[start : start + 2 * length]
        if (
            len(window) == 2 * length
            and window.isascii()
            and window.isprintable() is False
            and len(window.split()) > length // 8
        ):
            found.append(window)
    return found


def _cuts(passage: str, length: int, count: int, draw: random.Random) -> list[int]:
    """Positions inside words, ascending, in the second half of the first `length` characters."""
    inside = [
        place
        for word in _WORD.finditer(passage[: length + 12])
        for place in range(word.start() + 1, word.end())
        if length // 2 <= place < length
    ]
    return sorted(draw.sample(inside, min(count, len(inside))))


def _next_bytes(lm: ByteLM, passage: str, cuts: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Mean log-probability (nats) and top-1 accuracy of the true next byte, per way of reading the prompt."""
    ways: dict[str, Callable[[str], Tensor]] = {
        "exact": lm.next_byte,
        "healed": lambda prompt: healed_next_byte(lm, prompt),
        "naive": lambda prompt: naive_next_byte(lm, prompt),
    }
    found = {}
    for name, way in ways.items():
        scores, hits = [], []
        for cut in cuts:
            probs, truth = way(passage[:cut]), ord(passage[cut])
            scores.append(math.log(max(float(probs[truth]), _FLOOR)))
            hits.append(float(int(probs.argmax()) == truth))
        found[name] = (float(np.mean(scores)), float(np.mean(hits)))
    return found


def greedy_tokens(lm: ByteLM, ids: list[int], forced: bytes, size: int) -> bytes:
    """Greedy decoding over tokens until `size` bytes stand behind `forced`, which the first tokens must spell or begin with."""
    made = b""
    allowed = np.zeros(lm.vocabulary.size, dtype=bool)
    while len(made) < len(forced) + size:
        row = lm.scorer.run([[lm.begin_id, *ids]], [1])[0][-1].numpy()
        rest = forced[len(made) :]
        allowed[:] = False
        allowed[lm.vocabulary.trie.starting_with(rest)] = True
        if not rest:
            allowed[lm.special_array] = True
        token = int(np.where(allowed, row, -np.inf).argmax())
        piece = lm.vocabulary.pieces[token]
        if not piece:
            break
        ids, made = [*ids, token], made + piece
    return made[len(forced) :]


def _fill(lm: ByteLM, passage: str, length: int, draw: random.Random) -> dict[str, float] | None:
    """1 where the rest of the identifier and the byte after it are spelled exactly; None if the passage has no place for it."""
    names = [m for m in _IDENTIFIER.finditer(passage) if length // 2 <= m.start() and m.end() < length]
    if not names:
        return None
    name = draw.choice(names)
    cut = draw.randrange(name.start() + 1, name.end())
    after = passage[name.end() :].split("\n")
    suffix = "\n".join(after[1:4]).encode()
    prompt = suffix + b"\n\n" + passage[:cut].encode()
    truth = passage[cut : name.end() + 1].encode()
    vocabulary, size = lm.vocabulary, len(truth)
    ids = vocabulary.encode(prompt)
    dropped = vocabulary.pieces[ids[-1]] or b""
    made = {
        "exact": bytes(lm.bytes_after(prompt, size, temperature=0.0)),
        "healed": greedy_tokens(lm, ids[:-1], dropped, size),
        "naive": greedy_tokens(lm, ids, b"", size),
    }
    return {way: float(text[:size] == truth) for way, text in made.items()}


def _bits(models: Models, passage: str, length: int, size: int) -> dict[str, float]:
    """Negative bits per byte of `size` bytes behind the first half of the passage: each model alone, and the even mixture."""
    data = passage.encode()
    start = length // 2
    members = {"first": ByteEnsemble([models.first]), "second": ByteEnsemble([models.second])}
    states = {name: member.start(data[:start]) for name, member in members.items()}
    total: dict[str, float] = dict.fromkeys(("first", "second", "mixture"), 0.0)
    for byte in data[start : start + size]:
        probs = {name: float(state.next_probs()[byte]) for name, state in states.items()}
        probs["mixture"] = (probs["first"] + probs["second"]) / 2
        for name, p in probs.items():
            total[name] += math.log2(max(p, _FLOOR)) / size
        for state in states.values():
            state.advance(byte)
    return total


class ByteProbsClaim(Claim):
    """Next bytes after cuts, identifiers filled in, and bits per byte of a mixture of two models."""

    system = "byteprobs"
    statement = (
        "At prompts that end inside a word, exact byte probabilities predict the next byte better than the prompt's own tokens "
        "and than token healing, complete identifiers exactly more often, and let two models with different vocabularies beat "
        "each alone"
    )
    metric = "log-probability of the true next byte (nats); top-1; exact completions; negative bits per byte"
    contrasts = (
        Contrast("exact beats the prompt's own tokens on prose (nats)", "exact_prose", "naive_prose"),
        Contrast("exact beats the prompt's own tokens on code (nats)", "exact_code", "naive_code"),
        Contrast("exact beats token healing on prose (nats)", "exact_prose", "healed_prose"),
        Contrast("exact beats token healing on code (nats)", "exact_code", "healed_code"),
        Contrast("more next bytes are right than from the prompt's own tokens", "exact_hits", "naive_hits"),
        Contrast("more identifiers are completed exactly than over tokens", "exact_fill", "naive_fill"),
        Contrast("identifiers: not more than 5 points worse than token healing", "exact_fill", "healed_fill", -0.05),
        Contrast("the mixture beats the first model alone (bits per byte)", "mixture_bits", "first_bits"),
        Contrast("the mixture beats the second model alone (bits per byte)", "mixture_bits", "second_bits"),
    )
    competence = Competence("exact_hits", 0.6)
    assets = ("smollm2", "gemma3", "emails", "debian-installer")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Passages per seed, their length, cuts per passage, bytes scored for the mixture, passages that choose its domain."""
        sizes = {
            "smoke": {"passages": 3, "length": 100, "cuts": 3, "bytes": 6, "choosing": 1, "steps": 60},
            "small": {"passages": 12, "length": 160, "cuts": 4, "bytes": 16, "choosing": 3, "steps": 0},
            "paper": {"passages": 300, "length": 800, "cuts": 8, "bytes": 64, "choosing": 20, "steps": 0},
        }
        return sizes[scale]

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Score the passages of one seed."""
        s = self.settings(scale)
        models = _tiny(seed, s["steps"], device) if scale == "smoke" else _real(scale, device)
        draw = random.Random(seed)
        domains = ("prose", "code")
        passages = {d: _passages(models.texts[d], s["passages"] + s["choosing"], s["length"], draw) for d in domains}
        arms: dict[str, list[float]] = {}

        def record(**values: float) -> None:
            for arm, value in values.items():
                arms.setdefault(arm, []).append(value)

        chosen, gains = _choose_domain(models, passages, s)
        for i in range(s["passages"]):
            progress(f"passage {i + 1} of {s['passages']}", 0.1 + 0.9 * i / s["passages"])
            hits: dict[str, float] = {}
            for domain in domains:
                passage = passages[domain][i]
                cuts = _cuts(passage, s["length"], s["cuts"], draw) or [s["length"] - 1]
                for way, (nats, hit) in _next_bytes(models.first, passage, cuts).items():
                    record(**{f"{way}_{domain}": nats})
                    hits[way] = hits.get(way, 0.0) + hit / len(domains)
            record(**{f"{way}_hits": hit for way, hit in hits.items()})
            filled = None
            while filled is None:
                filled = _fill(models.first, passages["code"][i], s["length"], draw)
                if filled is None:
                    passages["code"][i] = _passages(models.texts["code"], 1, s["length"], draw)[0]
            record(**{f"{way}_fill": hit for way, hit in filled.items()})
            bits = _bits(models, passages[chosen][i], s["length"], s["bytes"])
            record(**{f"{name}_bits": value for name, value in bits.items()})
        facts: dict[str, float | str] = {"mixture_domain": chosen} | {f"choosing_gain_{d}": g for d, g in gains.items()}
        return Measurement(arms, facts)


def _choose_domain(models: Models, passages: dict[str, list[str]], s: dict[str, Any]) -> tuple[str, dict[str, float]]:
    """The domain in which the mixture gains most over the better model, on passages that are not judged."""
    gains = {}
    for domain, texts in passages.items():
        rows = [_bits(models, text, s["length"], s["bytes"]) for text in texts[s["passages"] :]]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        gains[domain] = mean["mixture"] - max(mean["first"], mean["second"])
    return max(gains, key=lambda domain: gains[domain]), gains


CLAIM = ByteProbsClaim()
