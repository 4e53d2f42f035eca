"""A user's own images and questions: ``questions.csv`` or ``questions.jsonl`` beside the images.

Columns (CSV header) or keys (one JSON object a line): ``image`` (file name relative to the folder), ``question``, ``answer``.
An empty answer is scored by agreement with the unpruned model.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMES = ("questions.csv", "questions.jsonl", "questions.json")


@dataclass(frozen=True)
class ImageQuestion:
    """One item: path of the image (or a PIL image), question, expected answer (empty = unknown), kind for breakdowns."""

    image: Any
    question: str
    answer: str
    kind: str = ""


def read_questions(folder: Path, limit: int) -> list[ImageQuestion]:
    """The first `limit` items of a folder.

    Raises:
        FileNotFoundError: no questions file, or an image that is not there.
        ValueError: a row without image or question; the message holds the line.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"--data must be a folder of images with a questions file (or a .txt file), got {folder}")
    found = [folder / name for name in _NAMES if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join(_NAMES)}: one row per question with image, question, answer"
        )
    items = []
    for number, row in enumerate(_rows(found[0])[:limit], start=1):
        missing = [key for key in ("image", "question") if not str(row.get(key) or "").strip()]
        if missing:
            raise ValueError(f"{found[0]}, item {number}: {missing[0]} is missing or empty, got {row}")
        image = folder / str(row["image"])
        if not image.is_file():
            raise FileNotFoundError(f"{found[0]}, item {number}: there is no image {image}")
        items.append(ImageQuestion(image, str(row["question"]), str(row.get("answer") or ""), str(row.get("kind") or "")))
    if not items:
        raise ValueError(f"{found[0]} holds no questions")
    return items


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
