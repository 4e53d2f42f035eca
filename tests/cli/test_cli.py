"""The command line as a script sees it: exit codes, JSON, messages on stderr."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tokenry.catalog import system, systems
from tokenry.cli import run


def call(capsys, *arguments):
    code = run(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_shows_all_41_and_pretends_nothing(capsys, pytestconfig):
    code, out, _ = call(capsys, "list", "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 41
    measured = {path.name.partition(".")[0] for path in (pytestconfig.rootpath / "results").glob("*.small.json")}
    assert {r["slug"] for r in rows if r["status"] == "built"} == measured  # built = there is published evidence
    assert {r["verdict"] for r in rows if r["status"] == "built"} <= {"holds", "inconclusive", "fails", "vacuous"}
    assert {r["verdict"] for r in rows if r["status"] == "planned"} == {""}
    code, out, _ = call(capsys, "list", "--wing", "pruning", "--built", "--json")
    assert len(json.loads(out)) == 6
    code, out, _ = call(capsys, "list")
    assert "idpruner" in out
    assert "planned" in out


def test_the_catalogue_points_at_what_exists():
    for row in systems():
        if row.status == "built":
            assert row.load().__name__ == row.exports[0]
            assert row.load_claim().system == row.slug
        else:
            with pytest.raises(ValueError, match="nothing to load"):
                row.load()
    with pytest.raises(ValueError, match="did you mean 'idpruner'"):
        system("idprunr")


def test_show(capsys):
    code, out, _ = call(capsys, "show", "idpruner", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["options"]["balance"] == "0.5"
    assert facts["statement"]
    assert call(capsys, "show", "idpruner")[0] == 0
    code, out, _ = call(capsys, "show", "seed")
    assert code == 0
    assert "Not built yet" in out
    code, _, err = call(capsys, "show", "idprunr")
    assert code == 2
    assert "did you mean 'idpruner'" in err


def test_doctor_and_assets(capsys):
    code, out, _ = call(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["packages"]["core"]["torch"]
    assert facts["asset_groups"]["d2o"] == ["smollm2", "shakespeare"]
    assert {name for names in facts["asset_groups"].values() for name in names} == set(facts["assets"])
    assert call(capsys, "doctor")[0] == 0
    code, out, _ = call(capsys, "assets", "list", "--json")
    assert {"smollm2", "minilm", "mnist"} <= {row["name"] for row in json.loads(out)}
    code, _, err = call(capsys, "assets", "get", "smolm2")
    assert code == 2
    assert "smollm2" in err


def test_a_missing_asset_names_the_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENRY_CACHE", str(tmp_path))
    code, _, err = call(capsys, "assets", "get", "minilm", "--offline")
    assert code == 3
    assert "tokenry assets get minilm" in err
    code, _, err = call(capsys, "assets", "get", "--for", "d2o", "--offline")
    assert code == 3
    assert "tokenry assets get smollm2" in err
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    assert "tokenry assets get --for d2o" in " ".join(out.split())
    code, _, err = call(capsys, "assets", "get", "--for", "d20")
    assert code == 2
    assert "did you mean 'd2o'" in " ".join(err.split())
    assert call(capsys, "assets", "get")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compare", "pruning", "--keep", "75"], "did you mean 0.75"), (["compare", "pruning", "--keep", "half"], "--keep"),
        (["compare", "pruning", "--methods", "idprune"], "did you mean 'idpruner'"), (["compare", "pruning", "--data", "nowhere"], "--model and --data"),
        (["compare", "pruning", "--model", "m", "--data", "nowhere"], "folder"), (["reproduce", "idprunr"], "did you mean"),
        (["reproduce", "seed"], "is planned"), (["reproduce", "idpruner", "--scale", "tiny"], "--scale must be one of"),
        (["report", "--results", "nowhere"], "tokenry reproduce all"), (["lst"], "list"), (["list", "--wing", "prunin"], "did you mean"),
    ],
)  # fmt: skip
def test_bad_input_exits_with_2_and_a_hint(capsys, arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert word in " ".join(err.split())


def test_a_damaged_result_exits_with_4(capsys, tmp_path):
    (tmp_path / "idpruner.smoke.json").write_text("{")
    code, _, err = call(capsys, "report", "--results", str(tmp_path), "--out", str(tmp_path / "site"))
    assert code == 4
    assert "idpruner.smoke.json" in err


def test_a_failing_claim_exits_with_1(capsys, monkeypatch, tmp_path):
    from tests.lab.test_claims import Coin

    monkeypatch.setattr("tokenry.catalog.System.load_claim", lambda row: Coin(lift=-0.4))
    code, out, _ = call(capsys, "reproduce", "idpruner", "--scale", "smoke", "--out", str(tmp_path), "--json")
    assert code == 1
    assert json.loads(out)[0]["verdict"] == "fails"


def test_a_vacuous_contrast_is_shown_and_is_no_failure(capsys, monkeypatch, tmp_path):
    from tests.lab.test_claims import Coin

    coin = Coin(lift=0.0)
    coin.system = "idpruner"
    monkeypatch.setattr("tokenry.catalog.System.load_claim", lambda row: coin)
    for command in (
        ("reproduce", "idpruner", "--scale", "smoke", "--out", str(tmp_path)),
        ("show", "idpruner", "--results", str(tmp_path)),
    ):
        code, out, _ = call(capsys, *command)
        assert code == 0
        assert out.count("vacuous") == 2
        assert "inconclusive" in out
        assert "every difference is zero" in " ".join(out.split())


def test_importing_tokenry_loads_no_torch_and_few_modules():
    probe = "import sys; before = set(sys.modules); import tokenry; new = set(sys.modules) - before; print(len(new)); print('torch' in new, 'transformers' in new)"
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) < 60
    assert out[1:] == ["False", "False"]
    helped = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tokenry", "--help"], capture_output=True, text=True, check=True
    )
    assert " torch" not in helped.stderr


def test_typos_on_the_package_are_answered():
    import tokenry
    import tokenry.pruning

    with pytest.raises(AttributeError, match="did you mean 'pruning'"):
        _ = tokenry.prunning
    with pytest.raises(AttributeError, match="did you mean 'IDPruner'"):
        _ = tokenry.pruning.IDprunner
    assert "IDPruner" in dir(tokenry.pruning)


def test_control_c_leaves_finished_rows_and_the_next_run_goes_on(tmp_path):
    command = [sys.executable, "-m", "tokenry", "compare", "pruning", "--limit", "24", "--batch", "8", "--out", str(tmp_path)]
    command += ["--methods", "none,random,uniform,topk,divprune,idpruner,zooprune,todre", "--keep", "0.5,0.25"]
    # A shell that starts jobs in the background lets them ignore the signal.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    path, deadline = tmp_path / "compare.json", time.monotonic() + 120
    while time.monotonic() < deadline and not path.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "what was finished is on disk" in err
    finished = json.loads(path.read_text())["rows"]
    assert finished
    short = [*command[:-4], "--methods", "none,random", "--keep", "0.5"]
    done = subprocess.run(
        [*short, "--json"], capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    rows = json.loads(done.stdout)["rows"]
    assert rows[0]["outcomes"] == finished[0]["outcomes"]
    assert (tmp_path / "index.html").is_file()


@pytest.mark.parametrize(
    "words", [("compare", "pruning"), ("train", "autoencoder"), ("reproduce", "glsim", "--scale", "smoke")]
)
def test_a_device_that_is_not_there_is_named(words, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert run([*words, "--device", "cuda:63"]) == 2
    assert "--device must be auto or a device of this machine, got 'cuda:63'" in capsys.readouterr().err
