"""MkDocs hook: pages and navigation entries that follow from the catalogue, and its tables on the pages that ask for them.

``<!-- systems -->`` and ``<!-- models -->`` become tables, ``<!-- methods: vlm -->`` the names that `compare` knows. Every
built system's page and an API page per wing enter the navigation, the latter with every public name of the wing.
"""

from __future__ import annotations

import re
from importlib import import_module
from inspect import getmodule
from types import ModuleType
from typing import Any

from mkdocs.structure.files import File
from tables import built, models_table, name_of, page_of, systems_table

from tokenry.catalog import built_wings
from tokenry.lab.compare.methods import default_methods

METHODS = re.compile(r"<!-- methods: (\w+) -->")


def on_config(config: Any) -> Any:
    """Put the systems' pages and the wings' API pages in front of what the navigation lists under both heads."""
    heads = {head: pages for entry in config.nav for head, pages in entry.items() if isinstance(pages, list)}
    heads["Systems"][:0] = [{name_of(row): page_of(row)} for row in built()]
    heads["API"][:0] = [{wing: f"api/{wing}.md"} for wing in built_wings()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the API page of every wing."""
    for wing in built_wings():
        files.append(File.generated(config, f"api/{wing}.md", content=api_page(wing)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the tables of one page."""
    if "<!-- systems -->" in markdown:
        markdown = markdown.replace("<!-- systems -->", systems_table())
    if "<!-- models -->" in markdown:
        markdown = markdown.replace("<!-- models -->", models_table())
    return METHODS.sub(lambda m: ", ".join(f"`{name}`" for name in default_methods(m.group(1))), markdown)


def api_page(wing: str) -> str:
    """Every public name of a wing: its own, then those of each system, and where they are defined."""
    parts, seen = [f"# {wing}"], set()
    for title, module in chapters(wing).items():
        found = {defined: name for name in public_names(module) if (defined := definition(module, name))}
        new = {defined: name for defined, name in found.items() if defined not in seen}
        seen.update(new)
        if new:
            parts.append(f"## {title}")
            parts += [f"::: {defined}\n    options: {{heading_level: 3}}" for defined in new]
    return "\n\n".join(parts) + "\n"


def chapters(wing: str) -> dict[str, str]:
    """Heading -> module: the systems of the wing, then what belongs to none, then what is left at its top."""
    systems = {f"[{name_of(row)}](../{page_of(row)})": row.module for row in built() if row.wing == wing}
    shared = {module.rpartition(".")[2]: module for module in import_module(f"tokenry.{wing}")._SHARED}
    return systems | shared | {"Names of the wing": f"tokenry.{wing}"}


def public_names(module: str) -> list[str]:
    """The names a module offers, submodules left out."""
    found = import_module(module)
    names = getattr(found, "__all__", None) or _own_names(found)
    return [name for name in names if not isinstance(getattr(found, name), ModuleType)]


def definition(module: str, name: str) -> str:
    """Dotted path of the place where a public name is written, so that a lazy export is found without being imported."""
    found = import_module(module)
    value = getattr(found, name)
    owner = getattr(value, "__module__", None)
    if isinstance(owner, str) and owner.startswith("tokenry.") and hasattr(value, "__qualname__"):
        return f"{owner}.{value.__qualname__}"
    target = getattr(found, "_EXPORTS", {}).get(name)
    return definition(target, name) if target and target != module else f"{module}.{name}"


def _own_names(module: ModuleType) -> list[str]:
    """Public classes and functions that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getmodule(value) is module and name != "contract_instances"
    ]
