"""Covers of a byte string: token sequences whose last token reaches over its end, found and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokenry.hosts.paths import PathScorer
from tokenry.hosts.text import ByteVocabulary, split_partial

_CONTINUES = bytes(range(0x80, 0xC0))
Cover = tuple[list[int], bytes, float]


@dataclass(frozen=True)
class Group:
    """Covers that share all tokens but the last: the tokens of the range [low, high) of the trie behind `ids`.

    `depth` bytes of the last token lie inside the text. `weight` [high - low] is P(token | ids), 0 for tokens that cannot
    follow; `log_prob` is log P(ids).
    """

    ids: tuple[int, ...]
    log_prob: float
    weight: np.ndarray
    low: int
    high: int
    depth: int


@dataclass(frozen=True)
class Tip:
    """An encoding of exactly the text so far and its log-probability."""

    ids: tuple[int, ...]
    log_prob: float


class Covers:
    """Which covers a byte string has under a vocabulary, and what a model gives them (section 3 of the paper).

    Args:
        vocabulary: whose tokens they are.
        scorer: the model.
        valid_only: only what the tokenizer itself produces; False: every token may follow.
    """

    def __init__(self, vocabulary: ByteVocabulary, scorer: PathScorer, *, valid_only: bool) -> None:
        self.vocabulary = vocabulary
        self.scorer = scorer
        self.valid_only = valid_only
        self._canonical = vocabulary.canonical

    def of(self, data: bytes, context: tuple[int, ...]) -> tuple[list[Group], list[Tip]]:
        """All covers of `data` from scratch: every valid beginning plus a token that reaches over the end."""
        if not data:
            return [], [Tip((), 0.0)]
        found = []
        for place, low, high in self.vocabulary.trie.suffix_spans(data):
            found += [(tuple(ids), place, low, high) for ids in self._canonical.tips(data[:place])]
        groups, tips = self._groups(found, data, context)
        return groups, self.followed(tips, data)

    def _groups(
        self, found: list[tuple[tuple[int, ...], int, int, int]], data: bytes, context: tuple[int, ...]
    ) -> tuple[list[Group], list[Tip]]:
        """Score the beginnings `found` (ids, split, range of last tokens) and keep the last tokens that can follow."""
        trie = self.vocabulary.trie
        masks = [self.followers(ids, data[:place])[trie.ids[low:high]] for ids, place, low, high in found]
        found = [entry for entry, mask in zip(found, masks, strict=True) if mask.any()]
        masks = [mask for mask in masks if mask.any()]
        paths = [context + ids for ids, *_ in found]
        groups: list[Group] = []
        tips: list[Tip] = []
        for (ids, place, low, high), mask, (score, row) in zip(found, masks, self.score(paths, len(context)), strict=True):
            depth = len(data) - place
            weight = np.where(mask, np.exp(row[trie.ids[low:high]].astype(np.float64)), 0.0)
            exact = int((trie.lengths[low:high] == depth).sum())
            tips += [
                Tip((*ids, int(trie.ids[low + i])), score + float(np.log(weight[i]))) for i in np.flatnonzero(weight[:exact])
            ]
            if weight[exact:].any():
                groups.append(Group(ids, score, weight[exact:], low + exact, high, depth))
        return groups, tips

    def score(self, paths: list[tuple[int, ...]], given: int) -> list[tuple[float, np.ndarray]]:
        """Log P(path[given:] | path[:given]) and the log-probabilities [V] of the token after it, for every path."""
        if not paths:
            return []
        shared = max(given, min(map(len, paths)))
        while any(path[:shared] != paths[0][:shared] for path in paths):
            shared -= 1
        before = float(self.scorer.token_log_probs(paths[0][:shared])[given - 1 :].sum()) if shared > given else 0.0
        wanted = [len(path) - shared + 1 for path in paths]
        scored = []
        for path, rows in zip(paths, self.scorer.run(paths, wanted), strict=True):
            tokens = torch.tensor(path[shared:], dtype=torch.long)
            inner = float(rows[:-1].double().gather(1, tokens[:, None]).sum()) if len(tokens) else 0.0
            scored.append((before + inner, rows[-1].numpy()))
        return scored

    def followers(self, ids: Sequence[int], data: bytes) -> np.ndarray:
        """Bool [V]: tokens that may follow `ids`, which spells `data`."""
        if self.valid_only:
            return self._canonical.followers(ids, data)
        allowed = np.zeros(self.vocabulary.size, dtype=bool)
        allowed[self.vocabulary.trie.ids] = True
        return allowed

    def followed(self, tips: list[Tip], data: bytes) -> list[Tip]:
        """The encodings of `data` that are followed: the valid ones, in fast mode too."""
        if self.valid_only or not tips or (len(tips) == 1 and self._canonical.is_own(tips[0].ids, data)):
            return tips
        valid = self._canonical.tips(data)
        return [tip for tip in tips if list(tip.ids) in valid]

    def may_end(self, ids: tuple[int, ...], data: bytes) -> bool:
        """Whether the text may end behind `ids`, or a special token cut it: only what encodes `data` alone may stand there."""
        if split_partial(data[-3:].lstrip(_CONTINUES))[1]:
            return False
        return not self.valid_only or self._canonical.is_own(ids, data)

    def goes_on(self, ids: tuple[int, ...], data: bytes, rest: bytes) -> bool:
        """Whether some cover of `data` + `rest` begins with `ids`, which spells `data`."""
        if not rest:
            return True
        trie = self.vocabulary.trie
        low, high = trie.span(rest)
        near = trie.matches(rest)
        if not self.valid_only:
            return trie.index_after(rest, low, high) < high
        if not near and low == high:
            return False
        mask = self.followers(ids, data)
        if mask[trie.ids[low:high]].any():
            return True
        return any(mask[token] and self.goes_on((*ids, token), data + rest[:n], rest[n:]) for n, token in near)
