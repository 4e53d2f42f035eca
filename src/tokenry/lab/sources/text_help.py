"""The help of LibreOffice: blocks of text that carry the same name in every language."""

from __future__ import annotations

import json
from pathlib import Path

from tokenry.lab.assets.folders import asset, derived, fetch
from tokenry.lab.sources.text_html import named_blocks

HELP = "libreoffice-help"
_FILE = "blocks.json"


def help_locales() -> dict[str, str]:
    """Locale (`en`, `pt-BR`) -> asset with its pages."""
    return {"en": HELP, **{_locale(name.removeprefix(f"{HELP}-")): name for name in asset(HELP).needs}}


def _locale(package: str) -> str:
    language, _, country = package.partition("-")
    return f"{language}-{country.upper()}" if country else language


def help_blocks(name: str) -> dict[str, str]:
    """Blocks of an asset's pages, "page#id" -> text; the pages are read once and the result is kept."""

    def build(target: Path) -> None:
        pages = next(fetch(name).glob("**/help/*/text"))
        blocks = {
            f"{path.relative_to(pages).as_posix()}#{key}": text
            for path in sorted(pages.rglob("*.html"))
            for key, text in named_blocks(path.read_text(encoding="utf-8")).items()
        }
        (target / _FILE).write_text(json.dumps(blocks, ensure_ascii=False), encoding="utf-8")

    return json.loads((derived(name, "blocks", build) / _FILE).read_text(encoding="utf-8"))
