"""Documentation that runs: every Python block is executed, every command and link exists, every error is explained."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import tokenry.errors
from tokenry.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)


def blocks(page, language):
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "docs"}
    sys.modules["docs"] = type(sys)("docs")  # dataclasses look their module up
    for number, body in enumerate(blocks(page, "python"), start=1):
        exec(compile(body, f"{page.name} block {number}", "exec"), namespace)


def commands():
    group = typer.main.get_command(app)
    for page in PAGES:
        for body in blocks(page, "sh"):
            for line in body.splitlines():
                if line.startswith("tokenry "):
                    yield pytest.param(group, line.split("#")[0].split(), id=f"{page.name}: {line[:60]}")


@pytest.mark.parametrize(("group", "words"), list(commands()))
def test_commands_and_options_exist(group, words):
    command = group.commands[words[1]]
    for word in words[2:]:  # groups: compare audio, train autoencoder
        command = getattr(command, "commands", {}).get(word, command)
    known = {option for parameter in command.params for option in parameter.opts}
    assert {w for w in words if w.startswith("--")} <= known


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make (\w+)", (ROOT / "README.md").read_text(), re.M)) <= targets
    first = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("make ")]
    assert [line.split()[1] for line in first[:2]] == ["demo", "test"]


def test_every_error_of_ours_is_on_the_errors_page():
    page = (ROOT / "docs" / "errors.md").read_text()
    ours = [n for n, c in inspect.getmembers(tokenry.errors, inspect.isclass) if c.__module__ == "tokenry.errors"]
    assert [name for name in ours if name not in page] == []


def test_every_public_name_of_the_wing_is_documented():
    import tokenry.pruning

    text = "\n".join(page.read_text() for page in PAGES)
    classes = [name for name in dir(tokenry.pruning) if name[0].isupper() and name not in ("Kept", "Pruner", "PruningTrace")]
    assert [name for name in classes if name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), target


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "site" / "systems" / "idpruner" / "index.html").is_file()


def test_the_tree_speaks_of_the_library_alone():
    """No machine paths anywhere in what is kept under version control."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/")
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".yml", ".json", ".txt") or path.name in ("Makefile", "run"):
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert found is None or name == "tests/docs/test_docs.py", f"{name}: {found and found.group()}"
