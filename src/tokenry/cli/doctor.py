"""``tokenry doctor``: what is installed, what each part needs, and the command that adds what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from typing import Annotated, Any

import typer

from tokenry.extras import EXTRAS

_NEEDS = {
    "core": ("torch", "transformers", "tokenizers", "safetensors", "numpy", "typer", "rich"),
    **{extra: tuple(packages) for extra, packages in EXTRAS.items()},
    "docs": ("mkdocs", "mkdocs-material", "mkdocstrings"),
    "dev": ("pytest", "hypothesis", "ruff", "pyright"),
}
_TOOLS = {"npm": "fetches assets from npm packages", "dpkg": "unpacks assets from Debian packages", "chromium": "browser tests"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False) -> None:
    """Report what is installed, what is missing and the command that adds it. Exit code 3 if a core package is missing."""
    from tokenry.cli.console import out, say_json, table
    from tokenry.errors import MISSING
    from tokenry.lab.assets.folders import ASSETS, cache_dir, is_offline, status
    from tokenry.lab.assets.groups import groups

    packages = {extra: {name: _version(name) for name in names} for extra, names in _NEEDS.items()}
    core_missing = [name for name, version in packages["core"].items() if version is None]
    states = {name: status(name).state for name in ASSETS}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "accelerator": None if packages["core"]["torch"] is None else _accelerator(),
        "transformers": None if packages["core"]["transformers"] is None else _release(),
        "packages": packages,
        "tools": {name: bool(shutil.which(name)) for name in _TOOLS},
        "cache": str(cache_dir()),
        "offline": is_offline(),
        "assets": states,
        "asset_groups": {} if core_missing else groups(),
    }
    if as_json:
        say_json(facts)
    else:
        out().print(
            f"Python {facts['python']}, {facts['cpus']} CPUs, accelerator: {facts['accelerator'] or 'none'}; "
            f"cache {facts['cache']}{' (offline)' if facts['offline'] else ''}",
            highlight=False,
        )
        if facts["transformers"]:
            out().print(_tested(facts["transformers"]), highlight=False)
        rows = []
        for extra, found in packages.items():
            missing = [name for name, version in found.items() if version is None]
            have = ", ".join(f"{name} {version}" for name, version in found.items() if version)
            cure = "" if not missing else "pip install tokenry" if extra == "core" else f"pip install 'tokenry[{extra}]'"
            rows.append((extra, have, ", ".join(missing), cure))
        table("packages", ["extra", "installed", "missing", "command"], rows)
        table(
            "tools",
            ["tool", "used for", "found"],
            [(n, use, "yes" if facts["tools"][n] else "no") for n, use in _TOOLS.items()],
        )
        lines = [_group_line(name, {n: states[n] for n in names}) for name, names in facts["asset_groups"].items()]
        table("assets", ["needed by", "here", "not here", "command"], lines)
    if core_missing:
        raise typer.Exit(MISSING)


def _group_line(name: str, states: dict[str, str]) -> tuple[str, str, str, str]:
    """What needs assets, those here, those not here or damaged, and the command that gets them."""
    wanted = {asset: state for asset, state in states.items() if state != "present"}
    here = ", ".join(asset for asset in states if asset not in wanted)
    missing = ", ".join(asset if state == "missing" else f"{asset} ({state})" for asset, state in wanted.items())
    repair = " --repair" if "damaged" in wanted.values() else ""
    command = f"tokenry assets get --for {repr(name) if ' ' in name else name}{repair}" if wanted else ""
    return name, here, missing, command


def _release() -> dict[str, Any]:
    from tokenry.hosts import release

    return {"installed": release.INSTALLED, "tested": [release.LOWEST, release.NEWEST], "newer": release.is_newer()}


def _tested(facts: dict[str, Any]) -> str:
    low, high = facts["tested"]
    newer = f"newer than any tested release; attachments may miss what changed: pip install 'transformers<={high}'"
    return f"transformers {facts['installed']}, tested with {low} to {high}{': ' + newer if facts['newer'] else ''}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _accelerator() -> str | None:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "mps" if torch.backends.mps.is_available() else None
