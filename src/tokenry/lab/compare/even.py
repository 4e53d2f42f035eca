"""Tokenizers per language from parallel text: one size for all, or sizes that make the languages pay alike."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenry.core.checks import check_choice, check_int
from tokenry.core.progress import Progress, within
from tokenry.text.premium import (
    dispersion,
    even_vocabularies,
    line_counts,
    token_premium,
    train_bpe,
    train_superword,
)

Lines = dict[str, list[str]]
ALGORITHMS = {"bpe": train_bpe, "superword": train_superword}
SHARES = (0.7, 0.15)  # of the lines: to train on, to choose sizes by; the rest tells what came of it


@dataclass(frozen=True)
class EvenSettings:
    """What to train: `vocab_size` is that of every language, or with `even` the one that even sizes are compared with.

    `sizes` are measured for the curves; None = seven from an eighth of `vocab_size` to four times it. `no_dearer` tries only
    targets that cost the languages together no more than one size for all does.
    """

    vocab_size: int = 4096
    even: bool = False
    no_dearer: bool = False
    algorithm: str = "bpe"
    sizes: tuple[int, ...] | None = None
    multiple: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("--vocab-size", self.vocab_size, 257)
        check_choice("--algorithm", self.algorithm, tuple(ALGORITHMS))
        for size in self.sizes or ():
            check_int("--sizes", size, 257)

    @property
    def measured(self) -> tuple[int, ...]:
        """The sizes that are measured."""
        least = max(288, self.vocab_size // 8)
        return self.sizes or tuple(round(least * (4 * self.vocab_size / least) ** (step / 6)) for step in range(7))


def train_languages(
    lines: Mapping[str, Sequence[str]], settings: EvenSettings, out: Path, progress: Progress
) -> dict[str, Any]:
    """Train on a part of the aligned lines, write ``LANGUAGE/tokenizer.json``, and count lines that nothing has seen.

    Returns, per language: size, tokens and premium at one size, and with `even` also size, reach, tokens and premium of the
    own size; the spread over the languages of both; the target.
    """
    training, choosing, testing = split_lines(lines, settings.seed)
    train = ALGORITHMS[settings.algorithm]
    tokenizers: dict[str, Tokenizer] = {}
    for place, language in enumerate(training):
        progress(f"{language}: {settings.vocab_size}", 0.5 * place / len(training))
        tokenizers[language] = train(training[language], settings.vocab_size)
    report: dict[str, Any] = {"lines": {"training": _size(training), "choosing": _size(choosing), "testing": _size(testing)}}
    report["one size"] = _counted(tokenizers, testing)
    if settings.even:
        told = within(progress, 0.5, 1.0, "sizes of ")
        counts = [int(line_counts(tokenizers[name], texts).sum()) for name, texts in choosing.items()]
        found = even_vocabularies(
            training, choosing, settings.measured, multiple=settings.multiple, train=train, progress=told,
            dearest=sum(counts) / len(counts) if settings.no_dearer else None,
        )  # fmt: skip
        tokenizers = found.tokenizers
        report["own size"] = _counted(tokenizers, testing)
        report |= {"target": found.choice.target, "reach": dict(found.choice.reach), "measured": list(settings.measured)}
    for language, tokenizer in tokenizers.items():
        (out / language).mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(out / language / "tokenizer.json"))
    progress("done", 1.0)
    return report


def split_lines(lines: Mapping[str, Sequence[str]], seed: int) -> tuple[Lines, Lines, Lines]:
    """Aligned lines to train on, to choose by and to test on: the same ones in every language, drawn from `seed`."""
    count = len(next(iter(lines.values())))
    order = random.Random(seed).sample(range(count), count)
    cut, middle = round(SHARES[0] * count), round(sum(SHARES) * count)
    if not 0 < cut < middle < count:
        raise ValueError(f"the corpus must have lines to train on, to choose by and to test on, got {count}")
    parts = (order[:cut], order[cut:middle], order[middle:])
    train, choose, test = ({name: [texts[i] for i in part] for name, texts in lines.items()} for part in parts)
    return train, choose, test


def _size(lines: Lines) -> int:
    return len(next(iter(lines.values())))


def _counted(tokenizers: Mapping[str, Tokenizer], testing: Lines) -> dict[str, Any]:
    counts = {language: int(line_counts(tokenizers[language], testing[language]).sum()) for language in testing}
    spread = dispersion(counts)
    return {
        "sizes": {language: tokenizers[language].get_vocab_size() for language in testing},
        "tokens": counts,
        "premium": token_premium(counts, next(iter(counts))),
        "coefficient of variation": spread.coefficient_of_variation,
        "dearest over cheapest": spread.max_over_min,
    }
