"""Questions about a canvas, their answers, and the objects that each of them needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenry.lab.beds.pictures.canvas import COLOUR_NAMES, THING_NAMES, ZONES, Canvases

FAMILY: dict[str, str] = {
    "digit_of_color": "one region",
    "color_of_digit": "one region",
    "thing_in_zone": "one region",
    "zone_of_thing": "one region",
    "number_of_color": "one region",
    "exists": "one region",
    "relation": "several regions",
    "larger": "several regions",
    "count": "counting",
}
KINDS: tuple[str, ...] = tuple(FAMILY)
NAMES: tuple[str, ...] = (*(str(digit) for digit in range(10)), *THING_NAMES, "number")
_EDGE = 3.0  # pixels: a place this near to the border of two zones is not asked about
_APART = 14.0  # pixels: least difference of two centres that are compared


@dataclass(frozen=True)
class Question:
    """One question: the text, its answer, its kind (a key of FAMILY) and the numbers of the objects it needs."""

    text: str
    answer: str
    kind: str
    objects: tuple[int, ...]


@dataclass(frozen=True)
class _Thing:
    number: int
    name: str
    colour: str
    value: int
    row: float
    column: float
    zone: str
    clear: bool

    @property
    def family(self) -> str:
        return "digit" if self.name.isdigit() else "number" if self.name == "number" else "thing"


_Ask = Callable[[list[_Thing], random.Random], Question | None]


def questions(canvases: Canvases, index: int, rng: random.Random, count: int, kinds: Sequence[str] = KINDS) -> list[Question]:
    """`count` questions about one picture, kinds in random order and as evenly as the picture allows."""
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds={list(kinds)}: choose from {list(KINDS)}")
    things = _things(canvases, index)
    drawn: list[Question] = []
    order: list[str] = []
    misses = 0
    while len(drawn) < count:
        order = order or rng.sample(list(kinds), len(kinds))
        question = _ASK[order.pop()](things, rng)
        misses = misses + 1 if question is None else 0
        if misses > 3 * len(kinds):
            raise ValueError(f"kinds={list(kinds)}: none of them can be asked about picture {index}")
        if question is not None:
            drawn.append(question)
    return drawn


def ask(canvases: Canvases, index: int, rng: random.Random, kind: str) -> Question | None:
    """A question of one kind about one picture, or None when the picture does not allow it."""
    if kind not in _ASK:
        raise ValueError(f"kind={kind!r}: choose from {list(KINDS)}")
    return _ASK[kind](_things(canvases, index), rng)


def _things(canvases: Canvases, index: int) -> list[_Thing]:
    there = canvases.there[index].nonzero()[:, 0].tolist()
    classes, colours, values = (x[index].tolist() for x in (canvases.classes, canvases.colours, canvases.values))
    centres = (canvases.centres()[index] * canvases.spec.size).tolist()
    third = canvases.spec.size / 3
    found = []
    for k in there:
        row, column = centres[k]
        clear = all(abs(x - border) >= _EDGE for x in (row, column) for border in (third, 2 * third))
        zone = ZONES[min(int(row / third), 2) * 3 + min(int(column / third), 2)]
        colour = COLOUR_NAMES[colours[k]] if colours[k] >= 0 else ""
        found.append(_Thing(k, NAMES[classes[k]], colour, values[k], row, column, zone, clear))
    return found


def _single(things: list[_Thing], *fields: str) -> list[_Thing]:
    """Those that no other shares these fields with."""
    keys = [tuple(getattr(t, field) for field in fields) for t in things]
    return [t for t, key in zip(things, keys, strict=True) if keys.count(key) == 1]


def _of_family(things: list[_Thing], *families: str) -> list[_Thing]:
    return [t for t in things if t.family in families]


def _digit_of_color(things: list[_Thing], rng: random.Random) -> Question | None:
    found = _single(_of_family(things, "digit"), "colour")
    if not found:
        return None
    t = rng.choice(found)
    return Question(f"what digit is {t.colour}", t.name, "digit_of_color", (t.number,))


def _color_of_digit(things: list[_Thing], rng: random.Random) -> Question | None:
    found = _single(_of_family(things, "digit"), "name")
    if not found:
        return None
    t = rng.choice(found)
    return Question(f"what color is {t.name}", t.colour, "color_of_digit", (t.number,))


def _number_of_color(things: list[_Thing], rng: random.Random) -> Question | None:
    found = _single(_of_family(things, "number"), "colour")
    if not found:
        return None
    t = rng.choice(found)
    return Question(f"what number is {t.colour}", f"{t.value:02d}", "number_of_color", (t.number,))


def _thing_in_zone(things: list[_Thing], rng: random.Random) -> Question | None:
    unclear = any(not t.clear for t in things)  # it might be seen in the zone that is asked about
    found = [t for t in _single(things, "zone") if t.family != "number"]
    if unclear or not found:
        return None
    t = rng.choice(found)
    return Question(f"what is in {t.zone}", t.name, "thing_in_zone", (t.number,))


def _zone_of_thing(things: list[_Thing], rng: random.Random) -> Question | None:
    found = [t for t in _single(things, "name") if t.clear and t.family != "number"]
    if not found:
        return None
    t = rng.choice(found)
    return Question(f"where is {t.name}", t.zone, "zone_of_thing", (t.number,))


def _exists(things: list[_Thing], rng: random.Random) -> Question | None:
    named = _of_family(things, "thing")
    present = sorted({t.name for t in named})
    if present and rng.random() < 0.5:
        name = rng.choice(present)
        return Question(f"is there {name}", "yes", "exists", tuple(t.number for t in named if t.name == name))
    name = rng.choice([name for name in THING_NAMES if name not in present])
    # to deny it, everything that is there must be seen
    return Question(f"is there {name}", "no", "exists", tuple(t.number for t in things))


def _relation(things: list[_Thing], rng: random.Random) -> Question | None:
    found = [t for t in _single(things, "name") if t.family != "number"]
    if len(found) < 2:
        return None
    a, b = rng.sample(found, 2)
    word, axis = rng.choice((("left of", "column"), ("above", "row")))
    first, second = getattr(a, axis), getattr(b, axis)
    if abs(first - second) < _APART:
        return None
    return Question(f"is {a.name} {word} {b.name}", "yes" if first < second else "no", "relation", (a.number, b.number))


def _larger(things: list[_Thing], rng: random.Random) -> Question | None:
    found = _single(_of_family(things, "digit"), "colour")
    if len(found) < 2:
        return None
    a, b = rng.sample(found, 2)
    if a.name == b.name:
        return None
    answer = "yes" if int(a.name) > int(b.name) else "no"
    return Question(f"is {a.colour} larger than {b.colour}", answer, "larger", (a.number, b.number))


def _count(things: list[_Thing], rng: random.Random) -> Question | None:
    family = rng.choice(("digit", "thing"))
    found = _of_family(things, family)
    if not found:
        return None
    return Question(f"how many {family}s", str(len(found)), "count", tuple(t.number for t in found))


_ASK: dict[str, _Ask] = {
    "digit_of_color": _digit_of_color,
    "color_of_digit": _color_of_digit,
    "thing_in_zone": _thing_in_zone,
    "zone_of_thing": _zone_of_thing,
    "number_of_color": _number_of_color,
    "exists": _exists,
    "relation": _relation,
    "larger": _larger,
    "count": _count,
}
