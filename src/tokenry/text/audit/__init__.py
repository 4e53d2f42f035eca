"""Audit of tokenizers: what they cost each language and domain, and where they do not give the text back.

Premiums and their byte correction follow "Explaining and Mitigating Crosslingual Tokenizer Inequities" (Arnett et al.,
NeurIPS 2025, arXiv 2510.21909, section 3); tokens per character follows "KL3M Tokenizers" (Bommarito et al., arXiv
2503.17247); numbers of encodings follow the tokenizer-only measurements around non-canonical tokenization.

    premium(l)   = tokens(l) / tokens(reference)                 over aligned lines
    corrected(l) = premium(l) / (bytes(l) / bytes(reference))
    intervals    = percentiles over resampled lines (the same lines in every language)
"""

from __future__ import annotations

from tokenry.text.audit.audit import TokenizerAudit
from tokenry.text.audit.lines import LineFile
from tokenry.text.audit.results import AuditReport, AuditRow, Failure, SampleLine, Spread
from tokenry.text.audit.vocabulary import VocabularyAudit

__all__ = [
    "AuditReport", "AuditRow", "Failure", "LineFile", "SampleLine", "Spread", "TokenizerAudit", "VocabularyAudit",
]  # fmt: skip
