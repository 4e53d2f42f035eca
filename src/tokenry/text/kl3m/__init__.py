"""Domain-specific and character-level BPE tokenizers.

"KL3M Tokenizers: A Family of Domain-Specific and Character-Level Tokenizers for Legal, Financial, and Preprocessing
Applications", Bommarito, Katz and Bommarito, 2025 (arXiv 2503.17247), and the code released with it.

Two recipes on the stock byte-level BPE: (A) a domain vocabulary with curated custom tokens, so that years, enumerations and
citations are never split; (B) a vocabulary whose tokens have at most three or four characters, so that a typing error moves few
token boundaries. Both: NFKC, 13 special tokens at ids 0..12, padding on the left, sizes filled up to a power of two.

Where this differs from the released code, and `released=True` brings the released behaviour back: the alphabet of the character
recipe holds all 256 bytes (released: the code points 0..254, and bytes that the training text lacks disappear); the size asked
for is the size given (released: the special tokens are subtracted twice, places of custom tokens that BPE has learned stay
empty); a size that is a power of two is not doubled by padding. Citation abbreviations are not downloaded: pass them.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from tokenry.text.kl3m.custom import GROUPS, citation_strings, custom_tokens, reporter_abbreviations
from tokenry.text.kl3m.evaluation import (
    Agreement,
    SizeHistogram,
    average_tokens_per_character,
    boundary_agreement,
    relative_saving,
    term_costs,
    token_sizes,
    tokens_per_character,
)
from tokenry.text.kl3m.jsonl import read_jsonl
from tokenry.text.kl3m.noise import ERRORS, align, corrupt
from tokenry.text.kl3m.recipes import (
    SPECIAL_TOKENS,
    add_padding_tokens,
    kl3m_to_transformers,
    neutral_to_special_text,
    train_char_tokenizer,
    train_domain_tokenizer,
)

__all__ = [
    "ERRORS",
    "GROUPS",
    "SPECIAL_TOKENS",
    "Agreement",
    "SizeHistogram",
    "add_padding_tokens",
    "align",
    "average_tokens_per_character",
    "boundary_agreement",
    "citation_strings",
    "corrupt",
    "custom_tokens",
    "kl3m_to_transformers",
    "neutral_to_special_text",
    "read_jsonl",
    "relative_saving",
    "reporter_abbreviations",
    "term_costs",
    "token_sizes",
    "tokens_per_character",
    "train_char_tokenizer",
    "train_domain_tokenizer",
]


def contract_instances() -> dict[str, Tokenizer]:
    """What the contract of tokenizers is checked on: both recipes on a few lines."""
    lines = [f"Section {number}. The party of the first part shall pay {number}%" for number in range(1980, 2000)]
    return {
        "domain": train_domain_tokenizer(lines, 1024),
        "characters": train_char_tokenizer(lines, 320),
        "lower case": train_domain_tokenizer(lines, 1024, lowercase=True),
    }
