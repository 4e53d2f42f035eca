"""Contract of byte models: ``check_byte_model(lm)`` for a `ByteLM`, a `ByteEnsemble`, or anyone's own with the same calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tokenry.testing.verdict import fail, refuses

_PROMPTS: tuple[bytes, ...] = (b"", b"a", b"the qu", b"if x:\n\n", "caf\u00e9".encode()[:-1], b"two  spa", b"12")


def _distribution(model: Any, prompt: bytes) -> None:
    probs = model.start(prompt).next_probs()
    if probs.ndim != 1 or len(probs) < 256:
        fail("shape", model, f"next_probs must be [256 + specials], got {tuple(probs.shape)}")
    if not torch.isfinite(probs).all() or bool((probs < 0).any()) or abs(float(probs.sum()) - 1.0) > 1e-6:
        fail("distribution", model, f"after {prompt!r} the probabilities sum to {float(probs.sum())}")


def _chain_rule(model: Any, prompt: bytes) -> None:
    """P(x b) = P(x) P(b | x) for the most probable bytes, and no prefix is less probable than what it begins."""
    probs, before = model.start(prompt).next_probs(), model.logprob(prompt)
    for byte in probs[:256].topk(2).indices.tolist():
        after = model.logprob(prompt + bytes([byte]))
        if after > before + 1e-6:
            fail("prefixes", model, f"P({prompt + bytes([byte])!r}) exceeds P({prompt!r})")
        if not model_leaks(model) and abs(after - before - math.log(float(probs[byte]))) > 1e-3:
            fail("chain rule", model, f"{prompt!r} + {byte}: {after - before} against {math.log(float(probs[byte]))}")


def model_leaks(model: Any) -> bool:
    """Whether the token model may put mass on sequences its tokenizer never makes; the chain rule holds up to it."""
    return hasattr(model, "scorer")


def _steps_equal_start(model: Any, prompt: bytes) -> None:
    walked = model.start()
    for byte in prompt:
        walked.advance(byte)
    gap = float((walked.next_probs() - model.start(prompt).next_probs()).abs().max())
    if gap > 1e-4:
        fail("steps equal start", model, f"{prompt!r}: largest difference {gap}")


def _copies_are_independent(model: Any, prompt: bytes) -> None:
    state = model.start(prompt)
    probs = state.next_probs()
    state.copy().advance(int(probs[:256].argmax()))
    if not torch.equal(state.next_probs(), probs):
        fail("copy", model, "advancing a copy changed the state")


def _generation(model: Any, prompt: bytes) -> None:
    draws = [model.generate(prompt, 6, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    if draws[0] != draws[1] or len(draws[0]) > 6:
        fail("generation", model, f"two draws under one seed differ or are too long: {draws}")
    first = model.generate(prompt, 1, temperature=0.0)
    best = int(model.start(prompt).next_probs().argmax())
    if first != (bytes([best]) if best < 256 else b""):
        fail("generation", model, f"greedy gave {first!r}, the most probable symbol is {best}")


def _refusals(model: Any) -> None:
    for name, call in (
        ("temperature", lambda: model.generate(b"a", 2, temperature=-1.0)),
        ("top_p", lambda: model.generate(b"a", 2, top_p=0.0)),
        ("max_bytes", lambda: model.generate(b"a", -1)),
        ("byte", lambda: model.start(b"").advance(256)),
        ("byte", lambda: model.start(b"").advance("a")),
        ("prompt", lambda: model.start(7)),
        ("UTF-8", lambda: model.start(b"a\xff")),
    ):
        refuses(model, name, call)


def check_byte_model(model: Any, prompts: Sequence[bytes] = _PROMPTS) -> None:
    """Run every contract check of byte models on `model` with prompts that it can spell.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for prompt in prompts:
        for check in (_distribution, _chain_rule, _steps_equal_start, _copies_are_independent, _generation):
            check(model, prompt)
    _refusals(model)
