"""Documentation that runs: every Python block is executed, every command and link exists, every error is explained."""

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

import tokenry.errors
from tokenry.catalog import built_wings, systems
from tokenry.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BUILD_MAKES = {f"figures/{name}.svg" for name in ("token_map", "quality", "premiums")}
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.M | re.S)


@pytest.fixture
def hooks(monkeypatch):
    """Imports a module of the documentation's own code by name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module


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
            for line in body.replace("\\\n", " ").splitlines():
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


def test_the_readme_has_the_systems_of_the_catalogue(hooks):
    text = (ROOT / "README.md").read_text()
    table = hooks("tables").systems_table("docs/")
    assert table in text, f"run `python docs/tables.py`, or paste this between the marks of the README:\n{table}"
    assert hooks("tables").readme(text) == text


def test_the_models_table_names_every_class_a_host_knows(hooks):
    table = hooks("tables").models_table()
    for name in (
        "Qwen2_5_VLForConditionalGeneration",
        "Gemma3ForConditionalGeneration",
        "Phi3ForCausalLM",
        "SiglipVisionModel",
        "MimiModel",
        "Encoding (tiktoken)",
    ):
        assert f"`{name}`" in table
    rows = {line.split(" | ")[0]: line for line in table.splitlines()}
    for slug in ("idpruner", "zooprune", "todre"):
        assert f"systems/{slug}.md" in rows["| vision-language models"]
    assert "systems/eet.md" in rows["| vision transformers"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_is_narrow_enough_to_be_read_without_scrolling(page):
    lines = [line for _, body in BLOCK.findall(page.read_text()) for line in body.splitlines()]
    assert [line for line in lines if len(line) > 88] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith(("http", "mailto")) and target not in BUILD_MAKES:
            assert (page.parent / target).exists(), target


def build(site, *options):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built without a warning."""
    pytest.importorskip("material")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_built_system_has_a_page_in_the_navigation(site):
    start = (site / "index.html").read_text()
    for row in systems():
        if row.status == "built":
            assert f'href="systems/{row.slug}/"' in start
            assert (site / "systems" / row.slug / "index.html").is_file()


@pytest.mark.parametrize("wing", built_wings())
def test_every_public_name_of_a_wing_stands_on_its_api_page(site, wing):
    page = (site / "api" / wing / "index.html").read_text()
    modules = [f"tokenry.{wing}", *(row.module for row in systems(wing) if row.status == "built")]
    missing = []
    for module in modules:
        found = importlib.import_module(module)
        for name in getattr(found, "__all__", ()):
            if not inspect.ismodule(getattr(found, name)):
                missing += [f"{module}.{name}"] * (re.search(rf'id="tokenry\.[\w.]*\b{name}"', page) is None)
    assert missing == []


def test_a_page_that_the_navigation_lacks_fails_the_build(tmp_path):
    """With the settings of this site, on two small pages."""
    pytest.importorskip("material")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nplugins: []\nnav:\n  - Start: index.md\n")
    assert build(tmp_path / "site", "--config-file", str(config)).returncode == 0
    (tmp_path / "docs" / "stray.md").write_text("# Stray\n")
    done = build(tmp_path / "site", "--config-file", str(config))
    assert done.returncode != 0
    assert 'not included in the "nav"' in done.stderr
    assert "stray.md" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_benchmark_has_a_small_table_on_the_performance_page(hooks, path):
    views, name = hooks("views").VIEWS, path.stem.rpartition("_")[0]
    table = views[name].table(json.loads(path.read_text())["rows"])
    assert table
    assert max(len(row) for row in table) <= 6
    assert f"<!-- benchmark: {name.removesuffix('_peers')} -->" in (ROOT / "docs" / "performance.md").read_text()


def test_the_start_page_shows_pictures_made_by_the_build(site):
    start = (site / "index.html").read_text()
    for name in ("token_map", "quality", "premiums"):
        assert f'src="figures/{name}.svg"' in start
        assert (site / "figures" / f"{name}.svg").read_text().startswith("<?xml")
        assert not (ROOT / "docs" / "figures" / f"{name}.svg").exists()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1300, 390])
def test_pages_fit_a_wide_and_a_narrow_window(site, width):
    """No page scrolls sideways; in the wide window no visible table and no code block does either."""
    inside = "return [...document.querySelectorAll('article .md-typeset__scrollwrap, article pre > code')]" \
        ".filter(e => e.offsetParent && !e.closest('details:not([open])') && e.scrollWidth > e.clientWidth + 1)" \
        ".map(e => e.innerText.slice(0, 60))"  # fmt: skip
    with window(width) as browser:
        for page in ("", "performance", "which-pruner", "command-line", "add-a-system", "systems/vq", "systems/idpruner"):
            browser.get((site / page / "index.html").as_uri())
            wide, shown = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert (shown, wide) == (width, width), page
            assert width < 1300 or browser.execute_script(inside) == [], page


@contextmanager
def window(width):
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ):
        options.add_argument(flag)
    if width < 500:  # a window cannot be narrower
        metrics = {"width": width, "height": 844, "pixelRatio": 1}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_window_size(width, 900)
    yield opened
    opened.quit()


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
