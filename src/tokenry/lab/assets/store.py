"""The asset cache on disk: where it is, and folders that carry a manifest of their files' sizes and SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

from tokenry.errors import AssetDamagedError

MANIFEST = "manifest.json"
_CHECKED: dict[Path, tuple[tuple[str, int, int], ...]] = {}  # folders whose checksums this process has compared


def cache_dir() -> Path:
    """Root of the cache: `TOKENRY_CACHE`, or the cache folder of the user on this platform."""
    given = os.environ.get("TOKENRY_CACHE")
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tokenry"


def is_offline(offline: bool | None = None) -> bool:
    """The argument if given, else `TOKENRY_OFFLINE`."""
    return switch("TOKENRY_OFFLINE") if offline is None else offline


def switch(variable: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def settle(folder: Path, target: Path, record: dict[str, Any]) -> None:
    """Write the manifest and move the folder in place; an older copy is moved away first and then removed."""
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, file_sha256(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    if not files:
        raise AssetDamagedError(f"{target.name}: nothing was unpacked, the archive holds none of the expected files")
    record = {**record, "files": files, "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    (folder / MANIFEST).write_text(json.dumps(record, indent=1))
    if target.exists():
        os.replace(target, folder.parent / "old")
    os.replace(folder, target)
    forget(target)


def problem_of(folder: Path, *, hashes: bool = True) -> str | None:
    """First difference between a folder and its manifest, or None. Checksums are compared once per state of the files."""
    try:
        files: dict[str, list[Any]] = manifest(folder)["files"]
        state: list[tuple[str, int, int]] = []
        for name, (size, _) in files.items():
            if ".." in PurePosixPath(name).parts:
                return f"{MANIFEST} names the outside path {name!r}"
            info = (folder / name).stat()
            if info.st_size != size:
                return f"{name} has {info.st_size} bytes, expected {size}"
            state.append((name, info.st_size, info.st_mtime_ns))
        if not hashes or _CHECKED.get(folder) == tuple(state):
            return None
        for name, (_, digest) in files.items():
            if file_sha256(folder / name) != digest:
                return f"the SHA-256 of {name} is not the recorded one"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    _CHECKED[folder] = tuple(state)
    return None


def manifest(folder: Path) -> dict[str, Any]:
    """The record of a folder: origin, asset row, files with sizes and SHA-256."""
    return json.loads((folder / MANIFEST).read_text())


def bytes_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def forget(folder: Path) -> None:
    """Make the next `problem` compare the checksums again."""
    _CHECKED.pop(folder, None)
