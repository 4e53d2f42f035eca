"""Where a target of the passage stands in the text that a model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from tokenry.text.consistency.spans import Word


def align_targets(
    source: Sequence[Word], written: Sequence[Word], targets: Sequence[int], *, longest: int = 4
) -> list[tuple[int, int] | None]:
    """Words [first, last) of `written` that stand in the place of each target word of `source`, None if none can be told.

    Both sides are matched by difflib on whole words. A target is aligned when the word before it and the word after it (other
    targets skipped) were copied and at most `longest` words stand between their copies; a target that was copied itself needs
    only one of the two neighbours copied. A text that the model dropped, moved or wrote anew is left out, not guessed.
    """
    left, right = [word.text for word in source], [word.text for word in written]
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    copied: dict[int, int] = {}
    for block in matcher.get_matching_blocks():
        copied.update({block.a + i: block.b + i for i in range(block.size)})
    marked = set(targets)
    return [_place(target, copied, marked, len(source), len(written), longest) for target in targets]


def _place(
    target: int, copied: dict[int, int], marked: set[int], source: int, written: int, longest: int
) -> tuple[int, int] | None:
    if target in copied:
        place = copied[target]
        beside = copied.get(target - 1) == place - 1 or copied.get(target + 1) == place + 1
        return (place, place + 1) if beside or source == 1 else None
    before, after = target - 1, target + 1
    # A neighbour that is a target too may have been replaced: one written word is counted for each of them.
    while before in marked and before not in copied:
        before -= 1
    while after in marked and after not in copied:
        after += 1
    if (before >= 0 and before not in copied) or (after < source and after not in copied):
        return None
    first = copied[before] + 1 if before >= 0 else 0
    last = copied[after] if after < source else written
    if before < 0 and after >= source:
        return None
    together = after - before - 1
    if together == 1:
        return (first, last) if 0 < last - first <= longest else None
    if last - first != together:
        return None
    place = first + target - before - 1
    return place, place + 1
