"""`ByteLM`: a causal language model over bytes, made of a causal language model over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_int
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.path_runs import drive
from tokenry.hosts.paths import PathScorer
from tokenry.hosts.text import ByteVocabulary, as_bytes, split_partial
from tokenry.text.byteprobs.covers import Covers
from tokenry.text.byteprobs.sampling import byte_stream, check_sampling, choose_or_stop
from tokenry.text.byteprobs.scoring import byte_log_probs
from tokenry.text.byteprobs.state import ByteState


class ByteLM:
    """Exact next-byte probabilities of a Hugging Face causal LM (Phan et al. 2024, lemma and section 3).

    Args:
        model: a causal LM of transformers.
        tokenizer: its fast tokenizer, a `tokenizers.Tokenizer`, or a `ByteVocabulary`.
        valid_only: keep only token sequences that the tokenizer itself produces (exact). False: every token may follow (fast
            mode of the released code; close inside plain words, off by more inside multi-byte characters).
        bos_token_id: the token before the text; taken from the tokenizer, then from the model, when None.

    Attributes:
        specials: ids of the outcomes behind the 256 bytes: unknown, beginning, end, then the other special tokens.
        ends: ids that end a text.
        begin_id: id that stands before a text.
        begin, unknown: ids of the tokenizer's own beginning-of-sequence and unknown token, None where it has none.

    Raises:
        UnsupportedModelError: `model` is no causal LM, or bytes cannot be recovered from the tokenizer's tokens.
        ValueError: the model has fewer logits than the tokenizer ids, no token can stand before the text, or the tokenizer
            changes text (lower case, compatibility forms).
    """

    def __init__(self, model: Any, tokenizer: Any, *, valid_only: bool = True, bos_token_id: int | None = None) -> None:
        whole = not callable(getattr(model, "get_output_embeddings", None)) or not hasattr(model, "config")
        if whole or getattr(model.config, "is_encoder_decoder", False):
            raise UnsupportedModelError.of(model, ("causal language models of transformers (AutoModelForCausalLM)",))
        self.model = model
        self.vocabulary = ByteVocabulary.of(tokenizer)
        normalizer = self.vocabulary.layout.normalizer
        if normalizer not in (None, "NFC"):
            raise ValueError(f"tokenizer must keep text as it is, got one whose normaliser {normalizer} changes it")
        head = model.get_output_embeddings()
        outputs = getattr(head, "out_features", None) or model.config.get_text_config().vocab_size
        if outputs < self.vocabulary.size:
            raise ValueError(f"model must have a logit for each of the tokenizer's {self.vocabulary.size} ids, got {outputs}")
        self.valid_only = bool(valid_only)
        self.specials, self.ends, self.begin_id = _special_ids(model, tokenizer, self.vocabulary, bos_token_id)
        self.begin = getattr(tokenizer, "bos_token_id", None)
        self.unknown = getattr(tokenizer, "unk_token_id", None)
        self.special_array = np.array(self.specials, dtype=np.int64)
        self.scorer = PathScorer(model, self.vocabulary.size)
        self._covers = Covers(self.vocabulary, self.scorer, valid_only=self.valid_only)

    def start(self, prompt: bytes | str = b"", *, context: Sequence[int] | None = None) -> ByteState:
        """State after `prompt`, which may end anywhere, also inside a character.

        `context`: ids that stand before the text instead of the beginning-of-sequence token (a fixed prompt of special tokens).

        Raises:
            TypeError, ValueError: `prompt` is not the beginning of UTF-8 text, or has characters the tokenizer cannot spell.
        """
        return self.start_many([prompt], context=context)[0]

    def start_many(self, prompts: Sequence[bytes | str], *, context: Sequence[int] | None = None) -> list[ByteState]:
        """States after several prompts."""
        fixed = self._context(context)
        return [self._start(as_bytes("prompt", prompt), fixed) for prompt in prompts]

    def _context(self, context: Sequence[int] | None) -> tuple[int, ...]:
        if context is None:
            return (self.begin_id,)
        for token in context:
            check_int("context", token, minimum=0, maximum=self.vocabulary.size - 1)
        if not len(context):
            raise ValueError("context must hold at least one id, got none")
        return tuple(context)

    def _start(self, prompt: bytes, context: tuple[int, ...]) -> ByteState:
        data = self.vocabulary.prefix + prompt
        if not split_partial(data)[1]:
            self.vocabulary.encode(prompt)  # raises where the tokenizer cannot spell the prompt
        return ByteState(self._covers, self.special_array, data, context, *self._covers.of(data, context))

    def score(self, paths: list[tuple[int, ...]], given: int) -> list[tuple[float, np.ndarray]]:
        """Log P(path[given:] | path[:given]) and the log-probabilities [V] of the token after it, for every path."""
        return self._covers.score(paths, given)

    def next_byte(self, prompt: bytes | str, *, context: Sequence[int] | None = None) -> Tensor:
        """Distribution of the symbol after `prompt`, float64 [256 + specials]."""
        return self.start(prompt, context=context).next_probs()

    def logprob(self, data: bytes | str, *, context: Sequence[int] | None = None) -> float:
        """Log P(text begins with `data`), natural; 0.0 for the empty string, -inf for what the model cannot produce."""
        return self.start(data, context=context).log_prob() if as_bytes("data", data) else 0.0

    def byte_log_probs(self, data: bytes | str, *, context: Sequence[int] | None = None) -> Tensor:
        """Log P(byte | the bytes before it) of every byte of a known text, natural, float64 [bytes].

        The tips of many places share a run, which is several times faster than stepping. The sum is `logprob` but for what the
        model leaks onto sequences that its tokenizer never makes: every distribution is normalised here. From the first byte of
        probability zero on, everything is -inf.
        """
        return byte_log_probs(self, as_bytes("data", data), self._context(context))

    def bytes_after(
        self,
        prompt: bytes | str,
        max_bytes: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        context: Sequence[int] | None = None,
    ) -> Iterator[int]:
        """Generated bytes, one at a time; stops at a special token or after `max_bytes`."""
        return byte_stream(lambda: self.start(prompt, context=context), max_bytes, temperature, top_p, generator)

    def generate(
        self,
        prompt: bytes | str | Sequence[bytes | str],
        max_bytes: int,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        context: Sequence[int] | None = None,
    ) -> bytes | list[bytes]:
        """Bytes after `prompt` (without it); a list of prompts gives a list, whose runs of the model are shared.

        `temperature` 0 is greedy; see `tokenry.text.byteprobs.sampling.tempered` for the rules. Special tokens end a text.

        Raises:
            ValueError: negative `temperature`, `top_p` outside (0, 1], negative `max_bytes`.
        """
        options = {"temperature": temperature, "top_p": top_p, "generator": generator}
        if isinstance(prompt, (bytes, bytearray, str)):
            return bytes(self.bytes_after(prompt, max_bytes, context=context, **options))
        check_int("max_bytes", max_bytes, minimum=0)
        check_sampling(temperature, top_p)
        states = self.start_many(prompt, context=context)
        made = [bytearray() for _ in states]
        alive = list(range(len(states)))
        for _ in range(max_bytes):
            symbols = dict(zip(alive, drive([choose_or_stop(states[i], len(made[i]), **options) for i in alive]), strict=True))
            alive = [i for i in alive if symbols[i] < 256]
            for i in alive:
                made[i].append(symbols[i])
                states[i].advance(symbols[i])
            if not alive:
                break
        return [bytes(text) for text in made]


def _special_ids(
    model: Any, tokenizer: Any, vocabulary: ByteVocabulary, bos_token_id: int | None
) -> tuple[tuple[int, ...], frozenset[int], int]:
    """Outcomes behind the bytes, the ids that end a text, and the id before the text."""
    named = [getattr(tokenizer, f"{role}_token_id", None) for role in ("unk", "bos", "eos")]
    configured = getattr(model, "generation_config", None) or model.config
    ends = getattr(configured, "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    inside = [token for token in ends if 0 <= token < vocabulary.size and vocabulary.pieces[token] is None]
    named_here = [token for token in named if token is not None and 0 <= token < vocabulary.size]
    specials = list(dict.fromkeys([*named_here, *inside, *sorted(vocabulary.special)]))
    bos = bos_token_id
    for token in (named[1], getattr(configured, "bos_token_id", None), model.config.get_text_config().bos_token_id, named[2]):
        bos = token if bos is None else bos
    if bos is None or not 0 <= bos < vocabulary.size:
        raise ValueError(f"bos_token_id must name a token in 0..{vocabulary.size - 1} to stand before the text, got {bos}")
    if named[2] is not None:
        inside.append(named[2])
    return tuple(specials), frozenset(inside), bos
