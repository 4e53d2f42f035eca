"""Lexinvariant models: prediction from co-occurrence in the context alone.

Three runs. On a Markov chain of four symbols whose source is known, the model must beat what symbol frequencies alone allow,
must not care how the symbols are named, and stays above the exact permutation-averaged source, the best that any lexinvariant
model can do. On LookUp with symbols that never occur in training it must answer where a standard model of the same size
cannot. On enciphered English a probe on its states is compared with frequency analysis; that run is recorded, not judged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.core.progress import Progress, within
from tokenry.lab.beds.language.symbols import (
    build_model,
    letters_of,
    losses_by_position,
    rotary_body,
    train_on,
    windows,
)
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale

_SPANS = ((0, 4), (4, 16), (16, 32), (32, 64), (64, 95))


class LexinvariantClaim(Claim):
    """Markov chain, LookUp and a substitution cipher."""

    system = "lexinvariant"
    statement = (
        "A model without learnt embeddings uses co-occurrence inside its context: it predicts below the unigram entropy, "
        "equally well after any relabelling of the symbols, and looks up symbols that it never saw in training"
    )
    metric = "minus nats per symbol (Markov chain) or exact answers (LookUp)"
    contrasts = (
        Contrast("late loss below the unigram entropy", "lexinvariant_late", "unigram_late"),
        Contrast("late loss far below the early loss", "lexinvariant_late", "lexinvariant_early", 0.15),
        Contrast("relabelling does not cost it 0.02 nats", "lexinvariant_relabelled", "lexinvariant_late", -0.02),
        Contrast("relabelling does not gain it 0.02 nats", "lexinvariant_late", "lexinvariant_relabelled", -0.02),
        Contrast("relabelling costs a standard model over a nat", "standard_late", "standard_relabelled", 1.0),
        Contrast("the exact permutation mixture is a bound", "mixture_late", "lexinvariant_late"),
        Contrast("unseen symbols are looked up, by a standard model not", "lexinvariant_unseen", "standard_unseen", 0.5),
    )
    competence = Competence("standard_seen", 0.9)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Sizes of the three runs; the Markov model is the same at every scale."""
        steps = {"smoke": 15, "small": 10_000, "paper": 30_000}[scale]
        lookup = {"smoke": 15, "small": 2500, "paper": 8000}[scale]
        symbols = {"smoke": 8, "small": 16, "paper": 128}[scale]
        cipher = {"smoke": 10, "small": 0, "paper": 40000}[scale]
        return {
            "items": {"smoke": 32, "small": 512, "paper": 2048}[scale],
            "markov": {"vocabulary": 4, "length": 96, "width": 48, "layers": 2, "heads": 2, "batch": 32, "rate": 2e-3},
            "gap": 0.4,
            "markov_steps": steps,
            "standard_steps": min(steps, 500),
            "lookup": {"width": 64, "layers": 2, "heads": 4, "pairs": 4, "batch": 32, "rate": 3e-3},
            "lookup_symbols": symbols,
            "lookup_steps": lookup,
            "cipher": {
                "width": 64 if scale != "paper" else 384,
                "layers": 2 if scale != "paper" else 6,
                "length": 128,
                "rate": 3e-3,
            },
            "cipher_steps": cipher,
        }

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """One chain, one set of symbols, one text window order."""
        settings = self.settings(scale)
        arms, facts = _markov(settings, seed, device, within(progress, 0.0, 0.6, "Markov chain"))
        more, found = _lookup(settings, seed, device, within(progress, 0.6, 0.95, "LookUp"))
        if settings["cipher_steps"]:
            found |= _cipher(settings, seed, device, within(progress, 0.95, 0.99, "cipher"))
        progress("done", 1.0)
        return Measurement(arms | more, facts | found)


def _chain(vocabulary: int, gap: float, seed: int) -> Any:
    """The first chain from 1000 * seed whose entropy rate is `gap` nats below its unigram entropy: something to learn in it."""
    from tokenry.text.lexinvariant import MarkovChain

    chains = (MarkovChain.random(vocabulary, seed=1000 * seed + i) for i in range(1000))
    return next(chain for chain in chains if chain.unigram_entropy - chain.entropy_rate >= gap)


def _markov(
    settings: dict[str, Any], seed: int, device: str, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    from tokenry.text.lexinvariant import permutation_mixture, random_keys, relabel

    sizes, count = settings["markov"], settings["items"]
    vocabulary, length = sizes["vocabulary"], sizes["length"]
    chain = _chain(vocabulary, settings["gap"], seed)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        tokens = chain.sample(sizes["batch"], length, generator=generator)
        return tokens, tokens

    test = chain.sample(count, length, generator=torch.Generator().manual_seed(10_000 + seed))
    keys = random_keys(count, vocabulary, generator=torch.Generator().manual_seed(20_000 + seed))
    identity = (keys == torch.arange(vocabulary)).all(dim=1, keepdim=True)
    keys = torch.where(identity, keys.roll(1, dims=1), keys)
    renamed = relabel(test, keys)
    nats: dict[str, Tensor] = {}
    plans = (("lexinvariant", 1.0, settings["markov_steps"]), ("standard", 0.0, settings["standard_steps"]))
    for name, rate, steps in plans:
        model = build_model(
            seed, vocab_size=vocabulary, hidden_size=sizes["width"], num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"], max_position_embeddings=length, random_rate=rate, readout_map=True,
        )  # fmt: skip
        report = within(progress, *((0.0, 0.9) if name == "lexinvariant" else (0.9, 1.0)))
        train_on(model, draw, steps=steps, learning_rate=sizes["rate"], device=device, progress=report)
        nats[name] = losses_by_position(model, test, seed=1)
        nats[f"{name}_relabelled"] = losses_by_position(model, renamed, seed=2)
    mixture = permutation_mixture(chain, test)
    nats["mixture"] = -mixture.log_probs[:, 1:]
    unigram = -chain.initial.log()[test[:, 1:]]
    late = {"unigram_late": unigram, "mixture_late": nats["mixture"]}
    late |= {n if n.endswith("relabelled") else f"{n}_late": x for n, x in nats.items() if n != "mixture"}
    arms = {n: (-x[:, _SPANS[-1][0] :].mean(1)).tolist() for n, x in late.items()}
    arms["lexinvariant_early"] = (-nats["lexinvariant"][:, :4].mean(1)).tolist()
    facts: dict[str, Any] = {"entropy_rate": chain.entropy_rate, "unigram_entropy": chain.unigram_entropy}
    for name in ("lexinvariant", "standard", "mixture"):
        for a, b in _SPANS:
            facts[f"{name}_nats_{a}_{b}"] = float(nats[name][:, a:b].mean())
    return arms, facts


def _lookup(
    settings: dict[str, Any], seed: int, device: str, progress: Progress
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    from tokenry.text.lexinvariant import lookup_task

    sizes, symbols = settings["lookup"], settings["lookup_symbols"]
    pairs = sizes["pairs"]
    seen, unseen = torch.arange(symbols), torch.arange(symbols, 2 * symbols)
    arms: dict[str, list[float]] = {}
    for name, rate in (("lexinvariant", 1.0), ("standard", 0.0)):
        generator = torch.Generator().manual_seed(seed)

        def draw(generator: torch.Generator = generator) -> tuple[Tensor, Tensor]:
            task = lookup_task(sizes["batch"], pairs, seen, queries=pairs, generator=generator)
            return task.tokens, task.labels

        model = build_model(
            seed, vocab_size=2 * symbols, hidden_size=sizes["width"], random_rate=rate, readout_map=True,
            body=rotary_body(sizes["width"], sizes["layers"], sizes["heads"], 4 * pairs),
        )  # fmt: skip
        part = 0.0 if name == "lexinvariant" else 0.5
        train_on(
            model, draw, steps=settings["lookup_steps"], learning_rate=sizes["rate"], device=device,
            progress=within(progress, part, part + 0.5),
        )  # fmt: skip
        for label, pool in (("seen", seen), ("unseen", unseen)):
            task = lookup_task(settings["items"], pairs, pool, generator=torch.Generator().manual_seed(30_000 + seed))
            with torch.no_grad():
                drawn = torch.Generator(device).manual_seed(seed)
                logits = model(task.tokens.to(device), generator=drawn, use_cache=False).logits
            arms[f"{name}_{label}"] = task.exact(logits.cpu()).float().tolist()
    return arms, {"lookup_chance": 1 / (2 * symbols), "lookup_chance_among_values": 1 / pairs}


def _cipher(settings: dict[str, Any], seed: int, device: str, progress: Progress) -> dict[str, Any]:
    """Share of enciphered English that is read: probe with one-to-one key, frequency analysis, bigram hill climbing."""
    from pydoc_data.topics import topics

    from tokenry.text import lexinvariant as lex

    sizes, steps = settings["cipher"], settings["cipher_steps"]
    text = letters_of("\n".join(topics[name] for name in sorted(topics)))
    train, test = text[: -len(text) // 10], text[-len(text) // 10 :]
    generator, length = torch.Generator().manual_seed(seed), sizes["length"]

    def draw() -> tuple[Tensor, Tensor]:
        tokens = windows(train, 16, length, generator)
        return tokens, tokens

    model = build_model(
        seed, vocab_size=27, hidden_size=sizes["width"], num_hidden_layers=sizes["layers"], num_attention_heads=4,
        max_position_embeddings=length, readout_map=True,
    )  # fmt: skip
    train_on(model, draw, steps=steps, learning_rate=sizes["rate"], device=device, progress=progress)
    probe = lex.train_cipher_probe(model, train, length=length, skip=length // 2, steps=min(steps, 300), hidden=128, seed=seed)
    items = windows(test, min(256, settings["items"]), length, generator)
    states = lex.final_states(model, items.to(device), generator=torch.Generator(device).manual_seed(seed))[:, length // 2 :]
    evidence = probe(states.float()).log_softmax(-1).detach().cpu()
    unigrams = torch.bincount(train, minlength=27)
    pairs = torch.zeros(27 * 27).index_add_(0, train[:-1] * 27 + train[1:], torch.ones(len(train) - 1)).view(27, 27)
    true = torch.arange(27)
    shares: dict[str, list[float]] = {"probe": [], "frequency": [], "hill_climbing": []}
    for row, scores in zip(items, evidence, strict=True):
        counts = torch.bincount(row, minlength=27)
        votes = lex.symbol_evidence(row[length // 2 :], scores, 27, soft=True)
        keys = (lex.recover_key(votes), lex.frequency_key(row, unigrams), lex.hill_climb_key(row, pairs, max_rounds=30).key)
        for values, key in zip(shares.values(), keys, strict=True):
            values.append(lex.key_recovery(key, true, counts))
    return {f"cipher_read_{name}": sum(values) / len(values) for name, values in shares.items()}


CLAIM = LexinvariantClaim()
