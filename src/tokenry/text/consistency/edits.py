"""What happened to a word: copied, edited, or written with other tokens that spell the same text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from tokenry.hosts.text import ByteVocabulary, as_bytes

OUTCOMES = ("unchanged", "replaced", "different")
ARTEFACTS = (
    "newline/whitespace substitution",
    "whitespace detachment/reattachment",
    "whitespace-boundary shift",
    "acronym split",
    "plural/possessive tail",
    "morphological boundary",
    "proper-noun segmentation",
    "intra-word resegmentation",
    "other",
)
SHAPES = ("same", "split", "merge")
TAILS = ("s", "es", "'s", "\u2019s")
_PREFIXES = """
anti auto be bi bio co contra counter de dis eco en ex extra fore hyper il im in inter intra ir macro mal mega micro mid mini
mis mono multi neo non out over para poly post pre pro pseudo re semi step sub super tele trans tri ultra un under uni up vice
"""
_SUFFIXES = """
able al ally ance ancy ant ary ate ation dom ed ee eer en ence ency ent er ery ess est ful hood ian ible ic ical ify ily ing ion
ious ise ish ism ist ity ive ize less like ling ly ment ness or ory ous ship sion some th tion ty ward wards ways wise worthy y
"""
PREFIXES = frozenset(_PREFIXES.split())
SUFFIXES = frozenset(_SUFFIXES.split())
_LINE_BREAK = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

Pieces = Sequence[str | bytes] | str | bytes


class _Edit(NamedTuple):
    outcome: str
    artefact: str | None
    shape: str


class Edit(_Edit):
    """The verdict on one word; a tuple ``(outcome, artefact, shape)``.

    Attributes:
        outcome: ``unchanged`` (same tokens), ``replaced`` (other text), ``different`` (other tokens, same text: phantom edit).
        artefact: one of ARTEFACTS for ``different``, None otherwise.
        shape: ``same``, ``split`` (more tokens than before) or ``merge`` (fewer).
        tokens_before, tokens_after: numbers of tokens.
    """

    tokens_before: int
    tokens_after: int

    def __new__(cls, outcome: str, artefact: str | None, shape: str, tokens_before: int, tokens_after: int) -> Edit:
        """The three fields, and the numbers of tokens beside them."""
        made = super().__new__(cls, outcome, artefact, shape)
        made.tokens_before, made.tokens_after = tokens_before, tokens_after
        return made

    def __getnewargs__(self) -> Any:
        return (*self, self.tokens_before, self.tokens_after)


def classify_edit(before: Pieces, after: Pieces, *, sentence_start: bool = False) -> Edit:
    """Outcome, artefact and shape of a word that had the tokens `before` and was written with the tokens `after`.

    Both are token texts in order, a space being a space: ``[" Dorm", "er"]``; bytes where a token ends inside a character; a
    single str or bytes is one token. Equal lists of texts are taken as equal ids: where two ids may spell the same text, use
    `classify_edit_ids`. Outer white space is no edit, case and spelling are. `sentence_start`: the capital of the word may be
    due to its place, so it says nothing about a name.

    Raises:
        TypeError, ValueError: tokens are neither str nor bytes, or `before` is empty or only white space.
    """
    old, new = _pieces("before", before), _pieces("after", after)
    return judge_pieces(old, new, same_ids=old == new, sentence_start=sentence_start)


def classify_edit_ids(before: Sequence[int], after: Sequence[int], tokenizer: Any, *, sentence_start: bool = False) -> Edit:
    """`classify_edit` on ids: identical ids are never ``different``, other ids of the same text always are.

    Special tokens stand for their names, so a special token inside a span is a real edit.

    Raises:
        ValueError: an id is outside the vocabulary, or `before` spells nothing but white space.
    """
    vocabulary = ByteVocabulary.of(tokenizer)
    old, new = ([spelled(token, vocabulary) for token in ids] for ids in (before, after))
    return judge_pieces(old, new, same_ids=list(before) == list(after), sentence_start=sentence_start)


def spelled(token: int, vocabulary: ByteVocabulary) -> bytes:
    """Bytes of an id, the name of a special one; b"" for a hole of the vocabulary.

    Raises:
        ValueError: the id is outside the vocabulary.
    """
    if not 0 <= token < vocabulary.size:
        raise ValueError(f"ids must be in 0..{vocabulary.size - 1}, got {token}")
    return vocabulary.pieces[token] or vocabulary.special.get(token, "").encode()


def judge_pieces(old: list[bytes], new: list[bytes], *, same_ids: bool, sentence_start: bool = False) -> Edit:
    """The decision on byte pieces; `same_ids` says whether the ids are the same."""
    word, other = _text(old).strip(), _text(new).strip()
    if not word:
        raise ValueError(f"before must spell more than white space, got {old!r}")
    shape = "same" if len(new) == len(old) else "split" if len(new) > len(old) else "merge"
    outcome = "unchanged" if same_ids else "replaced" if other != word else "different"
    artefact = artefact_of(old, new, sentence_start=sentence_start) if outcome == "different" else None
    return Edit(outcome, artefact, shape, len(old), len(new))


def artefact_of(old: list[bytes], new: list[bytes], *, sentence_start: bool = False) -> str:
    """Type of a phantom edit; the first rule that fits decides, in the order of ARTEFACTS."""
    before, after = _text(old), _text(new)
    word = before.strip()
    if _spaces(before) != _spaces(after) and _LINE_BREAK.search(after):
        return ARTEFACTS[0]
    if _blank(old) + _blank(new) and _cores(old) == _cores(new):
        return ARTEFACTS[1]
    if old != new and _without_space(old) == _without_space(new):
        return ARTEFACTS[2]
    changed = _cuts(old) ^ _cuts(new)
    if not changed:
        return ARTEFACTS[8]
    if _is_acronym(word):
        return ARTEFACTS[3]
    if len(new) > 1 and _text(new[-1:]).rstrip() in TAILS and _text(new[:-1]).strip():
        return ARTEFACTS[4]
    if _is_morphological(word, changed):
        return ARTEFACTS[5]
    if word[0].isupper() and not sentence_start:
        return ARTEFACTS[6]
    return ARTEFACTS[7]


def _pieces(name: str, pieces: Pieces) -> list[bytes]:
    if isinstance(pieces, (str, bytes)):
        pieces = [pieces]
    if not isinstance(pieces, Sequence):
        raise TypeError(f"{name} must be a sequence of token texts, got {type(pieces).__name__}")
    return [as_bytes(name, piece) for piece in pieces]


def _text(pieces: list[bytes]) -> str:
    return b"".join(pieces).decode("utf-8", "surrogateescape")


def _spaces(text: str) -> list[str]:
    return [char for char in text if char.isspace()]


def _blank(pieces: list[bytes]) -> int:
    return sum(bool(piece) and not _text([piece]).strip() for piece in pieces)


def _cores(pieces: list[bytes]) -> list[str]:
    return [core for core in (_text([piece]).strip() for piece in pieces) if core]


def _without_space(pieces: list[bytes]) -> list[bytes]:
    return [pieces[0].removeprefix(b" "), *pieces[1:]] if pieces else []


def _cuts(pieces: list[bytes]) -> set[int]:
    """Byte positions inside the word, outer white space left out, where one token ends and the next begins."""
    text = _text(pieces)
    lead = len(text[: len(text) - len(text.lstrip())].encode("utf-8", "surrogateescape"))
    size = len(text.strip().encode("utf-8", "surrogateescape"))
    found, place = set(), -lead
    for piece in pieces:
        place += len(piece)
        if 0 < place < size:
            found.add(place)
    return found


def _is_acronym(word: str) -> bool:
    return sum(char.isupper() for char in word) >= 2 and not any(char.islower() for char in word)


def _is_morphological(word: str, changed: set[int]) -> bool:
    """Whether every boundary that came or went lies behind a known prefix or before a known suffix, letters on both sides."""
    data = word.lower().encode("utf-8", "surrogateescape")
    if not word.isalpha() or len(data) != len(word.encode("utf-8", "surrogateescape")):
        return False
    parts = [(data[:cut].decode("utf-8", "replace"), data[cut:].decode("utf-8", "replace")) for cut in changed]
    return all(front in PREFIXES or back in SUFFIXES for front, back in parts)
