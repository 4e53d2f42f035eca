"""The two recipes: domain BPE with custom tokens, and character BPE with a cap on the length of a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, normalizers, processors, trainers

from tokenry.core.checks import check_choice, check_int
from tokenry.text.bpe import (
    ALPHABET,
    MOST_COUNT,
    Texts,
    assemble,
    bounded,
    bpe_parts,
    byte_level,
    check_size,
    text_source,
    to_transformers,
)
from tokenry.text.kl3m.custom import custom_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_NAMES = ("start", "end", "pad", "unk", "sep", "cls", "mask")
_ROLES = ("system", "user", "instruction")
SPECIAL_TOKENS = (*(f"<|{n}|>" for n in _NAMES), *(f"<{slash}|{n}|>" for n in _ROLES for slash in ("", "/")))
NORMALIZATIONS = ("nfc", "nfd", "nfkc", "nfkd", None)
_FORMS = {"nfc": normalizers.NFC, "nfd": normalizers.NFD, "nfkc": normalizers.NFKC, "nfkd": normalizers.NFKD}


def train_char_tokenizer(
    texts: Texts,
    vocab_size: int,
    *,
    max_chars: int = 3,
    min_frequency: int = 10,
    normalization: str | None = "nfkc",
    lowercase: bool = False,
    released: bool = False,
    pad_to_power_of_two: bool = False,
    mlm: bool = False,
) -> Tokenizer:
    """Character BPE for text repair: no token made by a merge is longer than `max_chars` byte-level characters.

    A space in front counts one; a letter of two UTF-8 bytes counts two. ``max_chars=1`` gives plain bytes.

    Args:
        texts: see `tokenry.text.bpe.text_source`.
        vocab_size: entries, the 13 special tokens included; fewer when the text has no pair left that occurs often enough.
        max_chars: 3 for vocabularies of 4,096 and 8,192 in the paper, 4 for 16,384.
        min_frequency: least count of a pair that is merged.
        normalization: nfc, nfd, nfkc, nfkd, or None.
        lowercase: lower-case the text as well.
        released: compute as the released code does: the alphabet is the code points 0..254, so that bytes which the text lacks
            disappear on encoding; the special tokens are subtracted twice; padding doubles an exact power of two.
        pad_to_power_of_two: fill up with runs of spaces and line ends to the next power of two.
        mlm: put cls and sep around a text, as the ``-mlm`` packages do.

    Raises:
        TypeError, ValueError: a bad argument, or a size too small for the 256 bytes and the special tokens.
    """
    check_int("max_chars", max_chars, 1)
    check_size(vocab_size, SPECIAL_TOKENS)
    size = vocab_size - len(SPECIAL_TOKENS) if released else vocab_size
    if max_chars == 1 and not released:  # the trainer's bound leaves pairs of single symbols alone: allow no merge at all
        size = len(SPECIAL_TOKENS) + len(ALPHABET)
    alphabet = [chr(point) for point in range(255)] if released else list(ALPHABET)
    tokenizer = _train(texts, size, alphabet, min_frequency, normalization, lowercase, max_token_length=max_chars + 1)
    return _finish(tokenizer, released, pad_to_power_of_two, mlm)


def train_domain_tokenizer(
    texts: Texts,
    vocab_size: int = 32768,
    *,
    custom: Sequence[str] | None = None,
    single_word: bool = False,
    min_frequency: int = 10,
    normalization: str | None = "nfkc",
    lowercase: bool = False,
    released: bool = False,
    pad_to_power_of_two: bool = False,
    mlm: bool = False,
) -> Tokenizer:
    """Domain BPE with custom tokens, which are matched in the normalised text before anything else and never split.

    Args:
        texts: see `tokenry.text.bpe.text_source`.
        vocab_size: entries, special and custom tokens included; fewer when the text has no pair left that occurs often enough.
        custom: strings for added tokens; None = ``custom_tokens(lowercase=lowercase)``; () = none. The paper's list also
            holds citations: ``custom_tokens(citations=...)``.
        single_word: match a custom token only where no letter or digit touches it ("1983" not inside "19834"). The
            released code does not.
        min_frequency: least count of a pair that is merged.
        normalization: nfc, nfd, nfkc, nfkd, or None.
        lowercase: lower-case the text as well.
        released: compute as the released code does: the special tokens are subtracted twice, custom tokens that BPE has learned
            leave their places empty, padding doubles an exact power of two.
        pad_to_power_of_two: fill up with runs of spaces and line ends to the next power of two.
        mlm: put cls and sep around a text.

    Raises:
        TypeError, ValueError: a bad argument, an empty or repeated custom token, one that the normaliser changes ("①" under
            nfkc), or a size too small for bytes, special and custom tokens.
    """
    given = custom_tokens(lowercase=lowercase) if custom is None else custom
    wanted = _checked_custom(given, lowercase, normalization)
    check_size(vocab_size, SPECIAL_TOKENS)
    least = len(ALPHABET) + len(SPECIAL_TOKENS) + len(wanted)
    if vocab_size < least + (len(SPECIAL_TOKENS) if released else 0):
        raise ValueError(
            f"vocab_size must be at least {least} (bytes, special and {len(wanted)} custom tokens), got {vocab_size}"
        )
    size = vocab_size - len(wanted) - len(SPECIAL_TOKENS) if released else vocab_size
    tokenizer = _train(texts, size, list(ALPHABET), min_frequency, normalization, lowercase)
    if not released:
        tokenizer = _make_room(tokenizer, wanted, vocab_size)
    known = tokenizer.get_vocab()
    added, done = [token for token in wanted if token not in known], set()
    while added:
        done.update(added)
        tokenizer.add_tokens([AddedToken(token, single_word=single_word, normalized=True) for token in added])
        learned = [] if released else [token for token in wanted if token in known and token not in done]
        added = [token for token in learned if _falls_apart(tokenizer, token)]
    return _finish(tokenizer, released, pad_to_power_of_two, mlm)


def _falls_apart(tokenizer: Tokenizer, token: str) -> bool:
    """Whether a token that BPE has learned is still spelled otherwise, for earlier merges or for another added token in it."""
    return len(tokenizer.encode(token, add_special_tokens=False).ids) != 1


def _checked_custom(custom: Sequence[str], lowercase: bool, normalization: str | None) -> list[str]:
    normalizer = _normalizer(normalization, lowercase)
    if isinstance(custom, (str, bytes)):
        raise TypeError("custom must be a collection of strings, got one string")
    seen: set[str] = set()
    for index, token in enumerate(custom):
        if not isinstance(token, str):
            raise TypeError(f"custom[{index}] must be a str, got {type(token).__name__}")
        if not token:
            raise ValueError(f"custom[{index}] must not be empty")
        if token in seen or token in SPECIAL_TOKENS:
            raise ValueError(f"custom[{index}] must occur once and be no special token, got {token!r} again")
        if lowercase and token != token.lower():
            raise ValueError(f"custom[{index}] must be in lower case to match lower-cased text, got {token!r}")
        if (changed := normalizer.normalize_str(token)) != token:  # it would match wherever the changed one stands
            raise ValueError(
                f"custom[{index}] must be as {normalization=} leaves it, to match that text alone, "
                f"got {token!r}, which becomes {changed!r}"
            )
        seen.add(token)
    return list(custom)


def _train(
    texts: Texts,
    vocab_size: int,
    alphabet: list[str],
    min_frequency: int,
    normalization: str | None,
    lowercase: bool,
    **options: Any,
) -> Tokenizer:
    check_int("min_frequency", min_frequency, 0, MOST_COUNT)
    tokenizer = assemble({}, [], byte_level(), ())
    tokenizer.normalizer = _normalizer(normalization, lowercase)  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator(bounded(text_source(texts)()), trainer)
    return tokenizer


def _normalizer(normalization: str | None, lowercase: bool) -> Any:
    check_choice("normalization", normalization, NORMALIZATIONS)
    steps = [_FORMS[normalization]()] if normalization else []
    return normalizers.Sequence([*steps, *([normalizers.Lowercase()] if lowercase else [])])


def _make_room(tokenizer: Tokenizer, custom: Sequence[str], vocab_size: int) -> Tokenizer:
    """Drop the last merges until the custom tokens that BPE has not learned fit: the size asked for is the size given."""
    vocab, merges = bpe_parts(tokenizer)
    size = len(vocab)
    missing = sum(token not in vocab for token in custom)
    ids = {vocab[token] for token in custom if token in vocab}
    while size + missing > vocab_size:
        size -= 1
        missing += size in ids  # a custom token that goes with its merge must be added again
    kept = {token: index for token, index in vocab.items() if index < size}
    shorter = [(a, b) for a, b in merges if a in kept and b in kept and a + b in kept]
    made = assemble(kept, shorter, tokenizer.pre_tokenizer, SPECIAL_TOKENS)
    made.normalizer = tokenizer.normalizer  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _finish(tokenizer: Tokenizer, released: bool, pad: bool, mlm: bool) -> Tokenizer:
    if pad:
        add_padding_tokens(tokenizer, released=released)
    tokenizer.enable_padding(direction="left", pad_id=2, pad_token="<|pad|>")
    if mlm:
        tokenizer.post_processor = processors.RobertaProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            ("<|sep|>", 4), ("<|cls|>", 5), trim_offsets=False, add_prefix_space=False
        )
    return tokenizer


def add_padding_tokens(tokenizer: Tokenizer, *, released: bool = False) -> int:
    """Add runs of 2, 3, ... spaces and line ends, in turn, until the vocabulary is a power of two; returns how many.

    The target is the next power of two that is not below the size. The released rule, 2^(floor(log2(size)) + 1), doubles a size
    that is a power of two already.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    target = 1 << (size.bit_length() if released else (size - 1).bit_length())
    known, runs, length = set(tokenizer.get_vocab()), [], 2
    while len(runs) < target - size:
        runs += [run for run in (" " * length, "\n" * length) if run not in known]
        length += 1
    return tokenizer.add_tokens(runs[: target - size])


def kl3m_to_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The tokenizer as a ``PreTrainedTokenizerFast`` with roles and left padding; it loads without this library."""
    roles = dict(zip(("bos", "eos", "pad", "unk", "sep", "cls", "mask"), SPECIAL_TOKENS, strict=False))
    return to_transformers(tokenizer, padding_side="left", **{f"{role}_token": token for role, token in roles.items()})


def neutral_to_special_text(tokenizer: Tokenizer) -> Tokenizer:
    """A copy for untrusted input: "<|end|>" inside a text is encoded letter by letter, not as the special token.

    The switch lives in the object; a saved file does not keep it.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return copy
