"""Superword BPE on the stock trainer (SuperBPE, Liu et al. 2025, arXiv 2503.13423; appendix K of the premium paper).

Stage 1 is ordinary BPE with whitespace pre-tokenization up to K = transition * V entries. Stage 2 goes on from those merges
with a looser split that lets tokens cross spaces, up to V. The stock trainer cannot resume, so every stage-1 token is
relabelled as one character and a second stock run merges those characters; its merges are then spelled out again.

The word cap and the colon rule are known from the names of released tokenizers only; what they do here is inferred.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

from tokenry.core.checks import check_int, check_range
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text.layout import read_layout
from tokenry.text.bpe import (
    CUT,
    LONGEST,
    MOST_COUNT,
    MOST_ENTRIES,
    Source,
    Texts,
    bpe_parts,
    byte_level,
    check_size,
    rebuild,
    text_source,
    train_bpe,
)

# Groups of 1-3 digits; runs of two or more punctuation marks; runs of spaces without the last one.
STAGE2_REGEX = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]{2,}[\r\n/]*| +(?!\S)"
_SPACE, _COLON = "\u0120", ":"  # a space and a colon in byte-level spelling
_BATCH = 20_000


def train_superword(
    texts: Texts,
    vocab_size: int,
    *,
    transition: float = 0.9,
    max_words: int | None = None,
    colon_boundary: bool = False,
    stage1_regex: str | None = None,
    stage2_regex: str = STAGE2_REGEX,
    special_tokens: Sequence[str] = (),
    min_frequency: int = 0,
) -> Tokenizer:
    """Train a superword BPE tokenizer of `vocab_size` entries.

    Args:
        texts: see `tokenry.text.bpe.text_source`; read twice.
        vocab_size: V, special tokens included. The result is smaller when the text has no pair left to merge.
        transition: share of V that stage 1 fills, in (0, 1]; the first int(transition * V) entries are those of plain BPE.
        max_words: most space markers a superword may hold; None = no cap.
        colon_boundary: no superword goes on after a colon.
        stage1_regex: matches stand alone in stage 1; None = the GPT-2 split.
        stage2_regex: matches stand alone in stage 2 and in the tokenizer that is returned.
        special_tokens: placed at ids 0, 1, ...
        min_frequency: least count of a pair that is merged, in both stages.

    Returns:
        A stock tokenizer: one merge list under the stage-2 split. Every byte round-trips.

    Raises:
        TypeError, ValueError: a bad argument, or a stage 1 that would hold less than the 256 bytes and special tokens.
    """
    check_size(vocab_size, special_tokens)
    check_range("transition", transition, 0.0, 1.0, low_open=True)
    first = int(transition * vocab_size + 1e-9)
    least = 256 + len(special_tokens)
    if first < least:
        raise ValueError(f"transition * vocab_size must be at least {least} (bytes and special tokens), got {first}")
    source = text_source(texts)
    base = train_bpe(source, first, regex=stage1_regex, special_tokens=special_tokens, min_frequency=min_frequency)
    return extend_superword(
        base,
        source,
        vocab_size,
        max_words=max_words,
        colon_boundary=colon_boundary,
        stage2_regex=stage2_regex,
        min_frequency=min_frequency,
    )


def extend_superword(
    base: Tokenizer,
    texts: Texts,
    vocab_size: int,
    *,
    max_words: int | None = None,
    colon_boundary: bool = False,
    stage2_regex: str = STAGE2_REGEX,
    min_frequency: int = 0,
) -> Tokenizer:
    """Stage 2 alone: go on from a byte-level BPE tokenizer `base` until `vocab_size` entries.

    All that `base` has but its pre-tokenizer is carried over: its normaliser, which also reads the texts, its added tokens,
    which no superword reaches over, and its model options.

    Raises:
        UnsupportedModelError: `base` is not a byte-level BPE tokenizer, or puts a space before every text.
        ValueError: `vocab_size` is below the size of `base`, or `base` has more entries than there are characters for.
    """
    vocab, merges = bpe_parts(base)
    check_int("vocab_size", vocab_size, len(vocab), MOST_ENTRIES)
    if max_words is not None:
        check_int("max_words", max_words, 1)
    check_int("min_frequency", min_frequency, 0, MOST_COUNT)
    _check_byte_level(base)
    if vocab_size > len(vocab):
        pieces = count_pieces(_read_by(base, text_source(texts)), stage2_regex)
        strings = _relabel(base, pieces)
        vocab, merges = _grow(vocab, merges, strings, vocab_size, max_words, colon_boundary, min_frequency)
    return rebuild(base, vocab, merges, byte_level(stage2_regex))


def _check_byte_level(base: Tokenizer) -> None:
    layout = read_layout(json.loads(base.to_str()), base)
    reason = None
    if layout.kind != "byte_level":
        reason = "its pieces are text and not bytes" if layout.space_mark or layout.kind == "plain" else f"kind {layout.kind}"
    elif layout.prefix_space:
        reason = "it puts a space before every text, which the looser split would not"
    if reason:
        raise UnsupportedModelError.of(base, ["byte-level BPE (GPT-2 alphabet)"], reason=reason)


def _read_by(base: Tokenizer, source: Source) -> Source:
    """The texts as the model of `base` sees them: normalised, and cut at its added tokens."""
    added = sorted((token.content for token in base.get_added_tokens_decoder().values()), key=len, reverse=True)
    cut = re.compile("|".join(map(re.escape, added))).split if added else None
    normal = base.normalizer.normalize_str if base.normalizer else None
    if cut is None and normal is None:
        return source

    def texts() -> Iterator[str]:
        for text in source():
            for part in cut(text) if cut else (text,):
                yield normal(part) if normal else part

    return texts


def count_pieces(source: Source, regex: str) -> Counter[str]:
    """How often each piece between stage-2 boundaries occurs; lines are separate, and very long ones are cut before a space."""
    lines: Counter[str] = Counter()
    for text in source():
        for line in text.splitlines(keepends=True):
            if len(line) > LONGEST:  # the trainer's time grows with the square of a piece's length
                lines.update(CUT.findall(line))
            else:
                lines[line] += 1
    groups: defaultdict[int, list[str]] = defaultdict(list)  # lines that occur equally often are split once
    for line, count in lines.items():
        groups[count].append(line)
    del lines
    split = pre_tokenizers.Split(Regex(regex), "isolated").pre_tokenize_str
    total: Counter[str] = Counter()
    for times, group in groups.items():
        found = Counter([piece for line in group for piece, _ in split(line)])
        if times > 1:
            found = Counter({piece: times * count for piece, count in found.items()})
        total.update(found)
    return total


def _characters(count: int) -> list[str]:
    """One character for each of `count` tokens: private use (planes 15, 16), then the unassigned planes 13 down to 4."""
    planes = (15, 16, *range(13, 3, -1))
    room = 0xFFFE * len(planes)
    if count > room:
        raise ValueError(f"the stage-1 vocabulary must have at most {room} entries, got {count}")
    points = (plane << 16 | low for plane in planes for low in range(0xFFFE))
    return [chr(point) for point, _ in zip(points, range(count), strict=False)]


def _relabel(base: Tokenizer, pieces: Counter[str]) -> list[tuple[str, int]]:
    """Pieces of two or more stage-1 tokens, a character per token, with their counts; shorter ones have nothing to merge."""
    encoder = Tokenizer(base.model)
    encoder.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
    spell = _characters(base.get_vocab_size()).__getitem__
    unique, strings = list(pieces), []
    for start in range(0, len(unique), _BATCH):
        batch = unique[start : start + _BATCH]
        for piece, encoding in zip(batch, encoder.encode_batch_fast(batch, add_special_tokens=False), strict=True):
            ids = encoding.ids
            if len(ids) > 1:
                strings.append(("".join(map(spell, ids)), pieces[piece]))
    return strings


def _grow(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    strings: list[tuple[str, int]],
    vocab_size: int,
    max_words: int | None,
    colon_boundary: bool,
    min_frequency: int,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train on the relabelled strings and append what is allowed; train for more when too little was."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    names = dict(zip(_characters(len(tokens)), tokens, strict=True))
    wanted = vocab_size - len(vocab)
    asked = wanted + max(16, wanted // 50)  # a few merges spell a token that exists already
    while True:
        found = _merge_characters(strings, list(names), asked, min_frequency)
        grown = _append(vocab, merges, _spelled(found, names), vocab_size, max_words, colon_boundary)
        if len(grown[0]) == vocab_size or len(found) < asked:
            return grown
        asked *= 2


def _merge_characters(
    strings: list[tuple[str, int]], alphabet: list[str], count: int, min_frequency: int
) -> list[tuple[str, str]]:
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + count, min_frequency=min_frequency, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.train_from_iterator(_repeated(strings), trainer)
    return bpe_parts(tokenizer)[1]


def _repeated(strings: Iterable[tuple[str, int]]) -> Iterator[str]:
    for string, count in strings:
        while count > 0:  # at most a thousand copies at a time
            yield string if count == 1 else "\n".join([string] * min(count, 1000))
            count -= 1000


def _spelled(merges: Iterable[tuple[str, str]], names: dict[str, str]) -> Iterator[tuple[str, str]]:
    for left, right in merges:
        yield "".join(map(names.__getitem__, left)), "".join(map(names.__getitem__, right))


def _append(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    found: Iterable[tuple[str, str]],
    vocab_size: int,
    max_words: int | None,
    colon_boundary: bool,
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Stage-2 merges behind stage-1 merges until V. What a rule refuses is refused in every longer token too."""
    vocab, merges, known = dict(vocab), list(merges), set(merges)
    for pair in found:
        if len(vocab) == vocab_size:
            break
        token = pair[0] + pair[1]
        too_long = max_words is not None and token.count(_SPACE) > max_words
        if too_long or (colon_boundary and _COLON in token.rstrip(_COLON)) or pair in known:
            continue
        known.add(pair)
        merges.append(pair)
        vocab.setdefault(token, len(vocab))
    return vocab, merges
