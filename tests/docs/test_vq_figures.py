"""The figures of the quantizers' page are those of the committed result."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_figures_are_drawn_from_the_committed_result(tmp_path):
    pytest.importorskip("matplotlib")
    result = ROOT / "results" / "vq.small.json"
    command = [sys.executable, str(ROOT / "docs" / "vq_figures.py"), str(result), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("vq_rate_distortion.svg", "vq_collapse.svg"):
        drawn, committed = (ElementTree.parse(folder / name) for folder in (tmp_path, ROOT / "docs" / "figures"))
        # coordinates of every mark; fonts and ids may differ between versions of the drawing library
        marks = [
            [(e.get("x"), e.get("y")) for e in tree.iter("{http://www.w3.org/2000/svg}use")] for tree in (drawn, committed)
        ]
        assert len(marks[0]) > 20
        assert marks[0] == marks[1], f"{name} is out of date; run: python docs/vq_figures.py"
