"""Superwords for Unigram, by the stock trainer.

Unigram has no merges that a second stage could go on from: its trainer weighs all frequent substrings at once and drops the
worst. A looser split (that of stage 2) is therefore all it takes, in one stage; `transition` has no counterpart. The word cap
and the colon rule drop pieces after training, which leaves every other piece as it was: no piece is made of another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, trainers

from tokenry.core.checks import check_int
from tokenry.text.bpe import ALPHABET, Texts, bounded, byte_level, check_size, text_source
from tokenry.text.premium.superword import STAGE2_REGEX

_SPACE, _COLON = "\u0120", ":"  # a space and a colon in byte-level spelling


def train_superword_unigram(
    texts: Texts,
    vocab_size: int,
    *,
    max_words: int | None = None,
    colon_boundary: bool = False,
    max_piece_length: int = 24,
    regex: str = STAGE2_REGEX,
    special_tokens: Sequence[str] = (),
) -> Tokenizer:
    """Train a byte-level Unigram tokenizer whose pieces cross spaces.

    Args:
        texts: see `tokenry.text.bpe.text_source`; read again when rules drop many pieces. Each line is one unit, so time and
            memory grow faster than for words: about a minute for half a megabyte.
        vocab_size: entries, special tokens included; fewer when the text has not as many pieces.
        max_words: most space markers a piece may hold; None = no cap.
        colon_boundary: no piece goes on after a colon.
        max_piece_length: longest piece, in bytes.
        regex: matches stand alone.
        special_tokens: placed at ids 0, 1, ...

    Returns:
        A stock tokenizer. All 256 bytes are pieces, so every text round-trips.

    Raises:
        TypeError, ValueError: see `text_source` and `check_size`.
    """
    check_size(vocab_size, special_tokens)
    check_int("max_piece_length", max_piece_length, 2)
    if max_words is not None:
        check_int("max_words", max_words, 1)
    source = text_source(texts)
    asked = vocab_size
    while True:
        trained = _trained(source, asked, max_piece_length, regex, special_tokens)
        found = json.loads(trained.to_str())["model"]["vocab"]
        whole = {*special_tokens, *ALPHABET}
        kept = [piece for piece in found if piece[0] in whole or _allowed(piece[0], max_words, colon_boundary)]
        if len(kept) >= vocab_size or len(found) < asked:
            break
        asked *= 2
    spare = len(kept) - vocab_size
    dropped = {piece for piece, _ in sorted((p for p in kept if p[0] not in whole), key=lambda p: p[1])[: max(0, spare)]}
    if len(kept) == len(found) and not dropped:
        return trained
    model = models.Unigram([(piece, score) for piece, score in kept if piece not in dropped], None, False)
    return _around(model, regex, special_tokens)


def _trained(source: Texts, size: int, longest: int, regex: str, special_tokens: Sequence[str]) -> Tokenizer:
    tokenizer = _around(models.Unigram(), regex, ())
    trainer = trainers.UnigramTrainer(
        vocab_size=size, initial_alphabet=list(ALPHABET), special_tokens=list(special_tokens), max_piece_length=longest,
        unk_token=None, show_progress=False,
    )  # fmt: skip
    lines = (line for text in source() for line in text.splitlines(keepends=True))  # pyright: ignore[reportCallIssue]
    tokenizer.train_from_iterator(bounded(lines), trainer)
    return tokenizer


def _around(model: models.Unigram, regex: str, special_tokens: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = byte_level(regex)
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(list(special_tokens))
    return tokenizer


def _allowed(piece: str, max_words: int | None, colon_boundary: bool) -> bool:
    too_long = max_words is not None and piece.count(_SPACE) > max_words
    return not too_long and not (colon_boundary and _COLON in piece.rstrip(_COLON))
