"""The autoencoder recipe: every quantizer by name, resumed runs equal to whole ones, image sets, the command."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.contracts import random_state_kept
from tokenry.cli import run
from tokenry.errors import BAD_INPUT, INTERRUPTED
from tokenry.lab.beds.pictures.image_autoencoder import (
    AutoencoderRecipe,
    build_autoencoder,
    evaluate,
    health,
    train_autoencoder,
)
from tokenry.lab.beds.pictures.image_sets import ImageSet, image_set, patches_of
from tokenry.lab.beds.signals import named_quantizers
from tokenry.lab.beds.signals.named_quantizers import build_quantizer, fsq_levels, parse_option

NAMES = ("vq", "rvq", "pq", "aq", "simvq", "fsq", "lfq", "bsq")


def bars(count, side=8, channels=1, seed=0):
    """Images with one bright column each: easy to learn."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.rand(count, channels, side, side, generator=generator)
    images[torch.arange(count), :, :, torch.randint(side, (count,), generator=generator)] = 1.0
    return images


SMALL = ImageSet(bars(96), bars(40, seed=1))


@pytest.mark.parametrize("name", NAMES)
def test_every_quantizer_learns_to_reconstruct(name):
    recipe = AutoencoderRecipe(
        quantizer=name, codebook_size=256 if name == "fsq" else 64, steps=150, batch=32, learning_rate=3e-3
    )
    before = evaluate(build_autoencoder(recipe, (1, 8, 8)), SMALL.test).errors.mean()
    trained = train_autoencoder(recipe, SMALL, log_every=75)
    assert [line["step"] for line in trained.log] == [75, 150]
    assert trained.complete
    assert not trained.model.training
    line = trained.log[-1]
    assert line["test_mse"] < 0.6 * float(before)
    told = {"step": 150, "loss": line["loss"], "train_mse": line["train_mse"], "learning_rate": 3e-3}
    assert line == {**told, **health(trained.model, SMALL.test)}
    assert line["vectors"] == 160
    assert 5.9 < line["bits"] < 25


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vq", {"reset_threshold": 0.5, "kmeans_init": True, "decay": 0.9}),
        ("vq", {"estimator": "gumbel", "ema": False}),
        ("rvq", {"quantizer_dropout": 0.5, "reset_threshold": 0.5}),
        ("lfq", {}),
    ],
)
def test_a_run_that_was_interrupted_is_the_same_as_one_that_was_not(tmp_path, name, options):
    recipe = AutoencoderRecipe(quantizer=name, codebook_size=16, options=options, steps=30, batch=32, seed=3)
    whole = train_autoencoder(recipe, SMALL, out=tmp_path / "whole", log_every=7, save_every=11)
    calls = []
    halted = train_autoencoder(
        recipe, SMALL, out=tmp_path / "parts", log_every=7, save_every=11, stop=lambda: calls.append(0) or len(calls) == 17
    )
    assert not halted.complete
    assert not (tmp_path / "parts" / "quantizer").exists()
    with (tmp_path / "parts" / "log.jsonl").open("a") as stream:  # lines written after the checkpoint, one cut off
        stream.write('{"step": 21, "loss": 1.0}\n{"step": 2')
    resumed = train_autoencoder(recipe, SMALL, out=tmp_path / "parts", log_every=7, save_every=11)
    assert resumed.log == whole.log
    for file in ("log.jsonl", "training.safetensors", "quantizer/model.safetensors", "model/model.safetensors"):
        assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    for a, b in zip(resumed.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_run_is_not_run_again_and_another_recipe_is_refused(tmp_path):
    recipe = AutoencoderRecipe(codebook_size=8, steps=5, batch=32)
    first = train_autoencoder(recipe, SMALL, out=tmp_path)
    again = train_autoencoder(recipe, SMALL, out=tmp_path, report=lambda line: pytest.fail("trained again"))
    assert again.log == first.log
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        train_autoencoder(AutoencoderRecipe(codebook_size=8, steps=6, batch=32), SMALL, out=tmp_path)


def test_the_saved_quantizer_is_the_trained_one(tmp_path):
    from tokenry.codecs import VectorQuantizer

    trained = train_autoencoder(AutoencoderRecipe(codebook_size=16, steps=5), SMALL, out=tmp_path)
    again = VectorQuantizer.from_pretrained(tmp_path / "quantizer").eval()
    tokens = trained.model.encode(SMALL.test)
    assert torch.equal(again(tokens).indices, trained.model.quantizer(tokens).indices)


def test_seed_sets_everything_and_the_global_generator_stays():
    with random_state_kept():
        runs = [train_autoencoder(AutoencoderRecipe(codebook_size=16, steps=4, seed=seed), SMALL).log for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_convolutions_for_larger_images():
    data = ImageSet(bars(24, 28), bars(8, 28))
    trained = train_autoencoder(AutoencoderRecipe(codebook_size=16, steps=3, batch=8, hidden=16), data)
    assert trained.model.grid == (7, 7)
    assert evaluate(trained.model, data.test).indices.shape == (8, 49)
    colour = build_autoencoder(AutoencoderRecipe(codebook_size=16, hidden=16), (3, 32, 32))
    assert colour(bars(2, 32, 3)).images.shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="multiples of 4"):
        build_autoencoder(AutoencoderRecipe(), (1, 30, 30))


def test_a_batch_larger_than_the_set_takes_all_of_it():
    trained = train_autoencoder(AutoencoderRecipe(codebook_size=8, steps=2, batch=1000), SMALL)
    assert trained.complete


# names and options ----------------------------------------------------------------------------------------------------


def test_options_are_read_as_json_or_text():
    found = [parse_option(t) for t in ("a=1", "b=0.5", "c=true", "d=False", "e=[8,6,5]", "f=cosine", "g=None", "h=a=b")]
    expected = {"a": 1, "b": 0.5, "c": True, "d": False, "e": [8, 6, 5], "f": "cosine", "g": None, "h": "a=b"}
    assert dict(found) == expected
    for bad in ("cosine", "=3"):
        with pytest.raises(ValueError, match="option must be key=value"):
            parse_option(bad)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused_with_the_ones_there_are(name):
    with pytest.raises(ValueError, match=f"option 'colour' is not one of quantizer '{name}': .*seed"):
        build_quantizer(name, 16, 256, {"colour": 1})


def test_bad_names_and_sizes():
    with pytest.raises(ValueError, match="quantizer must be one of"):
        build_quantizer("opq", 16, 256)
    for name in ("lfq", "bsq"):
        with pytest.raises(ValueError, match="power of two"):
            build_quantizer(name, 16, 100)
    with pytest.raises(ValueError, match="codebook_size must be one of"):
        fsq_levels(100)
    assert build_quantizer("fsq", 16, 2, {"levels": [5, 5]}).codebook_size == 25
    assert all(min(levels) >= 5 for levels in named_quantizers.FSQ_LEVELS.values())
    with pytest.raises(ValueError, match="steps must be"):
        AutoencoderRecipe(steps=0)


# images ---------------------------------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap():
    data, other = image_set("digits", seed=0), image_set("digits", seed=1)
    assert data.train.shape == (1400, 1, 8, 8)
    assert data.test.shape == (397, 1, 8, 8)
    assert float(data.train.max()) == 1.0
    assert not torch.equal(data.test, other.test)
    every = torch.cat(data).flatten(1).sum(dim=1).sort().values
    assert torch.equal(every, torch.cat(other).flatten(1).sum(dim=1).sort().values)


def test_a_folder_of_images_is_cut_into_patches(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number, size in enumerate(((64, 96), (40, 300), (600, 800))):
        image.new("RGB", size, (255, 10 * number, 0)).save(tmp_path / f"{number}.png")
    data = image_set(str(tmp_path))
    # 2 x 3, 1 x 9, and 256 x 341 after scaling: 8 x 10
    assert len(data.train) + len(data.test) == 6 + 9 + 80
    assert data.train.shape[1:] == (3, 32, 32)
    with pytest.raises(ValueError, match="or a folder, got"):
        image_set("numbers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        image_set(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="at least 32 pixels"):
        patches_of([torch.zeros(20, 50, 3, dtype=torch.uint8)])


# command --------------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    words = ["train", "autoencoder", "--quantizer", "vq", "--codebook-size", "32", "--option", "reset_threshold=0.5",
             "--steps", "20", "--log-every", "10", "--device", "cpu", "--out", str(tmp_path)]  # fmt: skip
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "test mse" in shown.out
    assert "VectorQuantizer, 5 bits a token, 1588 test tokens" in " ".join(shown.out.split())
    assert shown.err.count("perplexity") == 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == lines[-1]
    assert run([*words[:-1], str(tmp_path / "x"), "--quantizer", "opq"]) == BAD_INPUT
    assert "quantizer must be one of" in capsys.readouterr().err
    assert run([*words[:-1], str(tmp_path / "x"), "--option", "colour=1"]) == BAD_INPUT
    assert run([*words, "--data", "nowhere"]) == BAD_INPUT


def test_an_interrupted_command_goes_on(tmp_path):
    words = [sys.executable, "-m", "tokenry", "train", "autoencoder", "--codebook-size", "16", "--steps", "4000", "--device",
             "cpu", "--log-every", "20", "--save-every", "100000", "--out", str(tmp_path)]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    assert "step     20" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    rest = process.communicate(timeout=30)[1]
    assert time.monotonic() - started < 30
    assert process.returncode == INTERRUPTED
    assert "run the same command to go on" in rest
    assert (tmp_path / "training.safetensors").exists()
