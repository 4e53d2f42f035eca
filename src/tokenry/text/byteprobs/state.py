"""The covers of a byte string, kept as ranges of the sorted vocabulary, and their step by one byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_int
from tokenry.text.byteprobs.covers import Cover, Covers, Group, Tip


class ByteState:
    """What a `ByteLM` knows after some bytes. `advance` moves it in place and returns it; `copy` branches.

    Attributes:
        data: the bytes so far, as the tokens spell them (a prefix space of the tokenizer included).
        rules: the covers' rules and scores.
        specials: ids of the outcomes behind the 256 bytes.
        context: ids before the text (the beginning-of-sequence token, or what the caller fixed).
    """

    def __init__(
        self,
        rules: Covers,
        specials: np.ndarray,
        data: bytes,
        context: tuple[int, ...],
        groups: list[Group],
        tips: list[Tip],
    ) -> None:
        self.rules = rules
        self.specials = specials
        self.data = data
        self.context = context
        self._open = groups
        self._tips = tips
        self._fresh: list[tuple[Group, np.ndarray]] | None = None

    def copy(self) -> ByteState:
        """An independent state at the same place."""
        twin = ByteState(self.rules, self.specials, self.data, self.context, list(self._open), list(self._tips))
        twin._fresh = self._fresh
        return twin

    @property
    def text(self) -> bytes:
        """The bytes so far, without the tokenizer's prefix space."""
        return self.data.removeprefix(self.rules.vocabulary.prefix)

    @property
    def tips(self) -> list[Tip]:
        """The encodings of exactly the bytes so far; nearly always one."""
        return list(self._tips)

    def covers(self) -> list[Cover]:
        """Covers of the bytes so far: (ids, bytes of the last token that are still to come, log P(ids)).

        Ids are counted from the first token of the text; log-probabilities are natural and given the context. Covers of
        probability zero are left out.
        """
        pieces, ids = self.rules.vocabulary.pieces, self.rules.vocabulary.trie.ids
        found: list[Cover] = [(list(tip.ids), b"", tip.log_prob) for tip in self._tips]
        for group in self._open:
            for place in np.flatnonzero(group.weight):
                token = int(ids[group.low + place])
                left = (pieces[token] or b"")[group.depth :]
                found.append(([*group.ids, token], left, group.log_prob + float(np.log(group.weight[place]))))
        return found

    def log_prob(self) -> float:
        """Log P(bytes so far | context), natural; -inf where no cover has mass."""
        parts = [tip.log_prob for tip in self._tips]
        for group in self._open:
            mass = float(group.weight.sum())
            if mass:
                parts.append(group.log_prob + float(np.log(mass)))
        return float(np.logaddexp.reduce(parts)) if parts else -float("inf")

    def pending(self) -> list[tuple[int, ...]]:
        """Token paths that the model has to run before the next distribution is known."""
        return [self.context + tip.ids for tip in self._tips] if self._fresh is None else []

    def receive(self, rows: list[np.ndarray]) -> None:
        """Take log-probabilities [V] of the next token after every pending path."""
        rules, trie = self.rules, self.rules.vocabulary.trie
        self._fresh = []
        for tip, row in zip(self._tips, rows, strict=True):
            weight = np.exp(row.astype(np.float64))
            kept = np.where(rules.followers(tip.ids, self.data), weight, 0.0)[trie.ids]
            self._fresh.append((Group(tip.ids, tip.log_prob, kept, 0, len(trie), 0), weight[self.specials]))

    def scores(self) -> Tensor:
        """Unnormalised next-symbol scores S [256 + specials], float64, scaled so that the largest term is 1."""
        if self._fresh is None:
            evaluate([self])
        groups = self._open + [group for group, _ in self._fresh or ()]
        shift = max((group.log_prob for group in groups), default=-np.inf)
        total = np.zeros(256 + len(self.specials))
        for group in groups:
            byte = self.rules.vocabulary.trie.next_bytes(group.low, group.high, group.depth)
            total[:256] += np.exp(group.log_prob - shift) * np.bincount(byte, group.weight, minlength=256)
        for group, special in self._fresh or ():
            total[256:] += np.exp(group.log_prob - shift) * special
        return torch.from_numpy(total)

    def next_probs(self) -> Tensor:
        """Distribution of the next symbol, float64 [256 + specials], bytes first, then `specials` in their order.

        Raises:
            ValueError: the bytes so far have probability zero under the model.
        """
        scores = self.scores()
        mass = scores.sum()
        if not mass > 0:
            raise ValueError(f"prompt must have a probability above zero under the model, got 0 for {self.text[-40:]!r}")
        return scores / mass

    def advance(self, byte: int) -> ByteState:
        """Go on by one byte, in place; returns self.

        Raises:
            TypeError, ValueError: `byte` is no integer in 0..255, or has probability zero here.
        """
        check_int("byte", byte, minimum=0, maximum=255)
        if self._fresh is None:
            evaluate([self])
        trie, data = self.rules.vocabulary.trie, self.data + bytes([byte])
        groups, tips = [], []
        for group in self._open + [group for group, _ in self._fresh or ()]:
            following = trie.next_bytes(group.low, group.high, group.depth)
            first, last = np.searchsorted(following, byte, "left"), np.searchsorted(following, byte, "right")
            low, depth = group.low + int(first), group.depth + 1
            weight = group.weight[first:last]
            exact = int((trie.lengths[low : low + len(weight)] == depth).sum())
            for place in np.flatnonzero(weight[:exact]):
                token = int(trie.ids[low + place])
                tips.append(Tip((*group.ids, token), group.log_prob + float(np.log(weight[place]))))
            if weight[exact:].any():
                groups.append(Group(group.ids, group.log_prob, weight[exact:].copy(), low + exact, low + len(weight), depth))
        tips = self.rules.choose_tips(tips, data)
        if not groups and not tips:
            raise ValueError(
                f"byte must have a probability above zero here, got {byte} ({bytes([byte])!r}) after {self.text[-20:]!r}"
            )
        self.data, self._open, self._tips, self._fresh = data, groups, tips, None
        return self


def evaluate(states: Sequence[ByteState]) -> None:
    """Run the model once for everything that `states`, all of one byte model, wait for."""
    waiting = [state for state in states if state._fresh is None]
    pending = [state.pending() for state in waiting]
    paths = [path for own in pending for path in own]
    rows = [rows[-1].numpy() for rows in waiting[0].rules.scorer.run(paths, [1] * len(paths))] if paths else []
    for state, own in zip(waiting, pending, strict=True):
        state.receive(rows[: len(own)])
        rows = rows[len(own) :]
