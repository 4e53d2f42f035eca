"""Tokenizers per language: one size, or sizes that make the languages pay alike, as a function and as a command."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from tokenry.cli import run
from tokenry.lab.compare.even import EvenSettings, split_lines, train_languages
from tokenry.text.premium import even_vocabularies, line_counts, train_bpe, train_superword
from tokenry.text.premium.vocabularies import measure_sizes

SIZES = (288, 340, 420, 560)


def corpus():
    """A language, the same with long words, and in letters of three bytes: equal content, unequal costs."""
    words = [a + b + c for a in "bdfgkl" for b in "aeiou" for c in "mnrst"]
    draw = np.random.default_rng(0)
    lines = [" ".join(words[i] for i in np.minimum(draw.geometric(0.03, 9), len(words)) - 1) for _ in range(300)]
    three = {ord(letter): 0x30A1 + place for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    return {
        "en": lines,
        "long": [" ".join(w + w[::-1] for w in x.split()) for x in lines],
        "wide": [x.translate(three) for x in lines],
    }


def quiet(message, fraction):
    assert 0 <= fraction <= 1


def test_own_sizes_are_more_even_on_lines_that_nothing_has_seen():
    training, choosing, testing = split_lines(corpus(), 0)
    assert not {tuple(x) for x in zip(*training.values(), strict=False)} & {
        tuple(x) for x in zip(*testing.values(), strict=False)
    }
    found = even_vocabularies(training, choosing, SIZES, progress=quiet)
    own = np.array([line_counts(found.tokenizers[name], testing[name]).sum() for name in testing])
    same = np.array([line_counts(train_bpe(training[name], 420), testing[name]).sum() for name in testing])
    assert own.std() / own.mean() < 0.6 * same.std() / same.mean()
    assert {name: t.get_vocab_size() for name, t in found.tokenizers.items()} == found.realised
    assert all(SIZES[0] <= size <= SIZES[-1] for size in found.realised.values())


def test_no_dearer_tries_no_target_above_the_bound():
    training, choosing, _ = split_lines(corpus(), 0)
    counts = [measure_sizes(training[name], choosing[name], SIZES).counts for name in training]
    bound = float(np.mean([c[2] for c in counts]))
    found = even_vocabularies(training, choosing, SIZES, dearest=bound)
    assert max(found.choice.variances) == pytest.approx(bound)
    with pytest.raises(ValueError, match=r"dearest must be at least .*, got 1\.0"):
        even_vocabularies(training, choosing, SIZES, dearest=1.0)


@pytest.mark.parametrize("algorithm", ["bpe", "superword"])
def test_the_report_is_what_the_files_do(algorithm, tmp_path):
    lines = corpus()
    settings = EvenSettings(vocab_size=420, even=True, algorithm=algorithm, sizes=SIZES, multiple=4)
    report = train_languages(lines, settings, tmp_path, quiet)
    training, _, testing = split_lines(lines, 0)
    for name in lines:
        saved = Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        assert saved.get_vocab_size() == report["own size"]["sizes"][name]
        assert report["own size"]["tokens"][name] == line_counts(saved, testing[name]).sum()
        plain = {"bpe": train_bpe, "superword": train_superword}[algorithm](training[name], 420)
        assert report["one size"]["tokens"][name] == line_counts(plain, testing[name]).sum()
        if report["reach"][name] == "reached":
            assert report["own size"]["sizes"][name] % 4 == 0
    assert report["own size"]["coefficient of variation"] < report["one size"]["coefficient of variation"]
    assert report["lines"] == {"training": 210, "choosing": 45, "testing": 45}


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, lines in corpus().items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = ["train", "tokenizer", "--corpus", str(folder), "--vocab-size", "420", "--sizes", "288,340,420,560"]
    out = tmp_path / "out"
    assert run([*command, "--languages", "en,wide", "--even", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "dearest over cheapest" in shown
    assert sorted(path.name for path in out.iterdir()) == ["en", "report.json", "wide"]
    assert run([*command, "--out", str(out), "--json"]) != 0  # an earlier run is not replaced silently
    assert "--fresh" in capsys.readouterr().err
    assert run([*command, "--out", str(out), "--json", "--fresh"]) == 0
    assert json.loads(capsys.readouterr().out)["one size"]["sizes"] == {"en": 420, "long": 420, "wide": 420}
    for words, match in (
        (["--sizes", "3,x"], "--sizes must be whole numbers"),
        (["--corpus", "code"], "--corpus must be parallel text"),
        (["--languages", "en,xx"], "xx"),
        (["--even", "--sizes", "300,300,300"], "at least 3|too short"),
        (["--no-dearer"], "--no-dearer is about the sizes of --even"),
        (["--languages", "en", "--even"], "--even needs at least two languages, got en"),
    ):
        assert run([*command, *words, "--out", str(tmp_path / "other")]) != 0
        assert __import__("re").search(match, capsys.readouterr().err), words


def test_bad_languages():
    lines = corpus()
    with pytest.raises(ValueError, match="same languages, at least two"):
        even_vocabularies({"en": lines["en"]}, {"en": lines["en"]}, SIZES)
    with pytest.raises(ValueError, match=r"training\['en'\] is too short"):
        even_vocabularies({"en": ["a b"], "wide": lines["wide"]}, {"en": ["a"], "wide": ["b"]}, SIZES)
    with pytest.raises(ValueError, match="lines to train on, to choose by and to test on, got 2"):
        split_lines({"en": ["a", "b"], "wide": ["a", "b"]}, 0)
