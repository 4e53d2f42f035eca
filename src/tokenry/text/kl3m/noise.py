"""Errors like those of optical character recognition and typing, and the alignment of a text with its noisy form."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenry.core.checks import check_choice, check_range

ERRORS = ("confusion", "substitution", "deletion", "insertion", "transposition", "space_lost", "space_added", "case")
# What scanners mistake for one another; both directions are used.
_CONFUSED = (("rn", "m"), ("cl", "d"), ("vv", "w"), ("l", "1"), ("I", "l"), ("O", "0"), ("S", "5"), ("B", "8"), ("e", "c"),
             ("h", "b"), ("i", "j"), ("u", "v"), ("n", "ri"), ("Z", "2"), ("g", "q"), ("f", "t"), (",", "."))  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def corrupt(text: str, rate: float, *, errors: Sequence[str] = ERRORS, seed: int = 0) -> str:
    """The text with about `rate` errors per character, drawn from the kinds in `errors`.

    Kinds: look-alikes (``rn`` for ``m``), another letter, a lost letter, a doubled or foreign letter, two letters in the wrong
    order, a lost space, an added space, the wrong case. A kind that does not fit a place is drawn again.

    Raises:
        ValueError: a rate outside [0, 1], no kinds, or an unknown one.
    """
    check_range("rate", rate, 0.0, 1.0)
    if isinstance(errors, str) or not errors:
        raise ValueError("errors must be a collection of at least one kind")
    for kind in errors:
        check_choice("errors", kind, ERRORS)
    draw, out, place = random.Random(seed), [], 0
    while place < len(text):
        made, used = _error(text, place, errors, draw) if draw.random() < rate else (text[place], 1)
        out.append(made)
        place += used
    return "".join(out)


def _error(text: str, place: int, errors: Sequence[str], draw: random.Random) -> tuple[str, int]:
    """(what is written, characters read) for one error at a place; the character itself when no kind fits."""
    for kind in draw.sample(list(errors), len(errors)):
        found = _attempt(kind, text, place, draw)
        if found is not None:
            return found
    return text[place], 1


def _attempt(kind: str, text: str, place: int, draw: random.Random) -> tuple[str, int] | None:
    here, after = text[place], text[place + 1 : place + 2]
    if kind == "confusion":
        pairs = [*_CONFUSED, *((b, a) for a, b in _CONFUSED)]
        fitting = [(new, len(old)) for old, new in pairs if text.startswith(old, place)]
        return draw.choice(fitting) if fitting else None
    if kind == "space_lost":
        return ("", 1) if here == " " else None
    if not here.isalnum():
        return None
    if kind == "transposition":
        return (after + here, 2) if after.isalnum() and after != here else None
    if kind == "case":
        return (here.swapcase(), 1) if here.swapcase() != here else None
    return {
        "substitution": (draw.choice([c for c in _LETTERS if c != here]), 1),
        "deletion": ("", 1),
        "insertion": (here + draw.choice([here, *_LETTERS]), 1),
        "space_added": (here + " ", 1),
    }[kind]


def align(first: str, second: str) -> list[tuple[int, int]]:
    """Positions (i, j) of characters that one shortest edit script leaves unchanged, ascending.

    Insertions, deletions and substitutions cost 1. Takes O(len(first) * len(second)) steps, equal beginnings and ends left out.
    """
    start = 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    end = 0
    while end < min(len(first), len(second)) - start and first[-1 - end] == second[-1 - end]:
        end += 1
    a, b = first[start : len(first) - end], second[start : len(second) - end]
    table = _distances(a, b)
    pairs, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1] and table[i][j] == table[i - 1][j - 1]:
            i, j = i - 1, j - 1
            pairs.append((start + i, start + j))
        elif table[i][j] == table[i - 1][j - 1] + 1:
            i, j = i - 1, j - 1
        elif table[i][j] == table[i - 1][j] + 1:
            i -= 1
        else:
            j -= 1
    head = [(k, k) for k in range(start)]
    tail = [(len(first) - k, len(second) - k) for k in range(end, 0, -1)]
    return head + pairs[::-1] + tail


def _distances(a: str, b: str) -> list[list[int]]:
    table = [list(range(len(b) + 1))]
    for i, letter in enumerate(a, start=1):
        row, above = [i], table[-1]
        for j, other in enumerate(b, start=1):
            row.append(above[j - 1] if letter == other else 1 + min(above[j - 1], above[j], row[j - 1]))
        table.append(row)
    return table
