"""The covers of a byte string, kept as ranges of the sorted vocabulary, and their step by one byte.

A tip is an encoding of exactly some bytes; what may follow it takes a run of the model. It is left waiting until that can
matter: its mass is known and bounds all that its covers can hold, so most bytes are chosen, exactly, without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_int
from tokenry.hosts.path_runs import PathRequest, Steps, drive
from tokenry.text.byteprobs.covers import Cover, Covers, Group, Tip
from tokenry.text.byteprobs.sampling import choose


@dataclass(frozen=True)
class Waiting:
    """A tip that the model has not been run on, and what was appended since.

    `rest`: bytes since the tip; tokens [low, high) of the trie begin with them and are longer. `log_prob` is the tip's own.
    """

    ids: tuple[int, ...]
    log_prob: float
    rest: bytes
    low: int
    high: int


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
        self._waiting = [self._wait(tip.ids, tip.log_prob, b"") for tip in tips]
        self._fresh: list[tuple[Tip, Group, np.ndarray]] = []

    def _wait(self, ids: tuple[int, ...], log_prob: float, rest: bytes) -> Waiting:
        trie = self.rules.vocabulary.trie
        low, high = trie.span(rest)
        return Waiting(ids, log_prob, rest, trie.index_after(rest, low, high), high)

    def copy(self) -> ByteState:
        """An independent state at the same place."""
        twin = ByteState(self.rules, self.specials, self.data, self.context, list(self._open), [])
        twin._waiting, twin._fresh = list(self._waiting), list(self._fresh)
        return twin

    @property
    def text(self) -> bytes:
        """The bytes so far, without the tokenizer's prefix space."""
        return self.data.removeprefix(self.rules.vocabulary.prefix)

    @property
    def tips(self) -> list[Tip]:
        """The encodings of exactly the bytes so far; nearly always one."""
        drive([self.settle(tips=False)])
        return [tip for tip, *_ in self._fresh] + [Tip(w.ids, w.log_prob) for w in self._waiting]

    def covers(self) -> list[Cover]:
        """Covers of the bytes so far: (ids, bytes of the last token that are still to come, log P(ids)).

        Ids are counted from the first token of the text; log-probabilities are natural and given the context. Covers of
        probability zero are left out.
        """
        found: list[Cover] = [(list(tip.ids), b"", tip.log_prob) for tip in self.tips]
        pieces, ids = self.rules.vocabulary.pieces, self.rules.vocabulary.trie.ids
        for group in self._open:
            for place in np.flatnonzero(group.weight):
                token = int(ids[group.low + place])
                left = (pieces[token] or b"")[group.depth :]
                found.append(([*group.ids, token], left, group.log_prob + float(np.log(group.weight[place]))))
        return found

    def log_prob(self) -> float:
        """Log P(bytes so far | context), natural; -inf where no cover has mass."""
        parts = [tip.log_prob for tip in self.tips]
        parts += [group.log_prob + math.log(mass) for group in self._open if (mass := float(group.weight.sum()))]
        return float(np.logaddexp.reduce(parts)) if parts else -float("inf")

    def scores(self) -> Tensor:
        """Unnormalised next-symbol scores S [256 + specials], float64, scaled so that the largest term is 1."""
        drive([self.settle()])
        return torch.from_numpy(self.known()[0])

    def next_probs(self) -> Tensor:
        """Distribution of the next symbol, float64 [256 + specials], bytes first, then `specials` in their order.

        Raises:
            ValueError: the bytes so far have probability zero under the model.
        """
        scores = self.scores()
        mass = scores.sum()
        if not mass > 0:
            raise self.impossible()
        return scores / mass

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """S of the covers at hand [256 + specials], and the mass of every tip that waits, which bounds what it adds to S.

        Both are scaled alike, so that the largest term is 1. No run is made.
        """
        groups = self._open + [group for _, group, _ in self._fresh]
        shift = max([group.log_prob for group in groups] + [w.log_prob for w in self._waiting], default=-np.inf)
        total = np.zeros(256 + len(self.specials))
        for group in groups:
            total[:256] += np.exp(group.log_prob - shift) * self._by_byte(group)
        for tip, _, special in self._fresh:
            total[256:] += np.exp(tip.log_prob - shift) * special
        return total, np.exp(np.array([w.log_prob for w in self._waiting]) - shift)

    def _by_byte(self, group: Group) -> np.ndarray:
        byte = self.rules.vocabulary.trie.next_bytes(group.low, group.high, group.depth)
        return np.bincount(byte, group.weight, minlength=256)

    def advance(self, byte: int) -> ByteState:
        """Go on by one byte, in place; returns self.

        Raises:
            TypeError, ValueError: `byte` is no integer in 0..255, or has probability zero here.
        """
        check_int("byte", byte, minimum=0, maximum=255)
        moved = self.copy()
        moved._step(byte)
        if not moved._open and not any(moved.alive(place) for place in reversed(range(len(moved._waiting)))):
            text = self.text[-20:]
            raise ValueError(f"byte must have a probability above zero here, got {byte} ({bytes([byte])!r}) after {text!r}")
        self.data, self._open, self._waiting, self._fresh = moved.data, moved._open, moved._waiting, []
        return self

    def _step(self, byte: int) -> None:
        data, waiting = self.data + bytes([byte]), [kept for w in self._waiting if (kept := self._appended(w, byte))]
        groups, tips = [], []
        for group in self._open + [group for _, group, _ in self._fresh]:
            narrow, exact = self._narrowed(group, byte)
            tips += exact
            groups += narrow
        self.data, self._open, self._fresh = data, groups, []
        self._waiting = waiting + [self._wait(tip.ids, tip.log_prob, b"") for tip in self.rules.followed(tips, data)]

    def _narrowed(self, group: Group, byte: int) -> tuple[list[Group], list[Tip]]:
        """What of a group agrees with one more byte, and the tips it ends in."""
        trie = self.rules.vocabulary.trie
        first, last = trie.with_next_byte(group.low, group.high, group.depth, byte)
        low, depth, weight = first, group.depth + 1, group.weight[first - group.low : last - group.low]
        exact = int((trie.lengths[low:last] == depth).sum())
        tips = [
            Tip((*group.ids, int(trie.ids[low + i])), group.log_prob + float(np.log(weight[i])))
            for i in np.flatnonzero(weight[:exact])
        ]
        if not weight[exact:].any():
            return [], tips
        return [Group(group.ids, group.log_prob, weight[exact:].copy(), low + exact, last, depth)], tips

    def _appended(self, waiting: Waiting, byte: int) -> Waiting | None:
        """The tip after one more byte; None when no cover of the text goes through it any more."""
        trie, depth = self.rules.vocabulary.trie, len(waiting.rest)
        low, high = trie.with_next_byte(waiting.low, waiting.high, depth, byte)
        low += int((trie.lengths[low:high] == depth + 1).sum())
        kept = replace(waiting, rest=waiting.rest + bytes([byte]), low=low, high=high)
        return kept if low < high or self.rules.goes_on(kept.ids, self.data[: len(self.data) - depth], kept.rest) else None

    @property
    def waiting(self) -> list[Waiting]:
        """The tips that wait for a run; `known` gives their masses in this order."""
        return self._waiting

    def alive(self, place: int) -> bool:
        """Whether some cover of the text goes through a waiting tip; it is dropped otherwise."""
        waiting = self._waiting[place]
        if self.rules.goes_on(waiting.ids, self._before(waiting), waiting.rest):
            return True
        self._waiting = [w for i, w in enumerate(self._waiting) if i != place]
        return False

    def prune(self) -> bool:
        """Drop the tips that no cover goes through; whether there was one."""
        count = len(self._waiting)
        self._waiting = [w for w in self._waiting if self.rules.goes_on(w.ids, self._before(w), w.rest)]
        return len(self._waiting) < count

    def impossible(self) -> ValueError:
        """The error for bytes that the model cannot produce."""
        return ValueError(f"prompt must have a probability above zero under the model, got 0 for {self.text[-40:]!r}")

    def choose(self, *, temperature: float = 1.0, top_p: float = 1.0, generator: torch.Generator | None = None) -> Steps[int]:
        """The next symbol; see `tokenry.text.byteprobs.sampling.choose`."""
        return choose(self, temperature=temperature, top_p=top_p, generator=generator)

    def settle(self, *, tips: bool = True) -> Steps[None]:
        """Run everything that waits; `tips`: also the encodings of exactly the bytes so far."""
        while chosen := [i for i, w in enumerate(self._waiting) if tips or w.rest]:
            yield from self.expand(chosen)

    def expand(self, chosen: Sequence[int]) -> Steps[list[tuple[np.ndarray, list[Waiting]]]]:
        """Run the model on the waiting tips at these places; for each what it adds to S, and the tips that wait behind it.

        The masses are relative to the tip's own. Newly found tips stand at the end of those that wait.
        """
        waiting = [self._waiting[i] for i in chosen]
        paths = [self.context + w.ids for w in waiting]
        for path in paths:
            self.rules.scorer.check_fits(path)
        self._waiting = [w for i, w in enumerate(self._waiting) if i not in set(chosen)]
        rows = yield PathRequest(self.rules.scorer, paths)
        return [self._receive(w, row) for w, row in zip(waiting, rows, strict=True)]

    def _receive(self, waiting: Waiting, row: np.ndarray) -> tuple[np.ndarray, list[Waiting]]:
        """Take the log-probabilities [V] of the token after a tip."""
        rules, trie, rest = self.rules, self.rules.vocabulary.trie, waiting.rest
        before = self.data[: len(self.data) - len(rest)]
        mask = rules.followers(waiting.ids, before)
        low, high = trie.span(rest)
        low = trie.index_after(rest, low, high)
        ids = trie.ids[low:high]
        weight = np.where(mask[ids], np.exp(row[ids].astype(np.float64)), 0.0)
        group = Group(waiting.ids, waiting.log_prob, weight, low, high, len(rest))
        adds = np.concatenate([self._by_byte(group), np.zeros(len(self.specials))])
        if not rest:
            special = np.exp(row[self.specials].astype(np.float64)) * rules.may_end(waiting.ids, self.data)
            adds[256:] = special
            self._fresh.append((Tip(waiting.ids, waiting.log_prob), group, special))
        elif weight.any():
            self._open.append(group)
        behind = []
        for length, token in trie.matches(rest):
            tip = Tip((*waiting.ids, token), waiting.log_prob + float(row[token]))
            if mask[token] and tip.log_prob > -np.inf and rules.followed([tip], before + rest[:length]):
                behind.append(self._wait(tip.ids, tip.log_prob, rest[length:]))
        behind = [w for w in behind if w.low < w.high or rules.goes_on(w.ids, self._before(w), w.rest)]
        self._waiting += behind
        return adds, behind

    def _before(self, waiting: Waiting) -> bytes:
        return self.data[: len(self.data) - len(waiting.rest)]
