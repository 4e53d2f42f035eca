"""The tables that come from the catalogue and the hosts. ``python docs/tables.py`` writes the README's again."""

from __future__ import annotations

import re
from pathlib import Path

from tokenry.catalog import System, systems

ROOT = Path(__file__).resolve().parent.parent
README = re.compile(r"(<!-- systems -->\n).*?(\n<!-- end of systems -->)", re.S)


def built() -> list[System]:
    """The systems of this distribution that are built, in catalogue order."""
    return [row for row in systems() if row.status == "built"]


def page_of(row: System) -> str:
    """The page of a system, relative to ``docs``."""
    return f"systems/{row.slug}.md"


def name_of(row: System) -> str:
    """What the heading of the system's page calls it, up to a colon."""
    first = (ROOT / "docs" / page_of(row)).read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ").partition(":")[0]


def systems_table(folder: str = "") -> str:
    """A line per built system; `folder` leads from the page that shows it to ``docs``."""
    lines = ["| system | for | what it does |", "|---|---|---|"]
    lines += [f"| [{name_of(row)}]({folder}{page_of(row)}) | {row.serves} | {row.line} |" for row in built()]
    return "\n".join(lines)


def models_table() -> str:
    """The classes that every host knows, and the systems whose code uses that host."""
    from tokenry.hosts import decoder, quantizers
    from tokenry.hosts.audio import base as audio
    from tokenry.hosts.vision import towers
    from tokenry.hosts.vlm import families

    hosts = {
        "vision-language models": ("vlm", families.SUPPORTED),
        "decoders, for the KV cache": ("cache", decoder.SUPPORTED),
        "vision transformers": ("vision", towers.SUPPORTED),
        "tokenizers": ("text", _tokenizers()),
        "quantizers inside models": ("quantizers", quantizers.SUPPORTED),
        "audio codecs": ("audio", audio.SUPPORTED),
    }
    lines = ["| what | classes | systems |", "|---|---|---|"]
    for title, (room, classes) in hosts.items():
        users = ", ".join(f"[{name_of(row)}]({page_of(row)})" for row in built() if _uses(row, room))
        lines.append(f"| {title} | {', '.join(f'`{name}`' for name in classes)} | {users} |")
    return "\n".join(lines)


def _tokenizers() -> list[str]:
    """What the text host says that it takes."""
    from tokenry.errors import UnsupportedModelError
    from tokenry.hosts.text.files import as_backend

    try:
        as_backend(None)
    except UnsupportedModelError as error:
        return str(error).partition("supported: ")[2].split(", ")
    raise AssertionError("None was taken for a tokenizer")


def _uses(row: System, room: str) -> bool:
    """Whether a file of the system imports that host."""
    place = ROOT.joinpath("src", *row.module.split("."))
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return any(re.search(rf"\btokenry\.hosts\.{room}\b", path.read_text(encoding="utf-8")) for path in files)


def readme(text: str) -> str:
    """The README with its systems table as the catalogue has it."""
    return README.sub(lambda m: m.group(1) + systems_table("docs/") + m.group(2), text)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")
