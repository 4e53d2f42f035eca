"""Tokenizers as byte vocabularies: bytes of tokens, tries, merges, valid beginnings, files."""

from tokenry.hosts.text.beginnings import Reencoding
from tokenry.hosts.text.classes import char_class, completions, compress, is_prefix, split_partial
from tokenry.hosts.text.files import as_backend, load_tokenizer
from tokenry.hosts.text.ranks import PATTERNS, byte_symbols, read_ranks, tokenizer_of_ranks
from tokenry.hosts.text.sentencepiece import read_sentencepiece, tokenizer_of_sentencepiece
from tokenry.hosts.text.vocabulary import ByteTrie, ByteVocabulary, as_bytes, first_noncanonical, is_canonical, word_spans

__all__ = [
    "PATTERNS",
    "ByteTrie",
    "ByteVocabulary",
    "Reencoding",
    "as_backend",
    "as_bytes",
    "byte_symbols",
    "char_class",
    "completions",
    "compress",
    "first_noncanonical",
    "is_canonical",
    "is_prefix",
    "load_tokenizer",
    "read_ranks",
    "read_sentencepiece",
    "split_partial",
    "tokenizer_of_ranks",
    "tokenizer_of_sentencepiece",
    "word_spans",
]
