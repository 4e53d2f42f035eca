"""The table of extras is the package's own, and what is missing is said with the command that adds it."""

import importlib.util
import re
from pathlib import Path

import pytest

from tokenry.cli import run
from tokenry.errors import MISSING, MissingDependencyError
from tokenry.extras import EXTRAS, require
from tokenry.lab.evidence.results import results_folder

ROOT = Path(__file__).resolve().parents[1]


def declared():
    text = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    rows = re.findall(r"^(\w+) = \[(.*)\]$", text, re.M)
    return {extra: sorted(re.findall(r'"([\w-]+)', packages)) for extra, packages in rows}


def test_the_table_is_that_of_the_package():
    ours = {extra: sorted(packages) for extra, packages in EXTRAS.items()}
    assert ours == {extra: packages for extra, packages in declared().items() if extra not in ("dev", "docs")}


def test_all_that_is_missing_is_named_with_one_command(monkeypatch):
    absent = {"PIL", "soundfile", "ray"}
    find = importlib.util.find_spec
    monkeypatch.setattr("tokenry.extras.find_spec", lambda name: None if name in absent else find(name))
    with pytest.raises(MissingDependencyError, match=r"pillow, soundfile are needed .* 'tokenry\[lab\]'"):
        require("lab")
    with pytest.raises(MissingDependencyError, match=r"ray, soundfile are needed .* 'tokenry\[scale,audio\]'"):
        require("scale", "audio", "search")
    with pytest.raises(MissingDependencyError, match=r"soundfile is needed .* 'tokenry\[audio\]'"):
        require("audio")
    require("search")


@pytest.mark.parametrize(
    "words", [("compare", "pruning"), ("compare", "audio"), ("report",), ("reproduce", "glsim"), ("train", "autoencoder")]
)
def test_commands_refuse_before_they_work(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tokenry.extras.find_spec", lambda name: None)
    assert run(list(words)) == MISSING
    assert "pip install 'tokenry[lab" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_results_are_the_ones_here_or_those_that_come_with_the_library(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert results_folder() == ROOT / "results"
    (tmp_path / "results").mkdir()
    assert results_folder() == ROOT / "results"  # empty
    (tmp_path / "results" / "vq.smoke.json").write_text("{}")
    assert results_folder() == Path("results")
    assert results_folder(tmp_path) == tmp_path
