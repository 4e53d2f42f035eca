"""Which assets belong together: those of each system's claim, then those of the commands that read them."""

from __future__ import annotations

from tokenry.catalog import systems
from tokenry.lab.assets.table import ASSETS
from tokenry.lab.assets.table_audio import AUDIO
from tokenry.lazy import suggest

_BY_KIND = {"tokenizer": "audit", "audio": "compare audio", "text": "audit"}
_AUDIO = {"whisper", *(row.name for row in AUDIO)}


def groups() -> dict[str, tuple[str, ...]]:
    """What needs them -> names of assets, each asset with the parts it consists of; systems first, by slug.

    A system that needs none is left out. Assets that no claim names stand under the command that offers them.
    """
    found = {row.slug: row.load_claim().assets for row in systems() if row.status == "built"}
    found = {slug: _with_parts(names) for slug, names in found.items() if names}
    named = {name for names in found.values() for name in names}
    for row in ASSETS.values():
        if row.name not in named:
            key = "compare audio" if row.name in _AUDIO else _BY_KIND.get(row.kind, "others")
            found[key] = (*found.get(key, ()), row.name)
    return found


def assets_for(group: str) -> tuple[str, ...]:
    """The assets of one group, without the parts of others.

    Raises:
        ValueError: nothing of that name needs assets; the message holds the nearest names.
    """
    known = groups()
    if group not in known:
        hint = suggest(group, known) or f"; known: {', '.join(known)}"
        if any(row.slug == group for row in systems()):
            raise ValueError(f"--for: {group} needs no assets; those that do: {', '.join(known)}")
        raise ValueError(f"--for: {group!r} is no system (or command) that needs assets{hint}")
    parts = {part for name in known[group] for part in ASSETS[name].needs}  # fetched with what they are parts of
    return tuple(name for name in known[group] if name not in parts)


def _with_parts(names: tuple[str, ...]) -> tuple[str, ...]:
    parts = [part for name in names for part in (name, *ASSETS[name].needs)]
    return tuple(dict.fromkeys(parts))
