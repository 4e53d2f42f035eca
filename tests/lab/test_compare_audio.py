"""tokenry compare audio: settings, rows against the metrics, resuming, the page and its files; no download."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

import train_small_codecs
from tests.lab.test_report import browser, visit  # noqa: F401
from tokenry.cli import run
from tokenry.codecs import ResidualVQ
from tokenry.codecs.audio.metrics import mel_distance, si_snr
from tokenry.codecs.audio.small_codec import ConvCodec, ConvCodecConfig
from tokenry.errors import AssetMissingError
from tokenry.lab.beds.signals.small_codecs import SMALL_CODECS, small_codec
from tokenry.lab.compare import audio
from tokenry.lab.compare.audio import AudioSettings, compare_audio, load_clips, reconstruct, use_of_codes
from tokenry.lab.compare.audio_codecs import SampleCodec, named_codec
from tokenry.lab.pages.audio import spectrogram
from tokenry.lab.sources.audio import speech_models
from tokenry.lab.sources.audio.recordings import Clip
from tokenry.lab.sources.audio.speech import read_audio, write_audio


def quiet(message, fraction):
    assert 0 <= fraction <= 1


def sound(seed, size):
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.sin(torch.arange(size) / (5 + seed)) + 0.02 * torch.randn(size, generator=generator)


@pytest.fixture
def folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number, size in enumerate((9000, 6000, 12000)):
        write_audio(data / f"{number}.wav", sound(number, size), 8000)
    (data / "0.txt").write_text("hello world")
    return data


@pytest.fixture
def codec_folder(tmp_path):
    config = ConvCodecConfig(sample_rate=8000, strides=(5, 4), channels=4, max_channels=8, dim=4)
    ConvCodec(config, ResidualVQ(4, 3, 8, seed=0)).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def models(monkeypatch):
    """A recogniser that hears the same in the originals and in the first codec, something else later; voices never change."""
    texts = iter(["hello world", "Hello, world!", "goodbye now"])

    def transcribe(waves, rate):
        heard = next(texts)
        return [heard] * len(waves)

    monkeypatch.setattr(speech_models, "transcribe", transcribe)
    monkeypatch.setattr(speech_models, "speaker_similarity", lambda a, b, rate, silent: torch.ones(len(a)))


def test_a_comparison_of_a_folder(folder, codec_folder, models, tmp_path):
    settings = AudioSettings(codecs=("mulaw", f"{codec_folder}@2"), data=folder, domains=("speech",), rate=16000)
    result = compare_audio(settings, tmp_path / "out", quiet)
    rows = {row["codec"]: row for row in result["rows"]}
    law, small = rows["mulaw"], rows[f"{codec_folder}@2"]
    assert (law["bitrate"], law["frame_rate"], law["bits"]) == (128_000, 16_000, 8)
    assert (small["bitrate"], small["frame_rate"], small["books"]) == (2400, 400, 2)
    assert law["wer"] == law["d_wer"] == 0
    assert (small["d_wer"], small["wer"]) == (1, 1)
    assert law["wer_clips"] == 1
    assert law["clips"] == 3
    clip = load_clips(settings, "speech")[0]
    made, _, _ = reconstruct(named_codec("mulaw", 16000), [clip], settings)
    assert law["outcomes"]["si_snr"][0] == pytest.approx(float(si_snr(clip.wave, made[0])), abs=1e-4)
    assert law["outcomes"]["mel"][0] == pytest.approx(float(mel_distance(clip.wave, made[0], 16000)), abs=1e-4)
    assert law["si_snr"] == pytest.approx(sum(law["outcomes"]["si_snr"]) / 3)
    assert law["si_snr_interval"][0] <= law["si_snr"] <= law["si_snr_interval"][1]
    assert json.loads((tmp_path / "out/compare.json").read_text())["rows"] == result["rows"]


def test_a_comparison_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    settings = AudioSettings(codecs=("mulaw",), data=folder, domains=("sound",), rate=8000)
    first = compare_audio(settings, tmp_path, quiet)
    monkeypatch.setattr(audio, "measure", lambda *a: pytest.fail("measured again"))
    assert compare_audio(settings, tmp_path, quiet)["rows"] == first["rows"]
    (folder / "3.wav").write_bytes((folder / "0.wav").read_bytes())
    with pytest.raises(pytest.fail.Exception, match="measured again"):  # other clips: nothing is taken over
        compare_audio(settings, tmp_path, quiet)
    (tmp_path / "compare.json").write_text("{half a fi")
    with pytest.raises(pytest.fail.Exception):
        compare_audio(settings, tmp_path, quiet)


def test_missing_models_are_a_note(folder, tmp_path, monkeypatch):
    def missing(*a, **k):
        raise AssetMissingError("asset 'whisper' is missing; run: tokenry assets get whisper")

    monkeypatch.setattr(speech_models, "speaker_similarity", missing)
    settings = AudioSettings(codecs=("mulaw",), data=folder, domains=("speech",), rate=8000)
    row = compare_audio(settings, tmp_path, quiet)["rows"][0]
    assert (row["wer"], row["speaker"]) == (None, None)
    assert "tokenry assets get whisper" in (tmp_path / "index.html").read_text()
    silent = AudioSettings(codecs=("mulaw",), data=folder, domains=("speech",), rate=8000, words=False)
    assert "note" not in compare_audio(silent, tmp_path / "other", quiet)["rows"][0]


def test_the_page_has_its_files_and_asks_for_nothing_else(folder, codec_folder, models, tmp_path):
    settings = AudioSettings(codecs=("mulaw", str(codec_folder)), data=folder, domains=("speech",), rate=16000, examples=2)
    result = compare_audio(settings, tmp_path / "out", quiet)
    text = (tmp_path / "out/index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    places = [*result["examples"]["speech"], *(e for row in result["rows"] for e in row["examples"])]
    assert len({place["wave"] for place in places}) == 6
    for place in places:
        wave, rate = read_audio(tmp_path / "out" / place["wave"])
        assert (rate, len(wave) > 0) == (16000, True)
        assert (tmp_path / "out" / place["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert ">mulaw</td>" in text


@pytest.mark.browser
def test_the_page_in_a_browser(browser, folder, codec_folder, models, tmp_path):  # noqa: F811
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    settings = AudioSettings(codecs=("mulaw", str(codec_folder)), data=folder, domains=("speech",), rate=16000)
    compare_audio(settings, tmp_path / "out", quiet)
    for width in (1200, 500):
        visit(browser, tmp_path / "out/index.html", width)
    names = [e.text for e in browser.find_elements(By.CSS_SELECTOR, ".player strong")]
    assert names == ["original", "mulaw", str(codec_folder)]
    assert "Said: hello world" in browser.find_element(By.ID, "said").text
    sizes = browser.execute_script("return [...document.querySelectorAll('.player img')].map(i => i.naturalWidth)")
    assert all(size > 10 for size in sizes)
    playable = browser.execute_async_script(
        "const done = arguments[0], a = document.querySelector('.player audio'); a.onloadedmetadata = () => done(a.duration);"
        "a.onerror = () => done(-1); a.preload = 'metadata'; a.load();"
    )
    assert playable == pytest.approx(9000 / 8000, abs=0.01)
    before = browser.find_element(By.CSS_SELECTOR, ".player img").get_attribute("src")
    browser.find_element(By.ID, "clip").send_keys(Keys.ARROW_DOWN)
    assert browser.find_element(By.CSS_SELECTOR, ".player img").get_attribute("src") != before


def test_sample_codecs():
    wave = sound(0, 4000)[None]
    ratios = [float(si_snr(wave, SampleCodec(8000, law).reconstruct(wave, 8000))[0]) for law in ("pcm16", "mulaw")]
    assert ratios[0] > 75
    assert 30 < ratios[1] < 45
    assert SampleCodec(8000, "mulaw").encode(torch.tensor([[2.0, -2.0, 0.0]]), 8000).codes.flatten().tolist()[:2] == [255, 0]


def test_use_of_codes():
    codec = SampleCodec(8000, "mulaw")
    codes = [torch.tensor([[0], [1]]), torch.tensor([[2], [3], [0], [1], [2], [3]])]
    assert use_of_codes(codec, codes) == {"usage": 4 / 256, "used_bits": 2.0, "frames": 8.0}


def test_long_clips_lose_their_words(tmp_path):
    write_audio(tmp_path / "a.wav", sound(0, 8000 * 12), 8000)
    (tmp_path / "a.txt").write_text("too long")
    clip = load_clips(AudioSettings(data=tmp_path, domains=("speech",), rate=8000), "speech")[0]
    assert (clip.seconds, clip.text) == (10.0, "")


def test_clips_without_sound_are_left_out_counted_and_named(folder, tmp_path, monkeypatch, capsys):
    """Silent, empty, damaged, short and non-finite files: the averages are those of the others, and the page names them."""
    from soundfile import write

    settings = AudioSettings(codecs=("pcm16",), data=folder, domains=("sound",), rate=8000)
    alone = compare_audio(settings, tmp_path / "alone", quiet)["rows"][0]
    write_audio(folder / "00.wav", torch.zeros(8000), 8000)
    write_audio(folder / "01.wav", torch.full((8000,), 0.5), 8000)
    (folder / "02.wav").write_bytes(b"")
    (folder / "03.wav").write_bytes((folder / "0.wav").read_bytes()[:30])
    write_audio(folder / "04.wav", sound(0, 100), 8000)
    write(folder / "05.wav", torch.full((8000,), float("nan")).numpy(), 8000, subtype="FLOAT")
    write(folder / "06.wav", torch.zeros(0).numpy(), 8000)
    result = compare_audio(settings, tmp_path / "out", quiet)
    excluded = result["excluded"]["sound"]
    assert {name: reason.split(":")[0] for name, reason in excluded.items() if name in ("00.wav", "01.wav", "04.wav")} == {
        "00.wav": "silent", "01.wav": "silent", "04.wav": "shorter than 0.1 s",
    }  # fmt: skip
    assert list(excluded) == [f"0{number}.wav" for number in range(7)]
    row = result["rows"][0]
    for name in ("clips", "si_snr", "sdr", "mel", "stft"):
        assert row[name] == alone[name], name
    assert "7 of 10 clips left out: 00.wav (silent)" in (tmp_path / "out/index.html").read_text()
    command = ["compare", "audio", "--data", str(folder), "--domain", "sound", "--codecs", "pcm16", "--rate", "8000"]
    assert run([*command, "--out", str(tmp_path / "command")]) == 0
    assert "06.wav" in capsys.readouterr().out
    for name in ("0", "1", "2"):
        (folder / f"{name}.wav").unlink()
    assert run([*command, "--out", str(tmp_path / "none")]) != 0
    assert "no sound that can be measured (7 files: 00.wav: silent" in capsys.readouterr().err


def test_a_codec_that_returns_silence_is_named(folder, models, tmp_path, monkeypatch):
    """Its other clips make its ratios; what came back silent is said, not averaged as -300 dB."""
    kept = SampleCodec.decode_rows
    calls = iter([1.0, 0.0, 1.0])
    monkeypatch.setattr(audio, "BATCH", 1)
    monkeypatch.setattr(SampleCodec, "decode_rows", lambda self, codes, scales: kept(self, codes, scales) * next(calls))
    settings = AudioSettings(codecs=("mulaw",), data=folder, domains=("speech",), rate=8000)
    result = compare_audio(settings, tmp_path / "out", quiet)
    row = result["rows"][0]
    assert row["silent"] == ["1"]
    assert row["outcomes"]["si_snr"][1] is None
    assert 20 < row["si_snr"] < 60
    assert audio.notes_of(result) == ["mulaw, speech: 1 of 3 clips came back silent and are not in its SI-SNR and SDR: 1"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"codecs": ("rvqq",)}, "did you mean 'rvq'"),
        ({"codecs": ("rvq@two",)}, "number of books"),
        ({"codecs": ("rvq", "rvq")}, "different codecs"),
        ({"codecs": ()}, "at least one"),
        ({"domains": ("noise",)}, "--domain must be one of"),
        ({"limit": 0}, "--limit"),
        ({"rate": 100}, "--rate"),
        ({"data": "x"}, "--data needs one --domain"),
    ],
)
def test_bad_settings(options, match):
    with pytest.raises(ValueError, match=match):
        AudioSettings(**options)


def test_the_command(folder, tmp_path, capsys):
    command = ["compare", "audio", "--data", str(folder), "--domain", "music", "--codecs", "mulaw", "--rate", "8000"]
    assert run([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["codec"] == "mulaw"
    assert run([*command, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "SI-SNR" in shown
    assert "WER" not in shown
    assert run(["compare", "audio", "--data", str(tmp_path / "no")]) != 0
    assert "folder of sound files" in capsys.readouterr().err
    assert run(["compare", "audio", "--data", str(folder), "--codecs", "mulaw@2", "--out", str(tmp_path / "x")]) != 0
    assert "n_codebooks" in capsys.readouterr().err


def test_spectrogram_of_silence(tmp_path):
    spectrogram(torch.zeros(100), 8000, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


# --- the small codecs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL_CODECS)
def test_the_codecs_of_the_package(name):
    codec = small_codec(name)
    assert (codec.sample_rate, float(codec.frame_rate)) == (16000, 250.0)
    assert codec.bits_per_frame == pytest.approx({"rvq": 32, "fsq": 32, "svq": 12, "kmeans": 10}[name])
    time = torch.arange(8000) / 16000
    wave = sum(torch.sin(2 * math.pi * f * time) / f for f in (150, 300, 450, 600, 900))
    wave = (0.1 * wave / wave.std())[None]
    with torch.no_grad():
        assert float(si_snr(wave, codec.reconstruct(wave, 16000))) > {"rvq": 8, "fsq": 8, "svq": 3, "kmeans": 0}[name]


def test_training_waves_are_a_third_of_each_domain(monkeypatch):
    def corpus(level):
        def clips(split, *, sample_rate, limit, **options):
            assert (split, sample_rate) == ("train", 16000)
            return [Clip(level * sound(i, size), 16000, str(i), "x") for i, size in enumerate((4000, 30000, 50000)[:limit])]

        return clips

    for name in ("speech_corpus", "music_corpus", "sound_corpus"):
        monkeypatch.setattr(train_small_codecs, name, corpus(1.0))
    waves = train_small_codecs.training_waves(12)
    assert waves.shape == (12, 24000)
    torch.testing.assert_close(waves.square().mean(1).sqrt(), torch.full((12,), 0.1), rtol=0.01, atol=0)
    assert torch.equal(waves, train_small_codecs.training_waves(12))
    with pytest.raises(ValueError, match="clips"):
        train_small_codecs.training_waves(2)
