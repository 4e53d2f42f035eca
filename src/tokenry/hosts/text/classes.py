"""Text by the classes that pre-tokenizers look at: one representative of a pattern of classes stands for all that share it."""

from __future__ import annotations

import codecs
import unicodedata
from functools import lru_cache

# The English contractions and what begins them: "'l" may be cut from the next l, or be a piece by itself.
_CONTRACTIONS = ("re", "ve", "ll", "r", "v", "l", "e", "s", "t", "m", "d")
# Punctuation that pre-tokenizers treat apart: contractions, path separators, the underscore of \w.
_NAMED = "'/_\u2019"
_CJK = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FA5), (0x9FA6, 0x9FFF), (0xAC00, 0xD7AF), (0xF900, 0xFAFF))

# What may follow, as far as a pre-tokenizer that looks ahead can tell it apart from other text.
FUTURES = ("", "a", " a", "\n", "\r", " ", ".", "..", "1", "11", "s", "A", "\u0301", "\u4e2d")
_AFTER = {"space": ("", "a", "\n", " ", "1"), "digit": ("", "1", "11"), "letter": ("",), "quote": ("", "a", ".", "s")}
_AFTER["other"] = ("", "a", ".")


@lru_cache(maxsize=65536)
def char_class(char: str) -> str:
    """Class of a character: itself for ASCII punctuation and all spaces, else general category and script block."""
    code = ord(char)
    category = unicodedata.category(char)
    if code < 128:
        return {"Lu": "A", "Ll": "a", "Nd": "1"}.get(category, char)
    if char.isspace():
        return char
    block = next((low for low, high in _CJK if low <= code <= high), 0)
    return f"{category}{block}"


def compress(text: str, *, start_of_token: bool = False, coarse: bool = True) -> tuple[str, tuple[str, ...], list[int]]:
    """Shorten runs of one class: letters to two, with `coarse` punctuation to three; returns (text, classes, positions kept).

    Letters of the English contractions stand for themselves at the start of a token and after an apostrophe. `coarse` takes
    punctuation together, and symbols, but for the few characters that pre-tokenizers name.
    """
    classes = [_group(char) if coarse else char_class(char) for char in text]
    at = [0] if start_of_token else []
    at += [i + 1 for i, char in enumerate(text) if char in "'\u2019"]
    for place in at:
        lower = text[place : place + 2].lower()
        size = next((len(c) for c in _CONTRACTIONS if lower.startswith(c) and lower.isascii()), 0)
        for index in range(place, place + size):
            classes[index] = "=" + text[index]
    kept = [i for i in range(len(text)) if not _inside_run(classes, i)]
    return "".join(text[i] for i in kept), tuple(classes[i] for i in kept), kept


def _inside_run(classes: list[str], i: int) -> bool:
    """Whether position i can be left out: the first of a run stays, and the last one (letters) or two."""
    name = classes[i]
    last = 1 if _is_letter_class(name) else 2 if name in ("P", "S") else 0
    return bool(last) and i > 0 and classes[i - 1] == name and classes[i + 1 : i + 1 + last] == [name] * last


@lru_cache(maxsize=65536)
def _group(char: str) -> str:
    name = char_class(char)
    kind = unicodedata.category(char)[0]
    return kind if kind in "PS" and char not in _NAMED else name


def _is_letter_class(name: str) -> bool:
    return name in ("A", "a") or (len(name) > 1 and name[0] in "LM")


def begins_contraction(text: str) -> bool:
    """Whether `text` ends in an apostrophe and the first of the two letters of a contraction."""
    return text[-2:-1] in ("'", "\u2019") and text[-1:] in "lrvLRV"


def open_futures(text: str) -> tuple[str, ...]:
    """What may follow the text so far, which may end inside a contraction."""
    return (*FUTURES, "l", "e") if begins_contraction(text) else FUTURES


def futures_of(text: str, *, inside: bool = False) -> tuple[str, ...]:
    """What may follow `text`, as far as it can change where `text` is cut; `inside`: also the rest of a contraction."""
    if not text:
        return FUTURES
    last = text[-1]
    if last.isspace():
        return _AFTER["space"]
    if unicodedata.category(last)[0] == "N":
        return _AFTER["digit"]
    if inside and begins_contraction(text):
        return ("", "l", "e")
    return _AFTER["letter" if last.isalpha() else "quote" if last in "'\u2019" else "other"]


def split_partial(data: bytes) -> tuple[str, bytes]:
    """Complete text and the bytes of an unfinished last character.

    Raises:
        ValueError: `data` is not the beginning of any UTF-8 text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data must be UTF-8 (it may end inside a character), got byte {data[error.start]:#04x} at position {error.start}"
        ) from None
    return text, decoder.getstate()[0]


def is_prefix(data: bytes) -> bool:
    """Whether `data` is the beginning of some UTF-8 text."""
    try:
        split_partial(data)
    except ValueError:
        return False
    return True


def code_points(partial: bytes) -> range:
    """Code points whose UTF-8 form starts with `partial`, an unfinished character of 1 to 3 bytes."""
    lead = partial[0]
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    value = lead & (0x7F >> length)
    for byte in partial[1:]:
        value = value << 6 | byte & 0x3F
    free = 6 * (length - len(partial))
    floor = {2: 0x80, 3: 0x800, 4: 0x10000}[length]
    return range(max(value << free, floor), min(((value + 1) << free), 0x110000))


@lru_cache(maxsize=4096)
def completions(partial: bytes, per_class: int = 1) -> tuple[str, ...]:
    """Up to `per_class` characters of every class whose UTF-8 form starts with `partial`; the empty string when it is empty."""
    if not partial:
        return ("",)
    found: dict[str, list[str]] = {}
    for code in code_points(partial):
        if not 0xD800 <= code <= 0xDFFF:
            found.setdefault(char_class(chr(code)), []).append(chr(code))
    return tuple(char for chars in found.values() for char in chars[:: -(-len(chars) // per_class)])


@lru_cache(maxsize=1)
def _second_characters() -> frozenset[str]:
    """Characters that are the second half of a canonical composition."""
    pairs = (unicodedata.decomposition(chr(code)).split() for code in range(0x110000))
    return frozenset(chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<")


def may_compose(char: str) -> bool:
    """Whether normalisation form C may join `char` with the one before it."""
    hangul = 0x1161 <= ord(char) <= 0x1175 or 0x11A8 <= ord(char) <= 0x11C2
    return hangul or unicodedata.combining(char) > 0 or char in _second_characters()


def legal_count(partial: bytes) -> int:
    """Number of characters whose UTF-8 form starts with `partial`."""
    points = code_points(partial)
    return len(points) - len(range(max(points.start, 0xD800), min(points.stop, 0xE000)))
