"""Crosslingual inequity: equal training leaves unequal costs; superwords and per-language vocabularies level them.

Real text at scale ``small``: the help of an office program in 30 languages. Every language trains on the same number of bytes
of its paragraphs and is counted on paragraphs that no language has trained on: one part chooses the vocabulary sizes, another
tests everything. Evenness is the paper's measure, the variance of the corpus token counts over languages. Words keep their
combining marks: under the GPT-2 split Khmer reaches a third of its vocabulary, and is nearly all of the variance.

Recorded beside it: interface messages in some 60 languages, under the GPT-2 split and under one that keeps combining marks with
their letters. The GPT-2 split breaks words of Indic scripts at every mark, and superwords mend that; the two together tell how
much of an effect is due to it. Premiums of real tokenizers on both corpora are recorded as well.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenry.core.progress import Progress
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale

Lines = dict[str, list[str]]
Facts = dict[str, float | str]
# The GPT-2 split with combining marks counted as letters.
MARKS_REGEX = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"


class PremiumClaim(Claim):
    """Spread of corpus token counts over languages: plain BPE, superwords, a vocabulary size per language."""

    system = "premium"
    statement = (
        "With equal training bytes and vocabulary size, languages pay unequal token counts for the same content; superword "
        "training lowers the mean and the spread, and a vocabulary size per language lowers the spread"
    )
    metric = (
        "tokens on held-out parallel lines over the mean of plain BPE; evenness is minus the squared distance to the arm's "
        "mean over the variance of the arm it is compared with"
    )
    contrasts = (
        Contrast("languages differ by more than the sampling error of the lines", "deviation", "sampling_error"),
        Contrast("superwords need fewer tokens than BPE of the same size", "superword_cost", "bpe_cost"),
        Contrast("superwords are more even over languages than BPE", "superword_evenness", "bpe_evenness"),
        Contrast("a vocabulary size per language is more even than one size", "optimal_evenness", "same_evenness"),
    )
    competence = Competence("bpe_bytes_per_token", 2.0)
    unit = "language"
    assets = ("libreoffice-help", "debian-installer", "django")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Vocabulary of the superword comparison, the one size for all, and the sizes of the power law."""
        sizes = {
            "smoke": [300, 400, 520, 700, 1000],
            "small": [320, 512, 768, 1152, 1728, 2592, 4096],
            "paper": list(range(16384, 114689, 16384)),
        }[scale]
        vocab, same = {"smoke": (2048, 520), "small": (4096, 1152), "paper": (65536, 65536)}[scale]
        bounds = {"minimum": sizes[0], "maximum": sizes[-1]} if scale != "paper" else {"minimum": 8192, "maximum": 262_144}
        chosen = {"vocab": vocab, "same_vocab": same, "sizes": sizes, **bounds, "targets": 25, "training_share": 0.7}
        return chosen | {"split": MARKS_REGEX}

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """One split of the parallel lines; training text of equal bytes."""
        settings = self.settings(scale)
        source = {"smoke": artificial_languages, "small": _help, "paper": _flores}[scale]
        training, choosing, testing = source(settings, seed)
        progress(f"{len(training)} languages", 0.05)
        arms, facts = _same_size(training, testing, settings["vocab"], regex=MARKS_REGEX)
        progress("vocabulary per language", 0.3)
        more, other = _own_size(training, choosing, testing, settings)
        facts |= other | {"languages": len(training), "test_lines": len(next(iter(testing.values())))}
        facts["training_bytes"] = min(_bytes(texts) for texts in training.values())
        if scale == "small":
            progress("interface messages", 0.5)
            facts |= _catalogue_facts(seed)
            if seed == 0:
                progress("real tokenizers", 0.7)
                facts |= _real_tokenizers()
        progress("done", 1.0)
        return Measurement(arms | more, facts)


def draw_bytes(texts: Sequence[str], size: int, seed: int) -> list[str]:
    """Texts in random order until the next one would pass `size` bytes."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    chosen, total = [], 0
    for text in order:
        total += len(text.encode())
        if total > size:
            break
        chosen.append(text)
    return chosen


def evenness(counts: NDArray[np.float64], variance: float) -> list[float]:
    """Minus the squared distance of each count to their mean, over `variance`: their mean is minus a ratio of variances."""
    return (-np.square(counts - counts.mean()) / variance).tolist()


def _same_size(
    training: Lines, testing: Lines, vocab: int, *, regex: str | None = None
) -> tuple[dict[str, list[float]], Facts]:
    """Plain BPE against superwords at one vocabulary size, on held-out lines; the training text itself in the facts."""
    from tokenry.text.premium import bootstrap_totals, corpus_counts, line_overlap, train_bpe, train_superword

    plain = {name: train_bpe(texts, vocab, regex=regex) for name, texts in training.items()}
    wide = {name: train_superword(texts, vocab, stage1_regex=regex) for name, texts in training.items()}
    counted = corpus_counts(plain, testing)
    bpe, superword = _totals(counted.tokens), _totals(corpus_counts(wide, testing).tokens)
    ratios = bootstrap_totals(counted.tokens)
    ratios = ratios / ratios.mean(axis=1, keepdims=True)
    low, high = np.quantile(ratios, [0.025, 0.975], axis=0)
    mean = float(bpe.mean())
    arms = {
        "deviation": np.abs(bpe / mean - 1.0).tolist(),
        "sampling_error": ((high - low) / 2.0).tolist(),
        "bpe_cost": (-bpe / mean).tolist(),
        "superword_cost": (-superword / mean).tolist(),
        "bpe_evenness": evenness(bpe, float(bpe.var())),
        "superword_evenness": evenness(superword, float(bpe.var())),
        "bpe_bytes_per_token": (_totals(counted.size_bytes) / bpe).tolist(),
    }
    shared = [line_overlap(training[name], testing[name]) for name in training]
    facts = _spread("bpe", bpe) | _spread("superword", superword) | _compare("superword", bpe, superword)
    facts |= {
        "line_overlap_max": max(shared),
        "bpe_realised_min": min(t.get_vocab_size() for t in plain.values()),
        "bpe_realised_mean": float(np.mean([t.get_vocab_size() for t in plain.values()])),
    }
    on_training = [np.array([_count(t[name], training[name]) for name in training], np.float64) for t in (plain, wide)]
    facts |= _spread("training_text_bpe", on_training[0]) | _spread("training_text_superword", on_training[1])
    facts |= _compare("training_text_superword", *on_training)
    return arms, facts | _regressions(plain, training, testing, bpe)


def _own_size(
    training: Lines, choosing: Lines, testing: Lines, settings: Mapping[str, Any]
) -> tuple[dict[str, list[float]], Facts]:
    """Sizes chosen on one half of the lines, compared with one size for all on the other half."""
    from tokenry.text.premium import measure_sizes, train_bpe, validate_vocabularies

    regex = settings.get("split")
    curves = {name: measure_sizes(training[name], choosing[name], settings["sizes"], regex=regex) for name in training}
    laws = {name: curve.fit() for name, curve in curves.items()}
    best, worst = (float(np.mean([c.counts[i] for c in curves.values()])) for i in (-1, 0))
    targets = np.linspace(best, worst, settings["targets"]).tolist()
    bounds = {"minimum": settings["minimum"], "maximum": settings["maximum"]}
    train = partial(train_bpe, regex=regex)
    checked = validate_vocabularies(laws, training, choosing, targets, **bounds, train=train)
    same = np.array([_count(train(training[n], settings["same_vocab"]), testing[n]) for n in training], np.float64)
    own = np.array([_count(checked.tokenizers[n], testing[n]) for n in training], np.float64)
    reached = [list(training).index(name) for name in checked.reached]
    facts: Facts = _compare("optimal", same, own) | _spread("optimal", own) | _spread("same", same)
    facts |= {
        f"sd_at_{v}": float(np.std([c.counts[i] for c in curves.values()], ddof=1)) for i, v in enumerate(settings["sizes"])
    }
    facts |= {
        "optimal_target": checked.choice.target,
        "optimal_rmse": checked.rmse,
        "optimal_rmse_reached": checked.rmse_reached,
        "optimal_reached": len(reached),
        "optimal_not_reached": " ".join(n for n in training if n not in checked.reached),
        "bad_fits": sum(not law.good for law in laws.values()),
    }
    if len(reached) > 2:
        facts |= _compare("optimal_reached", same[reached], own[reached]) | _spread("optimal_reached", own[reached])
    before = float(same.var())
    return {"same_evenness": evenness(same, before), "optimal_evenness": evenness(own, before)}, facts


def _spread(name: str, counts: NDArray[np.float64]) -> Facts:
    deviation = float(counts.std(ddof=1))
    return {
        f"{name}_mean": float(counts.mean()),
        f"{name}_sd": deviation,
        f"{name}_cv": deviation / float(counts.mean()),
        f"{name}_max_over_min": float(counts.max() / counts.min()),
    }


def _compare(name: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> Facts:
    """F = var(before) / var(after): above 1 when the spread fell."""
    from tokenry.text.premium import f_test

    test = f_test(before, after)
    return {f"{name}_f": test.statistic, f"{name}_f_p_two_sided": test.p_value}


def _regressions(tokenizers: Mapping[str, Any], training: Lines, testing: Lines, counts: NDArray[np.float64]) -> Facts:
    """R^2 of each predictor alone and of the paper's three together."""
    from tokenry.text.premium import language_predictors, regress, regress_each

    rows = [language_predictors(tokenizers[name], testing[name], training[name]) for name in training]
    columns = {key: [row[key] for row in rows] for key in rows[0] if len({row[key] for row in rows}) > 1}
    numeric = {key: values for key, values in columns.items() if key != "script"}
    facts: Facts = {f"r2_{k}": fit.r_squared for k, fit in regress_each(counts, numeric).items()}
    three = ("data_similarity", "mean_token_length_used", "proportion_whitespace")
    if len(counts) > 5 and all(name in numeric for name in three):
        facts["r2_combined"] = regress(counts, {name: numeric[name] for name in three}).r_squared
    return facts


def _help(settings: Mapping[str, Any], seed: int) -> tuple[Lines, Lines, Lines]:
    from tokenry.lab.sources.text import parallel_corpus

    return _parts(parallel_corpus("libreoffice-help").lines, settings["training_share"], seed)


def _parts(lines: Lines, share: float, seed: int) -> tuple[Lines, Lines, Lines]:
    """(training of equal bytes, lines to choose by, lines to test on), of different lines."""
    seen: set[str] = set()
    fresh = []  # rows of which no language has said anything before: headings come more than once
    for place, row in enumerate(zip(*lines.values(), strict=True)):
        if not seen.intersection(row):
            fresh.append(place)
        seen.update(row)
    count = len(fresh)
    order = random.Random(seed).sample(fresh, count)
    cut = int(share * count)
    middle = cut + (count - cut) // 2
    train, choose, test = (
        {name: [texts[i] for i in some] for name, texts in lines.items()}
        for some in (order[:cut], order[cut:middle], order[middle:])
    )
    size = min(map(_bytes, train.values()))
    return {name: draw_bytes(texts, size, seed) for name, texts in train.items()}, choose, test


def _catalogue_facts(seed: int, size: int = 15_000, vocab: int = 768) -> Facts:
    """Interface messages: `size` bytes of own messages per language, all parallel messages held out; two splits of words."""
    own, parallel = _catalogues()
    languages = [name for name in parallel if _bytes(own[name]) >= size]
    training = {name: draw_bytes(own[name], size, seed) for name in languages}
    testing = {name: parallel[name] for name in languages}
    facts: Facts = {"messages_languages": len(languages), "messages_vocab": vocab, "messages_training_bytes": size}
    for label, regex in (("gpt2_split", None), ("marks_kept", MARKS_REGEX)):
        found = _same_size(training, testing, vocab, regex=regex)[1]
        facts |= {f"messages_{label}_{k}": v for k, v in found.items() if k.startswith(("bpe_", "superword_", "line_"))}
    order = random.Random(seed).sample(range(len(testing["en"])), len(testing["en"]))
    halves = (order[: len(order) // 2], order[len(order) // 2 :])
    choosing, other = ({name: [lines[i] for i in some] for name, lines in testing.items()} for some in halves)
    sizes = [288, 352, 448, 576, 768, 1024, 1408]
    settings = {"sizes": sizes, "minimum": sizes[0], "maximum": sizes[-1], "targets": 25, "same_vocab": vocab}
    found = _own_size(training, choosing, other, settings)[1]
    return facts | {f"messages_{k}": v for k, v in found.items() if k.startswith(("optimal_", "same_", "bad_"))}


def _real_tokenizers() -> Facts:
    """Premiums over English of real tokenizers, on both parallel corpora: mean, largest and its language."""
    from tokenry.errors import AssetMissingError, UnsupportedModelError
    from tokenry.lab.sources.models import load_real_tokenizer, real_tokenizers
    from tokenry.lab.sources.text import parallel_corpus
    from tokenry.text.premium import corpus_counts, token_premium

    facts: Facts = {}
    corpora = {"catalogues": parallel_corpus("django").lines, "guide": parallel_corpus("debian-installer").lines}
    for name in real_tokenizers():
        try:
            tokenizer = load_real_tokenizer(name)
            for label, lines in corpora.items():
                premium = token_premium(corpus_counts(tokenizer, lines).totals, "en")
                worst = max(premium, key=premium.__getitem__)
                facts[f"premium_{label}_{name}"] = (
                    f"mean {np.mean(list(premium.values())):.2f}, largest {premium[worst]:.2f} ({worst})"
                )
        except (AssetMissingError, UnsupportedModelError):
            continue
    return facts


def artificial_languages(settings: Mapping[str, Any], seed: int) -> tuple[Lines, Lines, Lines]:
    """English help texts and five languages made of them: scripts of two and three bytes, no spaces, double spaces."""
    import pydoc_data.topics

    lines = [line.strip() for name in sorted(pydoc_data.topics.topics) for line in pydoc_data.topics.topics[name].splitlines()]
    lines = [line for line in lines if len(line) > 30][:700]
    two = {ord(c): 0x3B1 + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    three = {ord(c): 0x30A1 + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    made = {
        "plain": lines,
        "two_bytes": [line.lower().translate(two) for line in lines],
        "three_bytes": [line.lower().translate(three) for line in lines],
        "no_spaces": [line.replace(" ", "") for line in lines],
        "double_spaces": [line.replace(" ", "  ") for line in lines],
        "three_bytes_no_spaces": [line.lower().translate(three).replace(" ", "") for line in lines],
    }
    return _parts(made, settings["training_share"], seed)


def _catalogues() -> tuple[Lines, Lines]:
    """(own messages, parallel messages) per language; own messages translate none of the parallel ones."""
    from tokenry.lab.assets.folders import fetch
    from tokenry.lab.sources.text import parallel_corpus
    from tokenry.lab.sources.text_gettext import has_words, po_messages

    parallel = parallel_corpus("django").lines
    asked = set(parallel["en"])
    own: dict[str, dict[str, str]] = {name: {} for name in parallel}
    for path in sorted(fetch("django").glob("**/locale/*/LC_MESSAGES/*.po")):
        name = path.parts[-3].replace("_", "-")
        if name in own and name != "en":
            for (_, english), text in po_messages(path).items():
                if english not in asked and has_words(text):
                    own[name].setdefault(english, text)
                    own["en"].setdefault(english, english)
    held = {name: set(lines) for name, lines in parallel.items()}
    return {name: [t for _, t in sorted(own[name].items()) if t not in held[name]] for name in own}, parallel


def _flores(settings: Mapping[str, Any], seed: int) -> tuple[Lines, Lines, Lines]:
    """300 MB of web text per language, FLORES-200 dev lines to choose by and devtest lines to test on, from the hub."""
    from tokenry.errors import AssetMissingError, optional

    datasets = optional("datasets", "training")
    try:
        names = set(datasets.get_dataset_config_names("facebook/flores"))
        names &= set(datasets.get_dataset_config_names("HuggingFaceFW/fineweb-2"))
        training, choosing, testing = {}, {}, {}
        for name in sorted(names):
            choosing[name] = list(datasets.load_dataset("facebook/flores", name, split="dev")["sentence"])
            testing[name] = list(datasets.load_dataset("facebook/flores", name, split="devtest")["sentence"])
            stream = datasets.load_dataset("HuggingFaceFW/fineweb-2", name, split="train", streaming=True)
            training[name] = _take((row["text"] for row in stream), 300_000_000)
        return training, choosing, testing
    except (OSError, RuntimeError, ValueError) as error:
        raise AssetMissingError(
            f"FLORES-200 and FineWeb-2 could not be read ({error}); with a connection: "
            "hf download facebook/flores HuggingFaceFW/fineweb-2 --repo-type dataset"
        ) from error


def _take(texts: Any, size: int) -> list[str]:
    chosen, total = [], 0
    for text in texts:
        chosen.append(text)
        total += len(text.encode())
        if total >= size:
            break
    return chosen


def _totals(tokens: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float64]:
    return np.array([counts.sum() for counts in tokens.values()], np.float64)


def _count(tokenizer: Any, lines: Sequence[str]) -> int:
    from tokenry.text.premium import line_counts

    return int(line_counts(tokenizer, lines).sum())


def _bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


CLAIM = PremiumClaim()
