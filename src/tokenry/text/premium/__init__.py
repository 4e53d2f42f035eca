"""Crosslingual tokenizer inequity: measure it, explain it, lower it.

"Explaining and Mitigating Crosslingual Tokenizer Inequities", Arnett, Chang, Biderman and Bergen, NeurIPS 2025
(arXiv 2510.21909), with the superword training of "SuperBPE: Space Travel for Language Models", Liu et al., COLM 2025
(arXiv 2503.13423).

What it does: counts the tokens of parallel text (CTC) and how unequal they are over languages (sections 3 and 4); relates them
to properties of text and tokenizer by regression; finds for each language the vocabulary size that reaches a common count
(appendix J); trains superword vocabularies on the stock `tokenizers` (appendix K).

    premium(l)  = CTC(l) / CTC(reference)
    CTC(V)      = a * V^(-b) + c          V*(T) = ((T - c) / a)^(-1/b)
    superwords: first int(transition * V) entries by plain BPE, the rest across spaces

Paper and code: the curve's form is inferred from "power law with an asymptote"; the released superword trainer needs a fork
of `tokenizers`, here the stock trainer runs on relabelled text; stage 1 uses the GPT-2 split (the released English run uses
one like GPT-4o's: pass it as `stage1_regex`); word cap and colon rule exist only as options whose meaning is inferred.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from tokenry.text.bpe import to_transformers, train_bpe, truncate
from tokenry.text.premium.counting import CorpusCounts, corpus_counts, line_counts
from tokenry.text.premium.inequity import (
    Dispersion,
    FTest,
    Interval,
    bootstrap_premium,
    bootstrap_totals,
    byte_coefficient,
    byte_corrected_premium,
    byte_premium,
    dispersion,
    f_test,
    length_ratio,
    token_premium,
)
from tokenry.text.premium.power_law import PAPER_TARGETS, PowerLaw, TargetChoice, choose_target, fit_power_law
from tokenry.text.premium.predictors import (
    character_entropy,
    data_similarity,
    language_predictors,
    line_overlap,
    mean_token_length,
    mean_token_length_used,
    proportion_whitespace,
    script,
    unique_characters,
)
from tokenry.text.premium.regression import Regression, regress, regress_each
from tokenry.text.premium.superword import STAGE2_REGEX, extend_superword, train_superword
from tokenry.text.premium.unigram import train_superword_unigram
from tokenry.text.premium.vocabularies import SizeCurve, Validation, even_vocabularies, measure_sizes, validate_vocabularies

__all__ = [
    "PAPER_TARGETS",
    "STAGE2_REGEX",
    "CorpusCounts",
    "Dispersion",
    "FTest",
    "Interval",
    "PowerLaw",
    "Regression",
    "SizeCurve",
    "TargetChoice",
    "Validation",
    "bootstrap_premium",
    "bootstrap_totals",
    "byte_coefficient",
    "byte_corrected_premium",
    "byte_premium",
    "character_entropy",
    "choose_target",
    "corpus_counts",
    "data_similarity",
    "dispersion",
    "even_vocabularies",
    "extend_superword",
    "f_test",
    "fit_power_law",
    "language_predictors",
    "length_ratio",
    "line_counts",
    "line_overlap",
    "mean_token_length",
    "mean_token_length_used",
    "measure_sizes",
    "proportion_whitespace",
    "regress",
    "regress_each",
    "script",
    "to_transformers",
    "token_premium",
    "train_bpe",
    "train_superword",
    "train_superword_unigram",
    "truncate",
    "unique_characters",
    "validate_vocabularies",
]


def contract_instances() -> dict[str, Tokenizer]:
    """What the contract of tokenizers is checked on: trained on a few lines, the last tenth of the merges over spaces."""
    lines = [f"the price of the {word} is {len(word)} in the town" for word in ("salt", "cotton", "corn", "timber")] * 4
    return {"superword": train_superword(lines, 340), "unigram": train_superword_unigram(lines, 340)}
