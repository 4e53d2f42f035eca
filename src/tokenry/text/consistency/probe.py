"""The probe: passages with marked words, a model that is asked to replace them, and what it did to each."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.seeding import seeded
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text import ByteVocabulary
from tokenry.text.consistency.align import align_targets
from tokenry.text.consistency.edits import judge_pieces, spelled
from tokenry.text.consistency.encodings import canonical_tokens
from tokenry.text.consistency.marking import BRACKETS, MarkedPassage, mark_words
from tokenry.text.consistency.masking import CanonicalOnly, Forbidden, TargetMask
from tokenry.text.consistency.prompts import FORMATS, PromptFormat
from tokenry.text.consistency.results import UNALIGNABLE, ProbeResult, Trial
from tokenry.text.consistency.spans import TokenSpan, TokenText, Word, split_words
from tokenry.text.consistency.stop_words import STOP_WORDS

INTERVENTIONS = ("none", "mask", "first_token", "canonical")


@dataclass(frozen=True)
class ConsistencyProbe:
    """Settings of the probe; the defaults are the paper's where it is known to state them.

    Attributes:
        share: share of the words that are no stop words that is marked.
        temperature, top_k, top_p: sampling; temperature 0 is greedy and leaves the other two aside, top_k 0 switches it off.
        format: how the model is asked: ``instruction`` (chat template), ``few_shot``, ``copy_edit``, or a `PromptFormat`.
        placement: where brackets stand, see `mark_words`.
        intervention: ``none``; ``mask`` (targets cannot be written in their place); ``first_token`` (only single tokens that
            are the target are masked); ``canonical`` (output must stay the tokenizer's own encoding).
        context: words before a target that must have been written right before it for its mask to count; 0 bans it everywhere.
        on_empty: what a constraint does with a row that has no token left: ``raise`` or ``release``.
        batch_size: prompts per run of `generate`.
        max_new_tokens: None: 1.25 times the tokens of the longest passage of the batch, and 16.
        seed: of marking and sampling.
        stop_words: words that are never marked.

    Raises:
        ValueError: a setting is out of range.
    """

    share: float = 0.05
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.9
    format: str | PromptFormat = "instruction"
    placement: str = "around_space"
    intervention: str = "none"
    context: int = 2
    on_empty: str = "raise"
    batch_size: int = 8
    max_new_tokens: int | None = None
    seed: int = 0
    stop_words: Collection[str] = field(default=STOP_WORDS, repr=False)

    def __post_init__(self) -> None:
        check_range("share", self.share, 0.0, 1.0, low_open=True)
        check_range("temperature", self.temperature, 0.0)
        check_int("top_k", self.top_k, minimum=0)
        check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        if not isinstance(self.format, PromptFormat):
            check_choice("format", self.format, tuple(FORMATS))
        check_choice("placement", self.placement, ("around_space", "around_word"))
        check_choice("intervention", self.intervention, INTERVENTIONS)
        check_int("context", self.context, minimum=0)
        check_int("batch_size", self.batch_size, minimum=1)
        if self.max_new_tokens is not None:
            check_int("max_new_tokens", self.max_new_tokens, minimum=1)

    def mark(self, passages: Sequence[str | MarkedPassage], tokenizer: Any) -> list[MarkedPassage]:
        """The passages with their targets marked, each under its own seed; marked ones stay as they are."""
        options: dict[str, Any] = {"share": self.share, "stop_words": self.stop_words, "placement": self.placement}
        return [
            passage
            if isinstance(passage, MarkedPassage)
            else mark_words(passage, tokenizer, seed=self.seed * 1_000_003 + i, **options)
            for i, passage in enumerate(passages)
        ]

    def run(
        self,
        model: Any,
        tokenizer: Any,
        passages: Sequence[str | MarkedPassage],
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> ProbeResult:
        """Ask `model` about every passage and judge every target on the generated ids.

        `passages`: plain texts are marked here; passages marked by `mark_words` are taken as they are.

        Raises:
            UnsupportedModelError: `model` cannot generate, or bytes cannot be recovered from the tokens.
            ValueError: no passages, or a prompt that does not survive the tokenizer.
        """
        if not callable(getattr(model, "generate", None)) or not hasattr(model, "device"):
            raise UnsupportedModelError.of(model, ("causal language models of transformers (AutoModelForCausalLM)",))
        if not len(passages) or isinstance(passages, str):
            raise ValueError("passages must be a sequence of at least one text")
        vocabulary = ByteVocabulary.of(tokenizer)
        marked = self.mark(passages, tokenizer)
        how = self.format if isinstance(self.format, PromptFormat) else FORMATS[self.format]
        asked = [_ask(passage, how, tokenizer, vocabulary) for passage in marked]
        outputs: list[list[int]] = []
        for start in range(0, len(asked), self.batch_size):
            batch = slice(start, start + self.batch_size)
            outputs += self._generate(model, tokenizer, vocabulary, marked[batch], asked[batch], how, start)
            if progress:
                progress(len(outputs), len(asked))
        trials = [
            trial
            for i, (passage, prompt, ids) in enumerate(zip(marked, asked, outputs, strict=True))
            for trial in judge_output(i, passage, prompt.spans, ids, vocabulary)
        ]
        return _result(trials, outputs, vocabulary, self._settings(how))

    def _settings(self, how: PromptFormat) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "stop_words"}
        return kept | {"format": how.name}

    def _generate(
        self,
        model: Any,
        tokenizer: Any,
        vocabulary: ByteVocabulary,
        passages: Sequence[MarkedPassage],
        prompts: Sequence[_Prompt],
        how: PromptFormat,
        number: int,
    ) -> list[list[int]]:
        """Generated ids per prompt, without padding, end tokens and what follows the stop text."""
        width = max(len(prompt.ids) for prompt in prompts)
        ends = _end_ids(model, tokenizer)
        pad = tokenizer.pad_token_id if getattr(tokenizer, "pad_token_id", None) is not None else (ends or [0])[0]
        ids = torch.full((len(prompts), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for r, prompt in enumerate(prompts):
            ids[r, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[r, width - len(prompt.ids) :] = 1
        longest = max(len(vocabulary.encode_text(passage.text)) for passage in passages)
        options: dict[str, Any] = {"do_sample": False}
        if self.temperature > 0:
            options = {"do_sample": True, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        stopping = [_StopText(how.stop.encode(), width, vocabulary)] if how.stop else []
        processors = self._constraint(passages, width, vocabulary)
        with seeded(self.seed * 1_000_003 + number, model.device), torch.inference_mode():
            made: Any = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=self.max_new_tokens or math.ceil(1.25 * longest) + 16,
                pad_token_id=pad,
                return_dict_in_generate=True,
                logits_processor=LogitsProcessorList(processors),
                stopping_criteria=StoppingCriteriaList(stopping),
                **options,
            )
        return [_trimmed(row, ends, pad, how.stop, vocabulary) for row in made.sequences[:, width:].tolist()]

    def _constraint(self, passages: Sequence[MarkedPassage], width: int, vocabulary: ByteVocabulary) -> list[LogitsProcessor]:
        if self.intervention == "none":
            return []
        if self.intervention == "canonical":
            return [CanonicalOnly(vocabulary, width, on_empty=self.on_empty)]
        mode = "first_token" if self.intervention == "first_token" else "surface"
        rows = [_forbidden(passage, self.context) for passage in passages]
        separators = "".join(BRACKETS)
        return [TargetMask(vocabulary, rows, width, mode=mode, on_empty=self.on_empty, separators=separators)]


@dataclass(frozen=True)
class _Prompt:
    ids: list[int]
    spans: list[TokenSpan]


def _ask(passage: MarkedPassage, how: PromptFormat, tokenizer: Any, vocabulary: ByteVocabulary) -> _Prompt:
    """The encoded prompt and the tokens of every target in it, found by their characters."""
    text = how.render(passage, tokenizer)
    shown = passage.marked if how.marked else passage.text
    encoding: Any = tokenizer(text, add_special_tokens=not how.special) if callable(tokenizer) else None
    ids = list(encoding["input_ids"]) if encoding else vocabulary.encode_text(vocabulary.prefix.decode() + text)
    tokens = TokenText(ids, vocabulary)
    start = tokens.text.rfind(shown)
    if start < 0:
        raise ValueError(f"the prompt must hold the passage as it is, but the tokenizer changes it: {shown[:40]!r}")
    places = [(t.marked_start, t.marked_end) if how.marked else (t.start, t.end) for t in passage.targets]
    return _Prompt(ids, [tokens.span(start + low, start + high) for low, high in places])


def judge_output(
    number: int, passage: MarkedPassage, spans: Sequence[TokenSpan], output: Sequence[int], vocabulary: ByteVocabulary
) -> list[Trial]:
    """The trials of one passage: targets aligned in the generated ids and judged against their spans in the prompt."""
    written = TokenText(output, vocabulary)
    source, words = split_words(passage.text), split_words(written.text, "".join(BRACKETS))
    places = align_targets(source, words, [target.index for target in passage.targets])
    trials = []
    for i, (target, before, place) in enumerate(zip(passage.targets, spans, places, strict=True)):
        if place is None:
            trials.append(Trial(number, i, target.text, "", UNALIGNABLE, None, None, before.ids, ()))
            continue
        first, last = words[place[0]], words[place[1] - 1]
        text = written.text[first.start : last.end]
        after = written.span(first.start, last.end)
        edit = judge_pieces(
            list(before.pieces),
            list(after.pieces),
            same_ids=before.ids == after.ids and text == target.text,
            sentence_start=_starts_sentence(source, target.index),
        )
        alike = edit.outcome == "replaced" and _form(text) == _form(target.text)
        trials.append(
            Trial(number, i, target.text, text, edit.outcome, edit.artefact, edit.shape, before.ids, after.ids, alike)
        )
    return trials


def _form(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _starts_sentence(words: Sequence[Word], index: int) -> bool:
    before = words[index - 1].text if index else "."
    return not any(char.isalnum() for char in before) and any(char in '.!?:\u201c"' for char in before)


def _forbidden(passage: MarkedPassage, context: int) -> list[Forbidden]:
    """Targets with the words before them; a word that is a target itself may be any."""
    words = split_words(passage.text)
    targets = {target.index for target in passage.targets}
    found = []
    for target in passage.targets:
        before = range(max(0, target.index - context), target.index)
        found.append(Forbidden(target.text, tuple("" if i in targets else words[i].text for i in before)))
    return found


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    configured = getattr(model, "generation_config", None)
    ends = getattr(configured, "eos_token_id", None)
    found = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    own = getattr(tokenizer, "eos_token_id", None)
    return found + ([own] if own is not None and own not in found else [])


def _trimmed(row: list[int], ends: list[int], pad: int, stop: str | None, vocabulary: ByteVocabulary) -> list[int]:
    size = next((i for i, token in enumerate(row) if token in ends or token == pad), len(row))
    row = row[:size]
    if stop is None:
        return row
    data = b""
    for i, token in enumerate(row):
        data += spelled(token, vocabulary)
        if stop.encode() in data:
            return row[:i]
    return row


class _StopText(StoppingCriteria):
    """Ends a row once its output holds a text."""

    def __init__(self, stop: bytes, width: int, vocabulary: ByteVocabulary) -> None:
        self.stop, self.width, self.vocabulary = stop, width, vocabulary

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = []
        for row in input_ids[:, self.width :].tolist():
            tail = b"".join(self.vocabulary.pieces[token] or b"" for token in row[-len(self.stop) - 1 :])
            done.append(self.stop in tail)
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def _result(trials: list[Trial], outputs: list[list[int]], vocabulary: ByteVocabulary, settings: dict[str, Any]) -> ProbeResult:
    judged = []
    for ids in outputs:
        try:
            judged.append(canonical_tokens([token for token in ids if vocabulary.pieces[token]], vocabulary))
        except ValueError:  # bytes that are no text have no encoding
            judged.append(np.zeros(len(ids), dtype=bool))
    every = np.concatenate(judged) if judged else np.zeros(0, dtype=bool)
    texts = tuple(TokenText(ids, vocabulary).text for ids in outputs)
    return ProbeResult(
        tuple(trials),
        tuple(map(tuple, outputs)),
        texts,
        float(every.mean()) if len(every) else math.nan,
        float(np.mean([bool(row.all()) for row in judged])),
        settings,
    )
