"""The validation loop: measure sizes, fit, choose a target, retrain at the predicted sizes, compare (appendix J)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from tokenry.core.checks import check_int
from tokenry.core.progress import Progress
from tokenry.text.bpe import train_bpe, truncate
from tokenry.text.premium.counting import check_parallel, line_counts
from tokenry.text.premium.power_law import PowerLaw, TargetChoice, choose_target, fit_power_law

Trainer = Callable[[Sequence[str], int], Tokenizer]


@dataclass(frozen=True)
class SizeCurve:
    """Corpus token counts by realised vocabulary size.

    Attributes:
        asked: sizes that were asked for, ascending.
        realised: sizes that training reached (smaller where the text had no pair left).
        counts: corpus token count at each.
    """

    asked: tuple[int, ...]
    realised: tuple[int, ...]
    counts: tuple[int, ...]

    def fit(self) -> PowerLaw:
        """Power law through the realised sizes; sizes that stopped at the same place count once.

        Raises:
            ValueError: fewer than three different sizes were realised.
        """
        points = dict(zip(self.realised, self.counts, strict=True))
        return fit_power_law(list(points), list(points.values()))

    def count_at(self, size: int) -> int:
        """Count at one of the sizes asked for."""
        if size not in self.asked:
            raise ValueError(f"size must be one of {self.asked}, got {size}")
        return self.counts[self.asked.index(size)]


def measure_sizes(
    training: Sequence[str],
    evaluation: Sequence[str],
    sizes: Sequence[int],
    *,
    train: Trainer = train_bpe,
    regex: str | None = None,
) -> SizeCurve:
    """Train at each size and count the evaluation lines.

    Plain BPE is trained once, under the split `regex`, at the largest size: its smaller vocabularies are the beginnings of it.

    Raises:
        ValueError: no sizes, or one below 256.
    """
    if not len(sizes):
        raise ValueError("sizes must hold at least one size")
    asked = tuple(sorted({check_int("sizes", int(size), 256) for size in sizes}))
    if train is train_bpe:
        largest = train_bpe(training, asked[-1], regex=regex)
        tokenizers = [truncate(largest, size) for size in asked]
    else:
        tokenizers = [train(training, size) for size in asked]
    counts = tuple(int(line_counts(tokenizer, evaluation).sum()) for tokenizer in tokenizers)
    return SizeCurve(asked, tuple(t.get_vocab_size() for t in tokenizers), counts)


@dataclass(frozen=True)
class Validation:
    """What retraining at the predicted sizes gave.

    Attributes:
        laws: fit per language.
        choice: target, sizes and predictions.
        realised: size per language that retraining reached.
        actual: corpus token count per language there.
        rmse: root mean square of actual - predicted over all languages, in tokens.
        rmse_reached: the same over the languages whose target lies inside the range; nan when there are none.
        tokenizers: the retrained ones.
    """

    laws: dict[str, PowerLaw]
    choice: TargetChoice
    realised: dict[str, int]
    actual: dict[str, int]
    rmse: float
    rmse_reached: float
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict, repr=False, compare=False)

    @property
    def reached(self) -> tuple[str, ...]:
        """Languages whose target lies inside the range."""
        return tuple(name for name, reach in self.choice.reach.items() if reach == "reached")


def validate_vocabularies(
    laws: Mapping[str, PowerLaw],
    training: Mapping[str, Sequence[str]],
    evaluation: Mapping[str, Sequence[str]],
    targets: Sequence[float],
    *,
    minimum: int,
    maximum: int,
    multiple: int = 1,
    train: Trainer = train_bpe,
) -> Validation:
    """Choose the target of least predicted variance, retrain every language at its size and compare with the prediction.

    Args:
        laws: fit per language.
        training: language -> training texts.
        evaluation: language -> parallel evaluation lines.
        targets: counts to try.
        minimum: smallest vocabulary.
        maximum: largest vocabulary.
        multiple: sizes are multiples of this.
        train: trainer, called with texts and a size.

    Raises:
        ValueError: a language is missing in `training` or `evaluation`; see also `choose_target`.
    """
    check_parallel(evaluation)
    for language in laws:
        if language not in training or language not in evaluation:
            raise ValueError(f"training and evaluation must hold every language of laws, {language!r} is missing")
    choice = choose_target(laws, targets, minimum=minimum, maximum=maximum, multiple=multiple)
    realised, actual, tokenizers = {}, {}, {}
    for language in laws:
        tokenizer = tokenizers[language] = train(training[language], int(choice.sizes[language]))
        realised[language] = tokenizer.get_vocab_size()
        actual[language] = int(line_counts(tokenizer, evaluation[language]).sum())
    errors = {name: actual[name] - choice.predicted[name] for name in laws}
    reached = [errors[name] for name, reach in choice.reach.items() if reach == "reached"]
    return Validation(dict(laws), choice, realised, actual, _rms(list(errors.values())), _rms(reached), tokenizers)


def even_vocabularies(
    training: Mapping[str, Sequence[str]],
    choosing: Mapping[str, Sequence[str]],
    sizes: Sequence[int],
    *,
    targets: int = 25,
    dearest: float | None = None,
    multiple: int = 1,
    train: Trainer = train_bpe,
    progress: Progress | None = None,
) -> Validation:
    """The whole loop: measure every language at `sizes`, fit, choose the target of least variance, retrain at its sizes.

    Args:
        training: language -> training texts.
        choosing: language -> parallel lines that the sizes are chosen by; count on others what came of it.
        sizes: at least three; the smallest and the largest bound the result.
        targets: counts that are tried, evenly from the languages' mean at the largest size to that at the smallest.
        dearest: try no count above this one; the least variance alone may make every language as dear as the dearest.
        multiple: sizes are multiples of this.
        train: trainer, called with texts and a size.
        progress: told the language that is measured.

    Raises:
        ValueError: fewer than two languages, languages that differ between the texts, or a language whose text is too short
            for three different sizes.
    """
    check_parallel(choosing)
    if set(training) != set(choosing) or len(training) < 2:
        raise ValueError(
            f"training and choosing must hold the same languages, at least two, got {sorted({*training, *choosing})}"
        )
    curves = {}
    for place, language in enumerate(training):
        if progress is not None:
            progress(language, place / len(training))
        curves[language] = measure_sizes(training[language], choosing[language], sizes, train=train)
        if len(set(curves[language].realised)) < 3:
            raise ValueError(
                f"training[{language!r}] is too short: of sizes={curves[language].asked} it reaches {curves[language].realised}"
            )
    best, worst = (float(np.mean([curve.counts[place] for curve in curves.values()])) for place in (-1, 0))
    worst = worst if dearest is None else min(worst, dearest)
    if worst < best:
        raise ValueError(f"dearest must be at least {best:g}, the mean count at the largest size, got {dearest}")
    laws = {language: curve.fit() for language, curve in curves.items()}
    asked = next(iter(curves.values())).asked
    tried = np.linspace(best, worst, check_int("targets", targets, 1)).tolist()
    return validate_vocabularies(
        laws, training, choosing, tried, minimum=asked[0], maximum=asked[-1], multiple=multiple, train=train
    )


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(float(np.square(errors).mean())) if len(errors) else math.nan
