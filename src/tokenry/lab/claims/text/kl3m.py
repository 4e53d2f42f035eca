"""Domain vocabularies cost fewer tokens in their domain; short tokens keep their boundaries when characters go wrong.

Real text at scale ``small``: licence texts (legal), an accounting handbook (financial), a manual (technical) and help topics
(general). Tokenizers of one comparison have the same vocabulary size, the same number of training bytes and the same recipe but
for the part that is compared; documents are held out whole. Licences repeat each other's sentences, so a part of the held-out
legal lines occurs in the training text: the share is recorded, and beside it the cost on the lines that do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenry.core.progress import Progress
from tokenry.lab.evidence.claim import Claim, Contrast, Measurement, Scale

Facts = dict[str, float | str]
_DOMAINS = ("legal", "financial", "technical", "general")
_REPORTERS = (
    "U.S.",
    "S. Ct.",
    "F.2d",
    "F.3d",
    "F. Supp. 2d",
    "U.S.C.",
    "C.F.R.",
    "Fed. Reg.",
    "Stat.",
    "L. Ed. 2d",
    "Cal. App. 4th",
)
_TEMPLATES = (
    "{a} {r} {b} ({y})", "{t} U.S.C. § {b}({l})({n})", "{t} C.F.R. § {a}.{n}({l})", "Rule {n}({l})({v})", "Section {a}({l})",
    "fiscal year {y}", "as of December 31, {y}", "Article {n}({v})", "§ {a}({l})({n})({v})", "Act of {y}, {a} Stat. {b}",
)  # fmt: skip


class Kl3mClaim(Claim):
    """Domain vocabularies, custom tokens and character vocabularies against their plain counterparts of equal size."""

    system = "kl3m"
    statement = (
        "A vocabulary trained on legal or financial text needs fewer tokens per character there than one trained on general "
        "text; custom tokens make citations cheaper; a vocabulary of short tokens keeps its boundaries under noise"
    )
    metric = "minus tokens per character of a passage; minus tokens of a term; F1 of token boundaries, clean against noisy"
    contrasts = (
        Contrast("legal vocabulary is cheaper on legal text", "legal_by_legal", "legal_by_general"),
        Contrast("financial vocabulary is cheaper on financial text", "financial_by_financial", "financial_by_general"),
        Contrast("technical vocabulary is cheaper on technical text", "technical_by_technical", "technical_by_general"),
        Contrast("general vocabulary is cheaper on general text than the legal one", "general_by_general", "general_by_legal"),
        Contrast("custom tokens make citations cheaper", "terms_custom", "terms_plain"),
        Contrast("short tokens keep boundaries under noise", "boundaries_capped", "boundaries_uncapped", 0.02),
        Contrast("short tokens cost more tokens", "cost_uncapped", "cost_capped"),
    )
    assets = ("licences", "finance-handbook", "debian-installer")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Training bytes, vocabularies, passages per arm and the rate of errors."""
        small = {"train_bytes": 150_000, "vocab": 4096, "char_vocab": 2048, "items": 50, "min_frequency": 2}
        smoke = {"train_bytes": 40_000, "vocab": 2048, "char_vocab": 1024, "items": 12, "min_frequency": 2}
        sizes = {"smoke": smoke, "small": small, "paper": small | {"source": "released tokenizers"}}[scale]
        return sizes | {"passage": 1000, "noisy_passage": 250, "error_rate": 0.08, "max_chars": 3}

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """One split of the documents, one draw of terms and errors."""
        settings = self.settings(scale)
        texts = _offline_domains() if scale == "smoke" else _domains()
        train, held = _split(texts, settings["train_bytes"], seed)
        progress("training", 0.1)
        tokenizers = _released() if scale == "paper" else _trained(train, settings)
        items = settings["items"]
        passages = {name: _passages(held[name], settings["passage"], items, seed) for name in _DOMAINS}
        arms = {
            f"{name}_by_{by}": _costs(tokenizers[by], passages[name])
            for name in _DOMAINS
            for by in dict.fromkeys((name, "general", *(("legal",) if name == "general" else ())))
        }
        terms = legal_terms(items, seed)
        arms |= {f"terms_{kind}": _term_costs(tokenizers[f"terms_{kind}"], terms) for kind in ("custom", "plain")}
        progress("noise", 0.4)
        noisy = _noisy([*held["legal"], *held["general"]], settings, seed)
        for kind in ("capped", "uncapped"):
            arms[f"boundaries_{kind}"] = _boundaries(tokenizers[kind], noisy)
            arms[f"cost_{kind}"] = _costs(tokenizers[kind], [clean for clean, _, _ in noisy])
        facts = _facts(tokenizers, train, held)
        if scale == "small" and seed == 0:
            progress("real tokenizers", 0.7)
            facts |= _real_tokenizers(passages, terms, noisy)
        progress("done", 1.0)
        return Measurement(arms, facts)


def _trained(train: dict[str, list[str]], settings: dict[str, Any]) -> dict[str, Any]:
    """Every tokenizer of the comparisons; within a pair only the compared part differs."""
    from tokenry.text.kl3m import custom_tokens, train_char_tokenizer, train_domain_tokenizer

    vocab, least = settings["vocab"], settings["min_frequency"]
    made: dict[str, Any] = {
        name: train_domain_tokenizer(texts, vocab, custom=(), min_frequency=least) for name, texts in train.items()
    }
    groups = ("years", "enumerations", "numbers", "citations")
    custom = custom_tokens(citations=_REPORTERS, groups=groups)
    made["terms_custom"] = train_domain_tokenizer(train["legal"], vocab, custom=custom, min_frequency=least)
    made["terms_plain"] = made["legal"]
    mixed = [text for texts in train.values() for text in texts]
    for name, cap in (("capped", settings["max_chars"]), ("uncapped", 10_000)):
        made[name] = train_char_tokenizer(mixed, settings["char_vocab"], max_chars=cap, min_frequency=least)
    return made


def _released() -> dict[str, Any]:
    """The released tokenizers and a general one, from the hub."""
    from transformers import AutoTokenizer

    from tokenry.errors import AssetMissingError

    names = dict.fromkeys(("legal", "financial", "technical", "terms_custom"), "alea-institute/kl3m-004-128k-cased")
    names |= dict.fromkeys(("general", "terms_plain"), "Xenova/gpt-4o")
    names |= {"capped": "alea-institute/kl3m-004-char-4k-cased", "uncapped": "alea-institute/kl3m-003-64k"}
    try:
        return {role: AutoTokenizer.from_pretrained(name) for role, name in names.items()}
    except OSError as error:
        raise AssetMissingError(
            f"a released tokenizer could not be read ({error}); with a connection: hf download {' '.join(set(names.values()))}"
        ) from error


def _domains() -> dict[str, list[str]]:
    from tokenry.lab.sources.text import domain_corpus

    return {name: domain_corpus(name) for name in _DOMAINS}


def _offline_domains() -> dict[str, list[str]]:
    """Stand-ins for a run without downloads: module sources, their doc strings, and help topics in two halves."""
    import argparse
    import decimal
    import inspect
    import pydoc_data.topics
    import statistics
    import typing

    topics = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    sources = [inspect.getsource(module) for module in (argparse, decimal, statistics, typing)]
    pieces = [source[i : i + 4000] for source in sources for i in range(0, len(source), 4000)]
    return {"legal": pieces[::3], "financial": pieces[1::3], "technical": pieces[2::3], "general": topics}


def _split(texts: dict[str, list[str]], size: int, seed: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Whole documents in random order: the first `size` bytes to train on (the last one cut), all later documents held out."""
    train: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    for name, documents in texts.items():
        order = list(documents)
        random.Random(f"{seed}:{name}").shuffle(order)
        train[name], total = [], 0
        while order and total < size:
            document = order.pop()
            train[name].append(document.encode()[: size - total].decode("utf-8", "ignore"))
            total += len(train[name][-1].encode())
        held[name] = order
    return train, held


def _passages(documents: Sequence[str], length: int, count: int, seed: int) -> list[str]:
    """`count` different pieces of `length` characters."""
    pieces = [text[i : i + length] for text in documents for i in range(0, len(text) - length + 1, length)]
    if len(pieces) < count:
        raise ValueError(f"count must be at most the {len(pieces)} passages that were held out, got {count}")
    return random.Random(seed).sample(pieces, count)


def _costs(tokenizer: Any, passages: Sequence[str]) -> list[float]:
    from tokenry.text.kl3m import tokens_per_character

    return [-tokens_per_character(tokenizer, passage) for passage in passages]


def _term_costs(tokenizer: Any, terms: Sequence[str]) -> list[float]:
    from tokenry.text.kl3m import term_costs

    return [-float(cost) for cost in term_costs(tokenizer, terms).values()]


def legal_terms(count: int, seed: int) -> list[str]:
    """Citations, enumerations and dates as they stand in legal and financial text, filled with random numbers."""
    draw = random.Random(seed)
    terms: dict[str, None] = {}
    while len(terms) < count:
        parts = {
            "a": draw.randrange(20, 900),
            "b": draw.randrange(100, 4000),
            "n": draw.randrange(1, 40),
            "t": draw.randrange(1, 54),
        }
        marks = {"l": draw.choice("abcdefgh"), "v": draw.choice(("ii", "iii", "iv", "vi")), "y": draw.randrange(1933, 2025)}
        terms[_TEMPLATES[len(terms) % len(_TEMPLATES)].format(r=draw.choice(_REPORTERS), **parts, **marks)] = None
    return list(terms)


def _noisy(documents: Sequence[str], settings: dict[str, Any], seed: int) -> list[tuple[str, str, list[tuple[int, int]]]]:
    """(clean, noisy, alignment) per passage."""
    from tokenry.text.kl3m import align, corrupt

    found = []
    for number, clean in enumerate(_passages(documents, settings["noisy_passage"], settings["items"], seed + 1)):
        noisy = corrupt(clean, settings["error_rate"], seed=1000 * seed + number)
        found.append((clean, noisy, align(clean, noisy)))
    return found


def _boundaries(tokenizer: Any, noisy: Sequence[tuple[str, str, list[tuple[int, int]]]]) -> list[float]:
    from tokenry.text.kl3m import boundary_agreement

    return [boundary_agreement(tokenizer, clean, bad, alignment=pairs).f1 for clean, bad, pairs in noisy]


def _facts(tokenizers: dict[str, Any], train: dict[str, list[str]], held: dict[str, list[str]]) -> Facts:
    """Overlap of held-out and training lines, cost on the lines that do not overlap, sizes of tokens."""
    from tokenry.text.kl3m import token_sizes, tokens_per_character

    facts: Facts = {}
    for name in _DOMAINS:
        known = {line.strip() for text in train[name] for line in text.splitlines()}
        lines = [line.strip() for text in held[name] for line in text.splitlines() if line.strip()]
        new = [line for line in lines if line not in known]
        facts[f"{name}_line_overlap"] = 1.0 - len(new) / len(lines)
        for by in dict.fromkeys((name, "general")):
            facts[f"{name}_new_lines_by_{by}"] = tokens_per_character(tokenizers[by], new)
    legal = held["legal"][:200]
    for kind in ("custom", "plain"):
        facts[f"legal_text_terms_{kind}"] = tokens_per_character(tokenizers[f"terms_{kind}"], legal)
    for role in ("legal", "capped", "uncapped"):
        sizes = token_sizes(tokenizers[role])
        facts[f"{role}_sizes"] = f"short {sizes.short}, medium {sizes.medium}, long {sizes.long}"
        facts[f"{role}_vocabulary"] = _size(tokenizers[role])
    return facts


def _size(tokenizer: Any) -> int:
    ask: Callable[[], int] | None = getattr(tokenizer, "get_vocab_size", None)
    return ask() if ask else len(tokenizer)


def _real_tokenizers(passages: dict[str, list[str]], terms: list[str], noisy: Sequence[Any]) -> Facts:
    """Tokens per character by domain, mean tokens per term and boundary F1 of real tokenizers, on the same items."""
    from tokenry.errors import AssetMissingError, UnsupportedModelError
    from tokenry.lab.sources.models import load_real_tokenizer, real_tokenizers

    facts: Facts = {}
    for name in real_tokenizers():
        try:
            tokenizer = load_real_tokenizer(name)
            costs = [f"{domain} {-np.mean(_costs(tokenizer, texts)):.4f}" for domain, texts in passages.items()]
            term, f1 = -np.mean(_term_costs(tokenizer, terms)), np.mean(_boundaries(tokenizer, noisy))
            facts[f"real_{name}"] = f"{', '.join(costs)}, terms {term:.2f}, boundaries {f1:.3f}"
        except (AssetMissingError, UnsupportedModelError):
            continue
    return facts


CLAIM = Kl3mClaim()
