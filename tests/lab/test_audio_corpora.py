"""Recordings as clips: reading, splits without leakage, phones; words and voices. Nothing here needs a download."""

from __future__ import annotations

import gzip
import hashlib
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.core.seeding import seeded
from tokenry.errors import AssetDamagedError, AssetMissingError, MissingDependencyError
from tokenry.lab.assets.folders import ASSETS
from tokenry.lab.sources.audio import espeak, speech_models
from tokenry.lab.sources.audio import recordings as audio_corpora
from tokenry.lab.sources.audio.espeak import Phone, Utterance, _phones, espeak_all
from tokenry.lab.sources.audio.folder import folder_corpus
from tokenry.lab.sources.audio.recordings import (
    Clip,
    audio_corpus,
    music_corpus,
    phone_inventory,
    phones_at,
    sound_corpus,
    speech_corpus,
    split_of,
)
from tokenry.lab.sources.audio.speaker_encoder import FRAMES, HOP, SpeakerEncoder, _mel_bank, mel_energies
from tokenry.lab.sources.audio.speech import audio_length, read_audio, write_audio
from tokenry.lab.sources.audio.speech_models import d_wer, speaker_similarity, transcribe
from tokenry.lab.sources.audio.word_errors import normalise, word_error_rate, word_errors

few = settings(max_examples=25, deadline=None)
words = st.lists(st.sampled_from("abcd"), max_size=7)


def tone(seconds=1.2, rate=8000, hertz=440.0):
    return 0.3 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate), dtype=torch.float64) / rate).float()


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """Folders laid out as the packages lay theirs out."""
    voice = tmp_path / "prompts-en/usr/share/asterisk/sounds/en_US_f_Allison"
    for folder in (voice / "digits", voice / "silence", tmp_path / "prompts-en-text"):
        folder.mkdir(parents=True)
    texts = []
    for number in range(40):
        write_audio(voice / f"p{number:02}.wav", tone(1 + number / 40, hertz=200 + 9 * number), 8000)
        texts.append(f"p{number:02}: Prompt number {number % 30}.")  # ten texts are said twice
    write_audio(voice / "copy.wav", tone(1, hertz=200), 8000)  # the same samples as p00
    write_audio(voice / "digits/1.wav", tone(1.1), 8000)
    write_audio(voice / "short.wav", tone(0.2), 8000)
    write_audio(voice / "empty.wav", torch.zeros(0), 8000)
    write_audio(voice / "silence/1.wav", torch.zeros(9000), 8000)
    texts += ["digits/1: one", "; a comment", "short: [a noise]"]
    (tmp_path / "prompts-en-text/core.txt.gz").write_bytes(gzip.compress("\n".join(texts).encode()))
    hold = tmp_path / "music-hold/usr/share/asterisk/moh"
    hold.mkdir(parents=True)
    for name in "abcdefgh":
        write_audio(hold / f"{name}.wav", tone(9, hertz=100 + ord(name)), 8000)
    sounds = tmp_path / "stamps/usr/share/tuxpaint/stamps/animals"
    sounds.mkdir(parents=True)
    for number in range(12):
        write_audio(sounds / f"cow{number}.wav", tone(hertz=300 + number), 8000)
        (sounds / f"cow{number}.wav").rename(sounds / f"cow{number}.ogg")  # soundfile looks at the content
        (sounds / f"cow{number}_desc_fr.ogg").write_bytes((sounds / "cow0.ogg").read_bytes())
    monkeypatch.setattr(audio_corpora, "fetch", lambda name, offline=None: tmp_path / name)
    return tmp_path


def test_the_table_has_the_audio_assets():
    for source in (*audio_corpora.SPEECH.values(), *audio_corpora.MUSIC.values(), *audio_corpora.SOUND.values()):
        assert source.asset in ASSETS
    for name in ("espeak", "whisper", "resemblyzer", *(f"prompts-{code}-text" for code in ("en", "es", "fr", "it", "ru"))):
        assert len(ASSETS[name].sha256) == 64
    assert ":" not in ASSETS["prompts-it2"].folder


def test_speech_has_words_and_splits_by_sentence(recordings):
    options = {"sources": ["prompts-en"], "seconds": (1.0, 5.0)}
    train, test = speech_corpus("train", **options), speech_corpus("test", **options)
    names = [clip.name for clip in (*train, *test)]
    assert len(names) == len(set(names)) == 41  # the copy, the short, the empty one and the silence are left out
    assert not {clip.text for clip in train} & {clip.text for clip in test}
    assert test
    assert {clip.speaker for clip in train} == {"allison"}
    one = next(clip for clip in (*train, *test) if clip.name == "prompts-en/digits/1")
    assert (one.text, one.sample_rate, one.domain, one.language) == ("one", 8000, "speech", "en")
    again = [clip.name for clip in speech_corpus("train", limit=5, **options)]
    assert again == [clip.name for clip in train[:5]]
    assert again != [clip.name for clip in speech_corpus("train", limit=5, seed=1, **options)]
    assert speech_corpus("test", limit=1, sample_rate=16000, **options)[0].sample_rate == 16000


def test_music_is_cut_and_splits_by_piece(recordings):
    options = {"sources": ["music-hold"], "seconds": 2.0, "every": 3.0}
    train, test = music_corpus("train", **options), music_corpus("test", **options)
    pieces = [{clip.name.split("@")[0] for clip in part} for part in (train, test)]
    assert not pieces[0] & pieces[1]
    assert len(train) + len(test) == 8 * 3
    assert all(len(clip.wave) == 16000 for clip in train)
    assert len({clip.name.split("@")[0] for clip in train[: len(pieces[0])]}) == len(pieces[0])  # pieces in turn


def test_sounds_are_not_words(recordings):
    clips = sound_corpus("all", sources=["stamps"])
    assert [clip.domain for clip in clips] == ["sound"] * 12
    assert not any("desc" in clip.name for clip in clips)
    french = speech_corpus("all", sources=["words-fr"], seconds=(0.5, 5))
    assert len(french) == 1  # twelve copies of one recording
    assert (french[0].language, french[0].speaker) == ("fr", "")  # nobody says who speaks


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: speech_corpus("dev"), "split must be one of"),
        (lambda: speech_corpus(sources=["prompts-de"]), "sources must be one of 'prompts-en'"),
        (lambda: speech_corpus(sources=["prompts-en"], seconds=(3.0, 1.0)), r"seconds\[1\]"),
        (lambda: music_corpus(sources=["music-hold"], limit=0), "limit"),
        (lambda: music_corpus(seconds=3.0, every=2.0), "every"),
        (lambda: audio_corpus("noise"), "domain must be one of"),
    ],
)
def test_bad_arguments_of_corpora(recordings, call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_splits_are_for_ever():
    shares = [sum(split_of(d, "s", str(i)) == "test" for i in range(2000)) / 2000 for d in ("speech", "music", "sound")]
    assert shares == pytest.approx([0.2, 0.3, 0.25], abs=0.03)
    assert split_of("speech", "prompts-en", "hello") == "train"
    assert split_of("music", "music-hold", "macroform-cold_day") == split_of("music", "music-hold", "macroform-cold_day")


def test_a_folder_of_sounds(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        folder_corpus(tmp_path / "no")
    with pytest.raises(ValueError, match="no sound file"):
        folder_corpus(tmp_path)
    write_audio(tmp_path / "b.wav", tone(), 8000)
    write_audio(tmp_path / "a.wav", tone(rate=16000), 16000)
    (tmp_path / "a.txt").write_text("hello\n")
    clips = folder_corpus(tmp_path, domain="speech", sample_rate=16000)
    assert [(c.name, c.text, c.sample_rate, c.domain) for c in clips] == [
        ("a", "hello", 16000, "speech"),
        ("b", "", 16000, "speech"),
    ]
    (tmp_path / "c.wav").write_bytes(b"no audio")
    with pytest.raises(ValueError, match=r"c\.wav is not a sound file"):
        folder_corpus(tmp_path)


def test_wav_files_come_back(tmp_path):
    x = torch.tensor([0.0, 0.5, -1.0, 1.0, 2.0])
    write_audio(tmp_path / "x.wav", x, 12345)
    y, rate = read_audio(tmp_path / "x.wav")
    assert rate == 12345
    assert audio_length(tmp_path / "x.wav") == (5, 12345)
    torch.testing.assert_close(y, x.clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(read_audio(tmp_path / "x.wav", 1, 2)[0], y[1:3])
    with pytest.raises(FileNotFoundError):
        read_audio(tmp_path / "y.wav")


def test_a_header_cannot_make_it_allocate(tmp_path):
    """A FLAC file that announces 2^36 samples (256 GB), and a rate of 2 GHz, are damage."""
    library = pytest.importorskip("soundfile")
    library.write(tmp_path / "x.flac", tone().numpy(), 8000)
    data = bytearray((tmp_path / "x.flac").read_bytes())
    facts = int.from_bytes(data[18:26], "big")  # rate 20 bits, channels 3, bits 5, samples 36
    assert facts >> 44 == 8000
    data[18:26] = (facts | (2**36 - 1)).to_bytes(8, "big")
    (tmp_path / "x.flac").write_bytes(data)
    assert audio_length(tmp_path / "x.flac")[0] == 2**36 - 1
    with pytest.raises(ValueError, match=r"x\.flac is not a sound file that can be read"):
        read_audio(tmp_path / "x.flac")
    write_audio(tmp_path / "y.wav", tone(), 8000)
    data = bytearray((tmp_path / "y.wav").read_bytes())
    data[24:28] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "y.wav").write_bytes(data)
    for read in (read_audio, audio_length):
        with pytest.raises(ValueError, match=r"y\.wav announces a sample rate of 2147483647 Hz, outside 1000 to 1000000"):
            read(tmp_path / "y.wav")


# --- phones ---------------------------------------------------------------------------------------------------------


def test_phones_cover_the_wave_without_stress_marks():
    marks = [("h", 5), ("\u02c8o\u028a", 20), ("", 40), ("", 60), ("t", 80), ("", 100)]
    phones = _phones(marks, 100)
    assert phones == (Phone("", 0, 5), Phone("h", 5, 20), Phone("o\u028a", 20, 40), Phone("", 40, 80), Phone("t", 80, 100))
    assert _phones([("a", 0)], 10) == (Phone("a", 0, 10),)


def test_phones_of_frames_and_other_rates():
    clip = Clip(tone(0.01), 8000, "x", "speech", phones=(Phone("", 0, 20), Phone("a", 20, 50), Phone("b", 50, 80)))
    inventory = phone_inventory([clip])
    assert inventory == ("", "a", "b")
    assert phones_at(clip, 10, 9, inventory).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, -1]
    assert phones_at(clip, 10, 8, ("", "a")).tolist() == [0, 0, 1, 1, 1, -1, -1, -1]
    fast = clip.at_rate(16000)
    assert [(p.start, p.end) for p in fast.phones] == [(0, 40), (40, 100), (100, 160)]
    assert clip.at_rate(8000) is clip
    with pytest.raises(ValueError, match="hop_length"):
        phones_at(clip, 0, 8, inventory)


@pytest.mark.parametrize(
    ("options", "match"), [({"text": " "}, "text"), ({"text": "a", "rate": 10}, "rate"), ({"text": "a", "pitch": 100}, "pitch")]
)
def test_bad_utterances(options, match):
    with pytest.raises(ValueError, match=match):
        Utterance(**options)


def test_a_synthesiser_that_does_not_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak, "fetch", lambda name, offline=None: tmp_path)
    assert espeak_all([]) == []
    with pytest.raises(AssetDamagedError, match=r"does not run here.*--repair"):
        espeak_all([Utterance(text="a")])
    with pytest.raises(ValueError, match="variant 'f99'"):
        espeak_all([Utterance(text="a", voice="en-us+f99")])
    monkeypatch.setattr(espeak.sys, "platform", "darwin")
    with pytest.raises(AssetMissingError, match="this is darwin"):
        espeak_all([Utterance(text="a")])


# --- words ----------------------------------------------------------------------------------------------------------


def slow_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


@few
@given(words, words)
def test_word_errors_are_the_fewest_edits(a, b):
    [(found, count)] = word_errors(" ".join(a), " ".join(b))
    assert count == len(a)
    assert found == word_errors(" ".join(b), " ".join(a))[0][0]
    assert (found == 0) == (a == b)
    assert abs(len(a) - len(b)) <= found <= max(len(a), len(b))
    if len(a) + len(b) < 9:
        assert found == slow_distance(a, b)


@few
@given(st.lists(st.sampled_from(["one two", "press 7", "a", "you're"]), min_size=1, max_size=4))
def test_equal_texts_have_no_errors(texts):
    assert word_error_rate(texts, texts) == 0
    assert word_error_rate(texts, [t.upper() + "." for t in texts]) == 0


def test_word_error_rate():
    found = " ".join(normalise("Press 7, or #12; it\u2019s caf\u00e9 [beep] twenty-one 21 007"))
    assert found == "press seven or pound twelve its cafe twenty one twenty one zero zero seven"
    assert word_error_rate("the cat sat", "the bat sat down") == pytest.approx(2 / 3)
    assert word_error_rate(["a b", "c"], ["a", "c d e"]) == pytest.approx(3 / 3)
    assert word_errors(["a b", "[noise]"], ["a", "x"]) == [(1, 2), (1, 0)]
    with pytest.raises(ValueError, match="at least one word"):
        word_error_rate("[beep]", "a")
    with pytest.raises(ValueError, match="as many as references, 2, got 1"):
        word_error_rate(["a", "b"], ["a"])


def test_word_errors_need_jiwer(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'tokenry\[speech\]'"):
        word_error_rate("a", "a")


class _Ears:
    """A recogniser with known behaviour: it hears one word per 0.1 of loudness."""

    def generate(self, inputs, prompts, **options):
        assert options["beam_size"] == 1
        assert options["max_length"] == 2 + 8 + math.ceil(inputs.shape[1] / 2000)  # eight tokens a second
        return [SimpleNamespace(sequences_ids=[[round(float(x.max()) * 10)]]) for x in np.array(inputs)]

    def decode(self, ids, skip_special_tokens):
        return " ".join(["word"] * ids[0])

    def __call__(self, waves, sampling_rate, return_tensors):
        assert sampling_rate == 16000
        longest = max(map(len, waves))
        padded = [np.pad(w, (0, longest - len(w))) for w in waves]
        return SimpleNamespace(input_features=np.array(padded, np.float32))


def test_transcripts_come_back_in_order(monkeypatch):
    ears = _Ears()
    monkeypatch.setattr(speech_models, "_recogniser", lambda: (ears, ears, ears))
    waves = [torch.full((n,), level) for n, level in ((4000, 0.3), (1000, 0.1), (2000, 0.2))]
    assert transcribe(waves, 16000, batch=2) == ["word word word", "word", "word word"]
    assert d_wer(waves, waves, 16000) == 0
    assert d_wer([waves[0]], [waves[1]], 16000) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="at most 30 s"):
        transcribe([torch.zeros(16000 * 31)], 16000)
    with pytest.raises(ValueError, match=r"waves\[0\] must have shape \[T\]"):
        transcribe([torch.zeros(1, 100)], 16000)
    with pytest.raises(ValueError, match="as many"):
        d_wer(waves, waves[:1], 16000)


# --- voices ---------------------------------------------------------------------------------------------------------


@seeded(0)
def test_speaker_vectors_are_unit_and_blind_to_level():
    encoder = SpeakerEncoder().eval()
    wave = tone(3.0, 16000) + 0.05 * torch.randn(48000)
    first = encoder.embed(wave, 16000)
    assert first.shape == (256,)
    assert float(first.norm()) == pytest.approx(1.0, abs=1e-5)
    values = speaker_similarity([wave, wave], [0.01 * wave, wave.flip(0)], 16000, encoder=encoder)
    assert float(speaker_similarity([wave], [wave], 16000, encoder=encoder)) == pytest.approx(1.0, abs=1e-5)
    assert bool((values <= 1.00001).all())
    quiet = speaker_similarity([wave], [torch.zeros(48000)], 16000, encoder=encoder, silent="zero")
    assert quiet.tolist() == [0.0]
    with pytest.raises(ValueError, match="got silence"):
        encoder.embed(torch.zeros(16000), 16000)
    short = encoder.embed(wave[:2000], 16000)  # shorter than a window of 160 frames
    assert short.shape == (256,)


def test_mel_energies_are_those_of_the_definition():
    wave = tone(0.3, 16000, 1000.0)
    mels = mel_energies(wave)
    assert mels.shape == (1 + len(wave) // HOP, 40)
    assert FRAMES * HOP == 25600
    mel = torch.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), 42, dtype=torch.float64)  # Slaney's scale up to 8 kHz
    corners = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    bins = torch.arange(201, dtype=torch.float64)[:, None] * 40
    sides = (bins - corners[:-2]) / corners.diff()[:-1], (corners[2:] - bins) / corners.diff()[1:]
    bank = torch.minimum(*sides).clamp_min(0) * 2 / (corners[2:] - corners[:-2])
    torch.testing.assert_close(_mel_bank(), bank, rtol=0, atol=1e-15)
    frame = torch.fft.rfft(torch.nn.functional.pad(wave, (200, 200))[1600:2000] * torch.hann_window(400)).abs().double() ** 2
    torch.testing.assert_close(mels[10].double(), frame @ bank, rtol=1e-4, atol=1e-6)


# --- the real ones --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_corpora():
    counts = {d: [len(audio_corpus(d, s)) for s in ("train", "test")] for d in ("speech", "music", "sound")}
    assert counts["speech"][0] > 1400
    assert counts["speech"][1] > 300
    assert min(counts["music"] + counts["sound"]) >= 40
    seen = [{hashlib.sha256(c.wave.numpy().tobytes()).hexdigest() for c in audio_corpus("sound", s)} for s in ("train", "test")]
    assert not seen[0] & seen[1]


@pytest.mark.slow
def test_the_real_models_on_real_speech():
    clips = [c for c in speech_corpus("test", sources=["prompts-en"], sample_rate=16000, seconds=(2, 6)) if c.text][:8]
    waves = [c.wave for c in clips]
    assert word_error_rate([c.text for c in clips], transcribe(waves, 16000)) < 0.15
    others = [c.wave for c in speech_corpus("test", sources=["prompts-it"], sample_rate=16000, seconds=(2, 6), limit=8)]
    same = speaker_similarity(waves[:4], waves[4:8], 16000)
    different = speaker_similarity(waves[:4], others[:4], 16000)
    assert float(same.min()) > float(different.max())


@pytest.mark.slow
def test_the_real_synthesiser():
    first, second = espeak_all([Utterance(text="hello world", voice="en-us+f3"), Utterance(text="hello world", voice="en-gb")])
    assert first.sample_rate == 22050
    assert first.transcription.split()[:3] == ["h", "\u0259", "l"]
    assert first.phones[0].start == 0
    assert first.phones[-1].end == len(first.wave)
    assert all(a.end == b.start for a, b in zip(first.phones, first.phones[1:], strict=False))
    again = espeak_all([Utterance(text="hello world", voice="en-gb")])[0]
    assert torch.equal(again.wave, second.wave)
    with pytest.raises(ValueError, match="there is no voice"):
        espeak_all([Utterance(text="hello", voice="xx-none")])
