"""Systems of other distributions: the example of the docs, installed on the fly, is listed, shown, compared and reproduced."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = re.compile(r'^```python title="([\w.]+)"\n(.*?)^```', re.M | re.S)


def install(folder, entries, **files):
    """A distribution as pip leaves it: modules beside a .dist-info with its entry points."""
    for name, body in files.items():
        (folder / f"{name}.py").write_text(body)
    info = folder / "largest_norm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: largest-norm\nVersion: 1.0\n")
    lines = "\n".join(f"{slug} = {value}" for slug, value in entries.items())
    (info / "entry_points.txt").write_text(f"[tokenry.systems]\n{lines}\n")
    return folder


@pytest.fixture
def example(tmp_path):
    found = dict(FILES.findall((ROOT / "docs" / "add-a-system.md").read_text()))
    files = {name.removesuffix(".py"): body for name, body in found.items()}
    return install(tmp_path, {"largestnorm": "largest_norm_row:SYSTEM"}, **files)


def run(folder, *words):
    paths = os.pathsep.join((str(folder), str(ROOT / "src")))
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def tokenry(folder, *words):
    done = run(folder, "-m", "tokenry", *words)
    return done.returncode, done.stdout, done.stderr


def test_a_row_of_another_distribution_gets_what_a_row_gets(example):
    code, out, err = tokenry(example, "list", "--wing", "external", "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert (row["slug"], row["wing"], row["status"]) == ("largestnorm", "pruning", "external")
    code, out, err = tokenry(example, "show", "largestnorm", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["class"] == "largest_norm.LargestNorm"
    assert facts["options"]["keep"] == "0.25"
    assert facts["statement"].startswith("Keeping the longest quarter")
    code, out, err = tokenry(
        example, "reproduce", "largestnorm", "--scale", "smoke", "--seeds", "1", "--device", "cpu", "--json"
    )
    assert code in (0, 1), err
    (result,) = json.loads(out)
    assert (result["system"], result["verdict"] is None) == ("largestnorm", False)
    assert (example / "results" / "largestnorm.smoke.json").is_file()


def test_it_is_compared_and_keeps_the_contract(example):
    code = """
from tokenry.catalog import system
from tokenry.lab.compare.methods import methods_of, visual_method
from tokenry.testing import check_contract, contract_instances
import tokenry.pruning
assert "largestnorm" in methods_of("vlm")
assert visual_method("largestnorm", 0.5, 0).keep == 0.5
assert "LargestNorm" not in dir(tokenry.pruning)
for instance in contract_instances(system("largestnorm")).values():
    check_contract(instance)
"""
    done = run(example, "-c", code)
    assert done.returncode == 0, done.stderr


def test_listing_a_class_imports_nothing_of_it(tmp_path):
    install(
        tmp_path, {"mine": "mine:Mine", "broken": "broken:ROW"}, mine="raise SystemExit('imported')", broken="import nowhere"
    )
    code, out, err = tokenry(tmp_path, "list", "--wing", "external", "--json")
    assert code == 0, err
    rows = {row["slug"]: row for row in json.loads(out)}
    assert rows["mine"]["line"] == "from mine:Mine"
    assert "No module named 'nowhere'" in rows["broken"]["line"]


def test_a_system_without_a_claim_says_what_to_add(tmp_path):
    install(tmp_path, {"mine": "mine:Mine"}, mine="class Mine: pass")
    code, out, err = tokenry(tmp_path, "reproduce", "mine", "--scale", "smoke")
    assert code == 2
    assert "mine must hold a Claim named CLAIM" in " ".join(err.split())
    code, out, err = tokenry(tmp_path, "show", "mine", "--json")
    assert code == 0, err
    assert json.loads(out)["statement"] == ""


def test_a_slug_of_ours_is_refused(tmp_path):
    install(tmp_path, {"idpruner": "mine:Mine"}, mine="class Mine: pass")
    code, _, err = tokenry(tmp_path, "list")
    assert code == 2
    assert "has the slug of a system that exists already" in " ".join(err.split())
