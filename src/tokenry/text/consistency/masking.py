"""Constraints for `generate`: a target word may not be written again, or only canonical tokens may be written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from tokenry.core.checks import check_choice, check_int
from tokenry.hosts.text import ByteVocabulary, split_partial
from tokenry.text.consistency.edits import spelled
from tokenry.text.consistency.spans import split_words

MODES = ("surface", "first_token")


@dataclass(frozen=True)
class Forbidden:
    """A word that may not be written.

    Attributes:
        word: the word without outer white space.
        after: words that must stand right before it for the ban to count; () bans it everywhere. An empty string in it stands
            for any one word.
    """

    word: str
    after: tuple[str, ...] = ()

    @property
    def surfaces(self) -> tuple[bytes, ...]:
        """The word alone, behind a space, and behind a line break."""
        return tuple(lead + self.word.encode() for lead in (b"", b" ", b"\n"))


class TargetMask(LogitsProcessor):
    """Forbids the tokens that would complete a target word, in whatever tokens it is written.

    Args:
        tokenizer: tokenizer of the model (or its `ByteVocabulary`).
        targets: forbidden words per row of the batch: `Forbidden` or str. Rows of beams and of `num_return_sequences` share
            the entry of their prompt.
        prompt_length: number of ids in front of the generated ones (the padded width of the prompts).
        mode: ``surface`` keeps the partial matches of w, space + w and line break + w in bytes and forbids what completes one
            at the end of a word; ``first_token`` only forbids single tokens equal to w up to white space.
        on_empty: what to do when no token is left: ``raise``, or ``release`` the row for this step and count it.
        separators: characters that are skipped when the words before a target are compared (echoed brackets).

    A match begins where a word can begin: at the start of the output and behind anything that is neither letter nor digit. A
    token that runs on with a letter or digit after the surface is another word and stays; one that ends with the surface is
    forbidden although the word might have gone on, for otherwise the ban could fail at the last token. Within its rows the
    forbidden word cannot be written at all (property of the tests); the rest of the vocabulary keeps its scores.

    Attributes:
        masked: scores set to -inf so far.
        released: steps at which a row had no token left and was released.

    Raises:
        ValueError: an empty target or one with outer white space, or (``raise``) a row with no token left.
    """

    def __init__(
        self,
        tokenizer: Any,
        targets: Sequence[Sequence[Forbidden | str]],
        prompt_length: int,
        *,
        mode: str = "surface",
        on_empty: str = "raise",
        separators: str = "[]",
    ) -> None:
        self.vocabulary = ByteVocabulary.of(tokenizer)
        self.prompt_length = check_int("prompt_length", prompt_length, minimum=0)
        self.mode = check_choice("mode", mode, MODES)
        self.on_empty = check_choice("on_empty", on_empty, ("raise", "release"))
        self.targets = [[Forbidden(t) if isinstance(t, str) else t for t in row] for row in targets]
        self.separators = separators
        for word in {target.word for row in self.targets for target in row}:
            if not word or word != word.strip():
                raise ValueError(f"targets must be words without outer white space, got {word!r}")
        self.masked = 0
        self.released = 0
        self._completing: dict[tuple[bytes, int], np.ndarray] = {}
        self._holding: dict[bytes, list[tuple[int, int]]] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V], -inf for what is forbidden; R is a multiple of the number of rows given."""
        if not self.targets or len(input_ids) % len(self.targets):
            raise ValueError(f"targets must have a row per prompt, got {len(self.targets)} for {len(input_ids)} rows")
        share = len(input_ids) // len(self.targets)
        scores = scores.clone()
        for r, ids in enumerate(input_ids[:, self.prompt_length :].tolist()):
            forbidden = self.forbidden_tokens(ids, r // share)
            if not len(forbidden):
                continue
            index = torch.from_numpy(forbidden).to(scores.device)
            before = scores[r, index]
            scores[r, index] = -torch.inf
            if torch.isneginf(scores[r]).all():
                if self.on_empty == "raise":
                    raise ValueError(f"targets leave row {r} no token to write, {len(forbidden)} are forbidden")
                scores[r, index] = before
                self.released += 1
            else:
                self.masked += len(forbidden)
        return scores

    def forbidden_tokens(self, ids: Sequence[int], row: int = 0) -> np.ndarray:
        """Ids that may not follow the generated `ids` of a row, ascending, int64."""
        targets = self.targets[row]
        if not targets:
            return np.zeros(0, dtype=np.int64)
        data = b"".join(spelled(token, self.vocabulary) for token in ids)
        found = [np.zeros(0, dtype=np.int64)]
        for target in targets:
            for surface in target.surfaces:
                found += [self._completions(surface, size) for size in self._partial(data, surface, target)]
            found.append(self._inside(data, target))
        return np.unique(np.concatenate(found))

    def _partial(self, data: bytes, surface: bytes, target: Forbidden) -> list[int]:
        """Sizes of the beginnings of `surface` that `data` ends with, where a word can begin and the context is right."""
        sizes = [0] if self.mode == "first_token" else range(min(len(surface) - 1, len(data)) + 1)
        return [
            size
            for size in sizes
            if data.endswith(surface[:size]) and self._may_start(data[: len(data) - size], surface, target.after)
        ]

    def _may_start(self, data: bytes, surface: bytes, after: tuple[str, ...]) -> bool:
        if not surface[:1].isspace() and _ends_in_word(data):
            return False
        if not after:
            return True
        text = data[-64 * len(after) :].decode("utf-8", "ignore")
        words = [word.text for word in split_words(text, self.separators)][-len(after) :]
        return len(words) == len(after) and all(not a or a == b for a, b in zip(after, words, strict=True))

    def _inside(self, data: bytes, target: Forbidden) -> np.ndarray:
        r"""Tokens that hold the word behind something else ("\\n\\n" + w, superwords)."""
        word, pieces = target.word.encode(), self.vocabulary.pieces
        if self.mode == "first_token":
            return np.zeros(0, dtype=np.int64)
        if word not in self._holding:
            self._holding[word] = [
                (token, place)
                for token, piece in enumerate(pieces)
                if piece and word in piece
                for place in _occurrences(piece, word)
                if place and not _starts_in_word(piece[place + len(word) :])
            ]
        known = self._holding[word]
        found = [t for t, place in known if self._may_start(data + (pieces[t] or b"")[:place], word, target.after)]
        return np.array(found, dtype=np.int64)

    def _completions(self, surface: bytes, size: int) -> np.ndarray:
        """Tokens that complete `surface`, of which `size` bytes stand, at the end of a word."""
        key = (surface[size:], size if self.mode == "first_token" else -1)
        if key not in self._completing:
            rest, pieces = key[0], self.vocabulary.pieces
            ids = self.vocabulary.trie.starting_with(rest)
            if self.mode == "first_token":
                keep = [(pieces[token] or b"").strip() == surface.strip() for token in ids.tolist()]
            else:
                keep = [not _starts_in_word((pieces[token] or b"")[len(rest) :]) for token in ids.tolist()]
            self._completing[key] = ids[np.array(keep, dtype=bool)]
        return self._completing[key]


def _ends_in_word(data: bytes) -> bool:
    """Whether the last character is a letter or digit, or unfinished."""
    tail = data[-4:]
    while tail and 0x80 <= tail[0] < 0xC0:
        tail = tail[1:]
    if not tail:
        return False
    text = tail.decode("utf-8", "replace")
    return text[-1] == "\ufffd" or text[-1].isalnum()


def _starts_in_word(data: bytes) -> bool:
    """Whether the first character is a letter or digit; an unfinished character may become anything and counts as none."""
    return bool(data) and data[:4].decode("utf-8", "replace")[0].isalnum()


def _occurrences(piece: bytes, word: bytes) -> list[int]:
    return [place for place in range(len(piece) - len(word) + 1) if piece.startswith(word, place)]


class CanonicalOnly(LogitsProcessor):
    """Lets only tokens through that keep the output the tokenizer's own encoding of the text it spells.

    Args:
        tokenizer: tokenizer of the model.
        prompt_length: number of ids in front of the generated ones.
        joined: read prompt and output as one text (from the last special token of the prompt on), so that the seam is
            canonical too; a prompt that is not canonical itself makes that row fall back to the output alone. False: the output
            alone.
        on_empty: ``raise``, or ``release`` a row that has no token left for this step and count it.

    Special tokens are always let through. Bytes that no tokenizer could have produced so far have no follower.

    Attributes:
        masked: finite scores set to -inf so far.
        released: steps at which a row had no token left and was released.
    """

    def __init__(self, tokenizer: Any, prompt_length: int, *, joined: bool = True, on_empty: str = "raise") -> None:
        self.vocabulary = ByteVocabulary.of(tokenizer)
        self.canonical = self.vocabulary.canonical
        self.prompt_length = check_int("prompt_length", prompt_length, minimum=0)
        self.joined = bool(joined)
        self.on_empty = check_choice("on_empty", on_empty, ("raise", "release"))
        self.masked = 0
        self.released = 0
        self._special = np.array(sorted(self.vocabulary.special), dtype=np.int64)
        self._heads: OrderedDict[tuple[int, ...], list[int]] = OrderedDict()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [R, V], -inf for tokens that cannot follow."""
        scores = scores.clone()
        for r, row in enumerate(input_ids.tolist()):
            ids = [*self._head(tuple(row[: self.prompt_length])), *row[self.prompt_length :]]
            blocked = torch.from_numpy(~self.allowed(ids)).to(scores.device)
            left = scores[r, : len(blocked)].masked_fill(blocked, -torch.inf)
            if torch.isneginf(left).all():
                if self.on_empty == "raise":
                    raise ValueError(f"row {r} has no canonical token left after {ids[-8:]}")
                self.released += 1
                continue
            self.masked += int((blocked & scores[r, : len(blocked)].isfinite()).sum())
            scores[r, : len(blocked)] = left
            scores[r, len(blocked) :] = -torch.inf
        return scores

    def allowed(self, ids: Sequence[int]) -> np.ndarray:
        """Bool [V]: tokens that may follow `ids`, of which the part behind the last special token counts."""
        text = self._text_part(ids)
        data = b"".join(self.vocabulary.pieces[token] or b"" for token in text)
        mask = self.canonical.followers(text, data).copy()
        mask[self._special] = not text or self.canonical.is_own(text, data)  # a special token ends a text
        return mask

    def _text_part(self, ids: Sequence[int]) -> list[int]:
        size = len(ids)
        while size and 0 <= ids[size - 1] < self.vocabulary.size and self.vocabulary.pieces[ids[size - 1]]:
            size -= 1
        return list(ids[size:])

    def _head(self, prompt: tuple[int, ...]) -> list[int]:
        """The part of a prompt that is read together with the output."""
        if not self.joined:
            return []
        if prompt not in self._heads:
            text = self._text_part(prompt)
            data = b"".join(self.vocabulary.pieces[token] or b"" for token in text)
            self._heads[prompt] = text if not text or self._is_beginning(text, data) else []
            if len(self._heads) > 256:
                self._heads.popitem(last=False)
        return self._heads[prompt]

    def _is_beginning(self, ids: list[int], data: bytes) -> bool:
        return _valid(data) and ids in self.canonical.tips(data)


def _valid(data: bytes) -> bool:
    try:
        split_partial(data)
    except ValueError:
        return False
    return True
