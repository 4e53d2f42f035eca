"""Contract of probes that ask a language model: ``check_probe(ConsistencyProbe(format="few_shot"))``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tokenry.testing.verdict import fail, refuses
from tokenry.testing.zoo import tiny
from tokenry.text.consistency import ConsistencyProbe

_PASSAGES = ("The old farmer sold a barn near the river.", "She gave a quick answer and left the room without her coat.")


def _model() -> tuple[Any, Any]:
    """A Llama with random weights and a byte-level tokenizer of two merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=alphabet | {"th": 256, "the": 257}, merges=[("t", "h"), ("th", "e")]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokens = {"vocab_size": 260, "bos_token_id": 258, "eos_token_id": 259}
    model = tiny("llama", max_position_embeddings=2048, initializer_range=0.4, **tokens)
    return model, PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def _deterministic(probe: ConsistencyProbe) -> None:
    model, tokenizer = _model()
    state = torch.random.get_rng_state()
    first, second = (probe.run(model, tokenizer, _PASSAGES) for _ in range(2))
    if (first.trials, first.outputs) != (second.trials, second.outputs):
        fail("determinism", probe, "two runs under one seed differ")
    if not torch.equal(state, torch.random.get_rng_state()):
        fail("determinism", probe, "the global random state was changed")


def _batch_is_loop(probe: ConsistencyProbe) -> None:
    model, tokenizer = _model()
    greedy = replace(probe, temperature=0.0, max_new_tokens=24)  # else the longest passage of a batch decides
    together, alone = (replace(greedy, batch_size=size).run(model, tokenizer, _PASSAGES) for size in (2, 1))
    if together.trials != alone.trials:
        fail("batch equals loop", probe, "what is found about a passage depends on the others of its batch")


def _bad_values(probe: ConsistencyProbe) -> None:
    model, tokenizer = _model()
    for word, call in (
        ("passages", lambda: probe.run(model, tokenizer, [])),
        ("supported", lambda: probe.run(torch.nn.Identity(), tokenizer, _PASSAGES)),
        ("batch_size", lambda: replace(probe, batch_size=0)),
    ):
        refuses(probe, word, call)


PROBE_CHECKS = (_deterministic, _batch_is_loop, _bad_values)


def check_probe(probe: ConsistencyProbe) -> None:
    """Run every contract check of a probe: ``run(model, tokenizer, passages)`` of a frozen dataclass.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for check in PROBE_CHECKS:
        check(probe)
