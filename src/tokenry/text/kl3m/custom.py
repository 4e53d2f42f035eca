"""Custom tokens of the domain recipe: strings that are never split, in groups that can be chosen."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenry.core.checks import check_choice
from tokenry.errors import MissingDependencyError

_TAGS = tuple(
    "html head body div span img table thead tbody tfoot tr td ul ol li h1 h2 h3 h4 iframe script style svg input button form "  # noqa: SIM905
    "label select option textarea meta link title pre code row column".split()
)
_ATTRIBUTES = ("href", "src", "alt", "title", "class", "id")
_ROMANS = ("ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")


def _whitespace(lowercase: bool) -> list[str]:
    return [*_runs(" \t\r\n"), "\r\n", "\t "]


def _markdown(lowercase: bool) -> list[str]:
    openers = ["http://", "https://", "www.", "ftp://", "mailto:", "tel:", "://"]
    return [*("#" * n for n in range(2, 7)), "**", "~~", "```", "![", *openers, *_runs(".-=_*~")]


def _html(lowercase: bool) -> list[str]:
    both = [str] if lowercase else [str, str.upper]
    opening = [f"<{case(tag)}" for case in both for tag in _TAGS]
    attributes = [f" {case(name)}=" for case in both for name in _ATTRIBUTES]
    return [*opening, *(f"</{tag}>" for tag in _TAGS), *attributes]


def _json(lowercase: bool) -> list[str]:
    return ['{"', '"}', '["', '"]', '":', '","', '":"', "null", "true", "false"]


def _xml(lowercase: bool) -> list[str]:
    return ["<!--", "-->", "<![CDATA[", "]]>", "<?xml", "<xml", "</xml>"]


def _years(lowercase: bool) -> list[str]:
    return [str(year) for year in range(1776, 2050)]


def _enumerations(lowercase: bool) -> list[str]:
    romans = [*_ROMANS, *(() if lowercase else map(str.upper, _ROMANS))]
    return [f"({mark})" for mark in [*string.ascii_letters, *map(str, range(1, 100)), *romans]]


def _numbers(lowercase: bool) -> list[str]:
    return [str(number) for number in range(10, 1000)]


def _runs(characters: str) -> list[str]:
    return [character * length for character in characters for length in range(2, 9)]


_GROUPS: dict[str, Callable[[bool], list[str]]] = {
    "whitespace": _whitespace,
    "markdown": _markdown,
    "html": _html,
    "json": _json,
    "xml": _xml,
    "years": _years,
    "enumerations": _enumerations,
    "numbers": _numbers,
}
GROUPS = (*_GROUPS, "citations")
_BASE = ("whitespace", "markdown", "html", "json", "xml", "years")


def custom_tokens(
    *, citations: Iterable[str] | None = None, lowercase: bool = False, groups: Sequence[str] | None = None
) -> list[str]:
    """The curated tokens, sorted, each once, none of a single character.

    Args:
        citations: abbreviations of reporters, laws, journals and case names; split at white space. The released code downloads
            them; here they are yours to give (`reporter_abbreviations` reads an installed package). Giving any, even an
            empty list, also switches on enumerations such as "(iv)" and the numbers 10..999, which belong to that part.
        lowercase: the twin for lower-cased text.
        groups: names out of ``GROUPS`` in place of the default choice.

    Returns:
        500 tokens by default, 457 in lower case.

    Raises:
        ValueError: an unknown group, or the group "citations" without a list.
        TypeError: `citations` is one string or holds something else than strings.
    """
    if isinstance(citations, (str, bytes)):
        raise TypeError("citations must be a collection of strings, got one string")
    given = None if citations is None else list(citations)
    for index, text in enumerate(given or ()):
        if not isinstance(text, str):
            raise TypeError(f"citations[{index}] must be a str, got {type(text).__name__}")
    chosen = (_BASE if given is None else GROUPS) if groups is None else tuple(groups)
    for name in chosen:
        check_choice("groups", name, GROUPS)
    if "citations" in chosen and given is None:
        raise ValueError("groups must not name 'citations' unless a list of citations is given")
    tokens = [token for name in chosen if name != "citations" for token in _GROUPS[name](lowercase)]
    if "citations" in chosen:
        tokens += [piece for text in given or () for piece in text.split()]
    if lowercase:
        tokens = [token.lower() for token in tokens]
    return sorted(token for token in set(tokens) if len(token) > 1)


def reporter_abbreviations() -> list[str]:
    """Citation abbreviations of the installed `reporters-db` package (Free Law Project): keys, and variations of reporters.

    Raises:
        MissingDependencyError: the package is not installed.
    """
    spec = find_spec("reporters_db")
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError("reporters_db is needed here and could not be found; run: pip install reporters-db")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    return citation_strings(folder)


def citation_strings(folder: Path) -> list[str]:
    """Abbreviations out of a folder with laws.json, reporters.json, journals.json and case_name_abbreviations.json.

    Raises:
        ValueError: a file is missing or not a JSON object.
    """
    found: list[str] = []
    for name in ("laws", "reporters", "journals", "case_name_abbreviations"):
        path = folder / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"folder must hold {path.name}, got {str(folder)!r} without it")
        table: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError(f"{path.name} must be a JSON object, got {type(table).__name__}")
        found.extend(table)
        if name == "reporters":
            found.extend(v for records in table.values() for record in records for v in record.get("variations", ()))
    return found
