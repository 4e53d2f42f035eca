"""Messages of gettext catalogues (`.po` files) without gettext."""

from __future__ import annotations

import ast
import re
from pathlib import Path

_KEYWORD = re.compile(r'(msgctxt|msgid_plural|msgid|msgstr(?:\[\d+\])?)\s+(".*")$')
_PLACEHOLDER = re.compile(r"%\(\w+\)[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]|%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z%]|\{\{?[^{}]*\}?\}|<[^<>]*>")


def po_messages(path: Path) -> dict[tuple[str, str], str]:
    """(context, English) -> translation of a catalogue, unescaped; fuzzy, plural and untranslated entries left out."""
    messages: dict[tuple[str, str], str] = {}
    entry: dict[str, str] = {}
    fuzzy, key = False, ""
    for number, raw in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        line = raw.strip()
        if not line:
            if entry.get("msgid") and entry.get("msgstr") and not fuzzy and "msgid_plural" not in entry:
                messages[entry.get("msgctxt", ""), entry["msgid"]] = entry["msgstr"]
            entry, fuzzy, key = {}, False, ""
        elif line.startswith("#"):
            fuzzy = fuzzy or (line.startswith("#,") and "fuzzy" in line)
        elif match := _KEYWORD.match(line):
            key = match[1]
            entry[key] = _unescape(match[2], path, number)
        elif line.startswith('"') and key:
            entry[key] += _unescape(line, path, number)
        else:
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not a line of a gettext catalogue")
    return messages


def has_words(text: str) -> bool:
    """Whether a message holds at least two letters in a row outside placeholders and markup."""
    return re.search(r"[^\W\d_]{2}", _PLACEHOLDER.sub(" ", text)) is not None


def _unescape(quoted: str, path: Path, number: int) -> str:
    try:
        return ast.literal_eval(quoted)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path}, line {number}: {quoted[:40]!r} is not a quoted string") from error
