"""Scoring of short answers."""

from __future__ import annotations

import re


def matches(prediction: str, answer: str) -> float:
    """1.0 if the answer occurs in the prediction as whole words, case and punctuation aside, else 0.0."""
    said, wanted = (re.sub(r"[^\w]+", " ", text.lower()).strip() for text in (prediction, answer))
    return float(bool(wanted) and f" {wanted} " in f" {said} ")
