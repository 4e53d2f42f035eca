"""Substitution ciphers: encode text, probe a model's states for the key, and the classical attacks to compare with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checks import check_choice, check_finite, check_int, check_range, check_shape
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded
from tokenry.errors import optional
from tokenry.text.lexinvariant.model import LexinvariantForCausalLM

Aggregate = Literal["majority", "assignment"]


class CipherProbe(nn.Module):
    """Predicts the true identity of the current token from the model's final state at its position.

    Args:
        width: d of the states.
        vocab_size: true identities V.
        hidden: width of a hidden layer; None is a linear probe.
    """

    def __init__(self, width: int, vocab_size: int, hidden: int | None = None) -> None:
        super().__init__()
        check_int("width", width, 1)
        check_int("vocab_size", vocab_size, 1)
        if hidden is None:
            self.net: nn.Module = nn.Linear(width, vocab_size)
        else:
            self.net = nn.Sequential(nn.Linear(width, check_int("hidden", hidden, 1)), nn.GELU(), nn.Linear(hidden, vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        """States [...,d] -> logits over true identities [...,V]."""
        return self.net(states)


@torch.no_grad()
def final_states(model: LexinvariantForCausalLM, tokens: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Final states [B,T,d] of sequences [B,T] under freshly drawn lexicons (evaluation mode is the caller's)."""
    out = model(tokens, generator=generator, use_cache=False)
    assert out.hidden_states is not None
    return out.hidden_states[-1]


def train_cipher_probe(
    model: LexinvariantForCausalLM,
    text: Tensor,
    *,
    length: int,
    skip: int = 0,
    hidden: int | None = None,
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> CipherProbe:
    """Train a probe on windows of plain text [n]; the model is not changed.

    Drawing a lexicon for a sequence *is* enciphering it: what the model is shown carries no identities. Positions before `skip`
    have seen too little text and do not count.

    Raises:
        ValueError: options out of range or a text shorter than a window.
    """
    check_int("length", length, 2, len(text))
    check_int("skip", skip, 0, length - 1)
    check_int("steps", steps, 1)
    check_range("learning_rate", learning_rate, 0.0, low_open=True)
    device = model.device
    windows = torch.Generator().manual_seed(seed)
    draws = torch.Generator(device).manual_seed(seed)
    with seeded(seed):
        probe = CipherProbe(model.config.hidden_size, model.config.vocab_size, hidden).to(device)

    def loss_of(step: int) -> Tensor:
        start = torch.randint(len(text) - length + 1, (batch,), generator=windows)
        tokens = text[start[:, None] + torch.arange(length)].to(device)
        states = final_states(model, tokens, generator=draws)[:, skip:]
        return F.cross_entropy(probe(states.float()).flatten(0, 1), tokens[:, skip:].flatten())

    training = model.training
    model.eval()
    descend(probe, loss_of, Plan(steps=steps, learning_rate=learning_rate, clip=None, warmup=0.0, decay="none"))
    model.train(training)
    return probe.eval()


def symbol_evidence(symbols: Tensor, log_probs: Tensor, vocab_size: int, *, soft: bool = False) -> Tensor:
    """Votes [V,V] of every cipher symbol (rows) for every true identity: one vote per position, or its probabilities.

    Args:
        symbols: [n] cipher symbols.
        log_probs: [n,V] the probe's log-probabilities (or logits) at their positions.
        vocab_size: V.
        soft: add probabilities in place of one vote for the arg-max.
    """
    check_shape("log_probs", log_probs, "N V", N=len(symbols), V=vocab_size)
    check_finite("log_probs", log_probs)
    vote = log_probs.double().softmax(-1) if soft else F.one_hot(log_probs.argmax(-1), vocab_size).double()
    return torch.zeros(vocab_size, vocab_size, dtype=torch.float64).index_add_(0, symbols.cpu(), vote.cpu())


def recover_key(evidence: Tensor, method: Aggregate = "assignment") -> Tensor:
    """The true identity of each cipher symbol from votes [V,V]: long [V].

    ``"majority"`` takes the best of every row (two symbols may get one identity); ``"assignment"`` the one-to-one key of the
    largest total (Hungarian algorithm). Symbols without votes are free: -1 under majority.

    Raises:
        ValueError: not square, not finite or an unknown method.
        MissingDependencyError: the assignment needs scipy.
    """
    check_choice("method", method, ("majority", "assignment"))
    check_shape("evidence", evidence, "V V")
    check_finite("evidence", evidence)
    if method == "majority":
        return evidence.argmax(dim=1).masked_fill(evidence.sum(dim=1) == 0, -1)
    solve: Any = optional("scipy.optimize", "lab").linear_sum_assignment
    rows, columns = solve(evidence.detach().cpu().numpy(), maximize=True)
    key = torch.empty(len(evidence), dtype=torch.long)
    key[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return key


def key_recovery(found: Tensor, true: Tensor, counts: Tensor) -> float:
    """Share of the text whose symbol was recovered: symbols weighted by their occurrences [V].

    Raises:
        ValueError: shapes differ or nothing occurs.
    """
    check_shape("found", found, "V", V=len(true))
    check_shape("counts", counts, "V", V=len(true))
    if float(counts.sum()) <= 0:
        raise ValueError("counts must hold at least one occurrence")
    return float(((found == true) * counts.double()).sum() / counts.double().sum())


def frequency_key(symbols: Tensor, unigrams: Tensor) -> Tensor:
    """Frequency analysis: the r-th most frequent cipher symbol is the r-th most frequent true one. Long [V]."""
    seen = torch.bincount(symbols.flatten().cpu(), minlength=len(unigrams))
    key = torch.empty(len(unigrams), dtype=torch.long)
    key[seen.argsort(descending=True, stable=True)] = unigrams.argsort(descending=True, stable=True)
    return key


@dataclass(frozen=True, eq=False)
class Deciphered:
    """Key [V] found by `hill_climb_key` and the bigram log-likelihood of the text under it."""

    key: Tensor
    log_likelihood: float


def hill_climb_key(symbols: Tensor, bigrams: Tensor, *, start: Tensor | None = None, max_rounds: int = 200) -> Deciphered:
    """Swap two entries of the key as long as the bigram likelihood of the deciphered text grows (steepest ascent).

    Args:
        symbols: [n] cipher text.
        bigrams: [V,V] counts of the plain language; one is added to each.
        start: first key [V]; default frequency analysis.
        max_rounds: swaps at most.
    """
    size = check_shape("bigrams", bigrams, "V V")["V"]
    check_int("max_rounds", max_rounds, 0)
    law = (bigrams.double() + 1).log() - math.log(float((bigrams.double() + 1).sum()))
    pairs = torch.zeros(size * size, dtype=torch.float64)
    flat = symbols.flatten().cpu()
    pairs.index_add_(0, flat[:-1] * size + flat[1:], torch.ones(max(len(flat) - 1, 0), dtype=torch.float64))
    seen = pairs.view(size, size)
    key = frequency_key(flat, bigrams.sum(dim=1)) if start is None else start.clone()
    swaps = torch.combinations(torch.arange(size), 2)
    chunk = max(1, 2**21 // size**2)
    best = float((seen * law[key][:, key]).sum())
    for _ in range(max_rounds):
        tried = key.repeat(len(swaps), 1)
        tried.scatter_(1, swaps, key[swaps.flip(1)])
        scores = torch.cat([(seen * law[k[:, :, None], k[:, None, :]]).sum((1, 2)) for k in tried.split(chunk)])
        if float(scores.max()) <= best + 1e-9:
            break
        best, key = float(scores.max()), tried[scores.argmax()]
    return Deciphered(key, best)
