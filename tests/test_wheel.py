"""What users get: the wheel in an empty environment, first without extras, then with each, on two releases of transformers.

Slow and once in CI (``make test-wheel``): it builds the package and installs torch.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tokenry.extras import EXTRAS
from tokenry.hosts.release import LOWEST, NEWEST

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "constraints.txt"
MISSING = 3
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment with the wheel and a working directory that is not the repository."""

    def __init__(self, folder: Path, wheel: Path):
        self.wheel, self.work, self.bin = wheel, folder / "work", folder / "env" / "bin"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
        self.pins = folder / "pins.txt"
        self.pins.write_text(re.sub(r"^transformers==.*\n", "", PINS.read_text(), flags=re.M))
        self.install("torch==2.13.0")
        self.install(f"transformers=={NEWEST}", str(wheel))

    def install(self, *what: str):
        command = [self.bin / "pip", "install", "--quiet", "--disable-pip-version-check", "-c", self.pins, *what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def add(self, extra: str):
        self.install(f"tokenry[{extra}] @ {self.wheel.as_uri()}")

    def run(self, program: str, *words: str) -> subprocess.CompletedProcess:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        quiet = {"TOKENRY_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "COLUMNS": "200", "TQDM_DISABLE": "1"}
        command = [self.bin / program, *words]
        return subprocess.run(command, cwd=self.work, env=keep | quiet, capture_output=True, text=True, check=False)

    def follow_the_readme(self):
        """All Python blocks of the README in one process; they must print nothing on stderr."""
        (self.work / "readme.py").write_text("\n".join(BLOCK.findall((ROOT / "README.md").read_text())))
        done = self.run("python", "readme.py")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT]  # the wheel from the sdist
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    assert (
        wheel.stat().st_size < 12_500_000
    )  # 5.8 MB of it the VQA bed (at most 8), 4.4 MB the audio codecs: what default commands need
    return Environment(folder, wheel)


def test_without_extras(environment):
    listed = environment.run("tokenry", "list")
    assert listed.returncode == 0, listed.stderr
    assert "idpruner" in listed.stdout
    shown = environment.run("tokenry", "show", "d2o")
    assert shown.returncode == 0, shown.stderr
    assert "evidence at scale small" in shown.stdout  # the committed results come with the wheel
    told = environment.run("tokenry", "doctor")
    assert told.returncode == 0, told.stderr
    assert f"transformers {NEWEST}, tested with {LOWEST} to {NEWEST}" in told.stdout
    environment.follow_the_readme()


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "pruning"),
        ("compare", "audio"),
        ("report",),
        ("reproduce", "idpruner", "--scale", "smoke"),
        ("train", "autoencoder"),
        ("audit", "gpt2", "--out", "audit"),
        ("audit", "gpt2", "--engine", "ray"),
    ],
    ids=" ".join,
)
def test_a_missing_extra_is_said_before_any_work(environment, words):
    done = environment.run("tokenry", *words)
    assert done.returncode == MISSING, done.stderr
    assert re.search(r"not installed; run: pip install 'tokenry\[[a-z,]+\]'", done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr  # no progress was shown


def test_with_lab_the_readme_runs_from_top_to_bottom(environment):
    environment.add("lab")
    environment.follow_the_readme()
    compared = environment.run("tokenry", "compare", "pruning", "--limit", "4", "--keep", "0.5")
    assert compared.returncode == 0, compared.stderr
    assert (environment.work / "compare" / "index.html").is_file()
    claimed = environment.run("tokenry", "reproduce", "idpruner", "--scale", "smoke", "--out", "mine")
    assert claimed.returncode in (0, 1), claimed.stderr
    reported = environment.run("tokenry", "report")
    assert reported.returncode == 0, reported.stderr
    assert (environment.work / "site" / "report" / "systems" / "vq.html").is_file()
    for done in (compared, claimed, reported):
        assert "Warning" not in done.stderr, done.stderr


def test_with_lab_on_the_lowest_transformers(environment):
    environment.install(f"transformers=={LOWEST}")
    environment.follow_the_readme()
    compared = environment.run("tokenry", "compare", "pruning", "--limit", "4", "--keep", "0.5", "--out", "lowest")
    assert compared.returncode == 0, compared.stderr
    environment.install(f"transformers=={NEWEST}")


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "lab"])
def test_every_extra_installs_and_is_found(environment, extra):
    environment.add(extra)
    done = environment.run("python", "-c", f"from tokenry.extras import require; require({extra!r})")
    assert (done.returncode, done.stderr) == (0, "")
    versions = environment.run("python", "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)")
    assert versions.stdout.split()[0].startswith("2.13.0")
    assert versions.stdout.split()[1] == NEWEST
    told = environment.run("tokenry", "doctor", "--json")
    assert told.returncode == 0, told.stderr
