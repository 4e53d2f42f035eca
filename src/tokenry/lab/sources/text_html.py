"""Blocks of text (paragraphs, list items, headings, cells) of an HTML page, in order."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

_BLOCKS = frozenset({"p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "td", "th", "caption"})
_VOID = frozenset({"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"})
_LEFT_OUT = frozenset({"head", "pre", "script", "style"})
_NAMED = re.compile(r'<(p|h[1-6])\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)  # blocks of that kind hold none
_TAG = re.compile(r"<[^>]*>")
_NAVIGATION = frozenset({"navheader", "navfooter", "toc"})


class _Blocks(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, list[str]]] = []
        self._open: list[tuple[str, bool]] = []
        self._left_out = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID:
            return
        left_out = tag in _LEFT_OUT or dict(attrs).get("class") in _NAVIGATION
        self._open.append((tag, left_out))
        self._left_out += left_out
        if tag in _BLOCKS and not self._left_out:
            self.found.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in {name for name, _ in self._open}:
            return
        while self._open:
            name, left_out = self._open.pop()
            self._left_out -= left_out
            if name == tag:
                break

    def handle_data(self, data: str) -> None:
        if not self._left_out and self.found and any(name in _BLOCKS for name, _ in self._open):
            self.found[-1][1].append(data)


def html_blocks(page: str) -> list[tuple[str, str]]:
    """(tag, text) of every block of a page, white space collapsed; navigation, code listings and scripts left out.

    Text of a block that holds other blocks counts to the block opened last. Blocks without text keep their place, so
    that translations of a page can be compared block by block.
    """
    parser = _Blocks()
    parser.feed(page)
    parser.close()
    return [(tag, " ".join("".join(parts).split())) for tag, parts in parser.found]


def named_blocks(page: str) -> dict[str, str]:
    """Text of every paragraph and heading that has an id, by id (the first of an id counts), white space collapsed."""
    blocks: dict[str, str] = {}
    for _, name, content in _NAMED.findall(page):
        if text := " ".join(html.unescape(_TAG.sub("", content)).split()):
            blocks.setdefault(name, text)
    return blocks
