"""Real audio in three domains, and synthetic speech with exact phones, as clips with labels and splits without leakage.

Speech: telephone prompts of five voices in five languages and read sentences, with their words; and, wide-band, words of
eight languages. Music: pieces of four artists. Sound: animals, tools, instruments and desktop sounds. A recording is
counted once (copies are found by content) and belongs to one split for ever: the split is drawn from a hash of its source
and words (or name), so that the same sentence of one speaker, or two excerpts of one piece, never stand on both sides.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenry.codecs.audio.metrics import resample
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.lab.assets.folders import fetch
from tokenry.lab.sources.audio.espeak import PAUSE, Phone, Utterance, espeak_all
from tokenry.lab.sources.audio.speech import audio_length, read_audio

Split = Literal["train", "test", "all"]
DOMAINS = ("speech", "music", "sound")
TEST_SHARE = {"speech": 0.2, "music": 0.3, "sound": 0.25}


@dataclass(frozen=True, eq=False)
class Clip:
    """One recording or an excerpt of one: wave float32 [T] (mono), and what is known about it ("" where nothing is)."""

    wave: Tensor
    sample_rate: int
    name: str
    domain: str
    speaker: str = ""
    language: str = ""
    text: str = ""
    phones: tuple[Phone, ...] = ()

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.wave) / self.sample_rate

    def at_rate(self, sample_rate: int | None) -> Clip:
        """The clip at another sample rate, phones moved along; None = as it is."""
        if sample_rate is None or sample_rate == self.sample_rate:
            return self
        wave = resample(self.wave, self.sample_rate, sample_rate)
        place = lambda at: min(round(at * sample_rate / self.sample_rate), len(wave))  # noqa: E731
        phones = tuple(Phone(p.name, place(p.start), place(p.end)) for p in self.phones)
        return replace(self, wave=wave, sample_rate=sample_rate, phones=phones)


class _Source(NamedTuple):
    asset: str
    pattern: str
    speaker: str = ""
    language: str = ""


_PROMPT = "**/asterisk/sounds/**/*.wav"
_WORD_LANGUAGES = ("be", "bg", "ca", "el", "es", "fr", "ro", "ru")
SPEECH = {
    "prompts-en": _Source("prompts-en", _PROMPT, "allison", "en"),
    "prompts-es": _Source("prompts-es", _PROMPT, "allison", "es"),
    "prompts-fr": _Source("prompts-fr", _PROMPT, "june", "fr"),
    "prompts-it": _Source("prompts-it", _PROMPT, "carlo", "it"),
    "prompts-it2": _Source("prompts-it2", _PROMPT, "paola", "it"),
    "prompts-ru": _Source("prompts-ru", _PROMPT, "ivrvoice", "ru"),
    "read-speech": _Source("read-speech", "**/*.wav", "", "en"),
    # the package names no speakers, and some languages have several
    **{f"words-{code}": _Source("stamps", f"**/*_desc_{code}.ogg", "", code) for code in _WORD_LANGUAGES},
}
MUSIC = {
    "music-hold": _Source("music-hold", "**/*.wav"),
    "music-singularity": _Source("music-singularity", "**/*.ogg"),
}
SOUND = {
    "stamps": _Source("stamps", "**/*.ogg"),
    "desktop-sounds": _Source("desktop-sounds", "**/*.oga"),
    "oxygen-sounds": _Source("oxygen-sounds", "**/*.ogg"),
}
DEFAULT_SPEECH = ("prompts-en", "prompts-es", "prompts-fr", "prompts-it", "prompts-it2", "prompts-ru", "read-speech")
# not what the domain says: silences and tones among the prompts, screams; letters, numbers and faces among the stamps
_NO_SPEECH = re.compile(r"silence/|(^|/)(beep|beeperr|.*2tone|confbridge-(join|leave)|tt-monkeys|tt-weasels)\.wav$")
_NO_SOUND = re.compile(
    r"/symbols/|_desc|_[a-z]{2}(_[A-Za-z]+)?\.ogg$|audio-channel-|/dreydl|/xing_|/no_uturn|apollo|final-roll"
)


def speech_corpus(
    split: Split = "test",
    *,
    sources: Sequence[str] = DEFAULT_SPEECH,
    sample_rate: int | None = None,
    limit: int | None = None,
    seconds: tuple[float, float] = (1.0, 15.0),
    seed: int = 0,
    offline: bool | None = None,
) -> list[Clip]:
    """Real recordings of speech, each a clip, with speaker, language and (prompts, sentences) words.

    `sources` are names of `SPEECH`; `seconds` the shortest and longest clip that is taken; `limit` takes that many, the
    sources in turn, in an order drawn from `seed`. Prompts are 8 kHz, sentences 16 kHz, words mostly 44.1 kHz.
    """
    return _corpus("speech", SPEECH, split, sources, sample_rate, limit, seconds, seed, offline)


def music_corpus(
    split: Split = "test",
    *,
    sources: Sequence[str] = tuple(MUSIC),
    sample_rate: int | None = None,
    limit: int | None = None,
    seconds: float = 5.0,
    every: float = 20.0,
    seed: int = 0,
    offline: bool | None = None,
) -> list[Clip]:
    """Excerpts of `seconds` from pieces of music, one for `every` seconds of a piece; splits are by piece."""
    check_range("seconds", seconds, 0.1)
    check_range("every", every, seconds)
    return _corpus("music", MUSIC, split, sources, sample_rate, limit, (seconds, every), seed, offline)


def sound_corpus(
    split: Split = "test",
    *,
    sources: Sequence[str] = tuple(SOUND),
    sample_rate: int | None = None,
    limit: int | None = None,
    seconds: tuple[float, float] = (0.5, 10.0),
    seed: int = 0,
    offline: bool | None = None,
) -> list[Clip]:
    """Recordings that are neither speech nor music: animals, tools, single instruments, bells and clicks of desktops."""
    return _corpus("sound", SOUND, split, sources, sample_rate, limit, seconds, seed, offline)


def audio_corpus(domain: str, split: Split = "test", *, sample_rate: int | None = None, limit: int | None = None) -> list[Clip]:
    """The default corpus of one domain: speech, music or sound."""
    check_choice("domain", domain, DOMAINS)
    make = {"speech": speech_corpus, "music": music_corpus, "sound": sound_corpus}[domain]
    return make(split, sample_rate=sample_rate, limit=limit)


# --- splits ---------------------------------------------------------------------------------------------------------


def split_of(domain: str, source: str, key: str) -> str:
    """Either "train" or "test", from a hash of the source and of the words or name of a recording."""
    digest = hashlib.sha256(f"{domain}/{source}/{key}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < TEST_SHARE[domain] * 2**64 else "train"


def _corpus(
    domain: str,
    table: dict[str, _Source],
    split: str,
    sources: Sequence[str],
    sample_rate: int | None,
    limit: int | None,
    seconds: tuple[float, float],
    seed: int,
    offline: bool | None,
) -> list[Clip]:
    check_choice("split", split, ("train", "test", "all"))
    for name in sources:
        check_choice("sources", name, tuple(table))
    if limit is not None:
        check_int("limit", limit, 1)
    check_range("seconds[1]", seconds[1], check_range("seconds[0]", seconds[0], 0.0))
    queues = []
    seen: set[str] = set()
    for name in sources:
        found = [
            item
            for item in _recordings(table[name], domain, offline, seen)
            if split in ("all", split_of(domain, name, item.key))
        ]
        random.Random(f"{seed}/{name}").shuffle(found)
        queues.append(_clips(name, table[name], domain, found, seconds))
    clips: list[Clip] = []
    while queues and (limit is None or len(clips) < limit):
        queue = queues.pop(0)
        clip = next(queue, None)
        if clip is not None:
            clips.append(clip.at_rate(sample_rate))
            queues.append(queue)
    return clips


class _Recording(NamedTuple):
    path: Path
    name: str
    key: str
    text: str


def _recordings(source: _Source, domain: str, offline: bool | None, seen: set[str]) -> Iterator[_Recording]:
    """Files of a source in the order of their names, copies left out."""
    folder = fetch(source.asset, offline=offline)
    texts = _texts(source, folder, offline)
    unwanted = {"speech": _NO_SPEECH, "sound": _NO_SOUND}.get(domain)
    for path in sorted(folder.glob(source.pattern)):
        inner = path.relative_to(folder).as_posix()
        if unwanted is not None and unwanted.search(inner):
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in seen:
            continue
        seen.add(digest)
        name = _short(inner)
        text = texts.get(name, "")
        yield _Recording(path, name, " ".join(re.findall(r"\w+", text.lower())) or name, text)


def _short(inner: str) -> str:
    """Path of a recording below the folder that holds them all, without its suffix."""
    name = re.sub(r"\.\w+$", "", inner)
    return re.sub(r"^.*?/(asterisk/sounds/[^/]+|asterisk/moh|test/data|stamps|stereo|sounds/[^/]+|music)/", "", name)


def _texts(source: _Source, folder: Path, offline: bool | None) -> dict[str, str]:
    """Words by short name; notes in brackets are not words."""
    lines: dict[str, str] = {}
    if source.asset == "read-speech":
        for name in ("librivox/transcription", "cards/cards.transcription"):
            for path in folder.glob(f"**/{name}"):
                found = re.findall(r"<s>(.*?)</s>\s*\((\S+)\)", path.read_text(encoding="utf-8"))
                lines.update({f"{name.split('/')[0]}/{key}": text.strip() for text, key in found})
    elif source.asset.startswith("prompts-") and source.asset != "prompts-it2":
        for path in fetch(f"{source.asset}-text", offline=offline).glob("**/*.txt.gz"):
            found = re.findall(r"(?m)^([^\s;:]+):\s*(.+?)\s*$", gzip.decompress(path.read_bytes()).decode("utf-8", "replace"))
            lines.update({key: text for key, text in found if not re.search(r"[\[(\ufffd]", text)})
    return lines


def _clips(name: str, source: _Source, domain: str, found: list[_Recording], seconds: tuple[float, float]) -> Iterator[Clip]:
    """Clips of recordings: excerpts of pieces of music, the pieces in turn; else whole recordings of the right length."""
    lengths = [audio_length(item.path) for item in found]
    if domain == "music":
        rounds = max((round(size / rate / seconds[1]) + 1 for size, rate in lengths), default=0)
        places = [(item, turn * seconds[1], seconds[0]) for turn in range(rounds) for item in found]
        sizes = dict(zip(found, lengths, strict=True))
        places = [(item, at, size) for item, at, size in places if at + size <= sizes[item][0] / sizes[item][1]]
    else:
        fits = [seconds[0] <= size / rate <= seconds[1] for size, rate in lengths]
        places = [(item, 0.0, 0.0) for item, fit in zip(found, fits, strict=True) if fit]
    for item, at, size in places:
        rate = audio_length(item.path)[1]
        wave, rate = read_audio(item.path, round(at * rate), round(size * rate) or -1)
        speaker = source.speaker or (item.name.split("/")[0] if source.asset == "read-speech" else "")
        place = f"@{at:g}s" if domain == "music" else ""
        if float(wave.abs().max()) > 0.005:
            yield Clip(wave, rate, f"{name}/{item.name}{place}", domain, speaker, source.language, item.text)


# --- synthetic speech -----------------------------------------------------------------------------------------------

VOICES = (
    ("en-us", 50), ("en-us+f2", 60), ("en-us+f3", 45), ("en-us+f5", 70), ("en-us+m3", 35), ("en-us+m7", 55), ("en-gb", 40),
    ("en-gb-scotland+m4", 30),
)  # fmt: skip


def spoken_phones(
    split: Split = "train",
    *,
    count: int = 200,
    texts: Sequence[str] | None = None,
    voices: Sequence[tuple[str, int]] = VOICES,
    rate: tuple[int, int] = (140, 180),
    sample_rate: int | None = None,
    seed: int = 0,
    offline: bool | None = None,
) -> list[Clip]:
    """Synthetic speech of eSpeak NG with its phones at sample precision; voices (name, pitch) take turns.

    Texts are by default the English prompts of 3 to 15 words; a text belongs to one split for all voices. The same
    arguments give the same samples. Speeds (words per minute) and the order of texts are drawn from `seed`.
    """
    check_choice("split", split, ("train", "test", "all"))
    check_int("count", count, 1)
    if not voices:
        raise ValueError("voices must hold at least one (name, pitch), got none")
    given = sorted({" ".join(text.split()) for text in (_prompt_texts(offline) if texts is None else texts)})
    usable = [text for text in given if split in ("all", split_of("speech", "spoken", text.lower()))]
    if not usable:
        raise ValueError(f"texts must hold something for split {split!r}, got {len(given)} texts, none of them in it")
    draw = random.Random(f"{seed}/spoken")
    draw.shuffle(usable)
    jobs = []
    for number in range(count):
        voice, pitch = voices[number % len(voices)]
        # every voice passes through the texts from another place
        text = usable[(number // len(voices) + (number % len(voices)) * len(usable) // len(voices)) % len(usable)]
        jobs.append(Utterance(text=text, voice=voice, pitch=pitch, rate=draw.randint(*rate)))
    clips = []
    for number, spoken in enumerate(espeak_all(jobs, offline=offline)):
        said = spoken.utterance
        clip = Clip(
            spoken.wave, spoken.sample_rate, f"espeak/{number}", "speech", f"{said.voice}/{said.pitch}", said.voice[:2],
            said.text, spoken.phones,
        )  # fmt: skip
        clips.append(clip.at_rate(sample_rate))
    return clips


def _prompt_texts(offline: bool | None) -> list[str]:
    source = SPEECH["prompts-en"]
    texts = _texts(source, Path(), offline).values()
    return [text for text in texts if 3 <= len(text.split()) <= 15 and re.fullmatch(r"[A-Za-z ,.'!?-]+", text)]


def phone_inventory(clips: Sequence[Clip]) -> tuple[str, ...]:
    """Names of all phones in the clips, sorted, the pause "" first."""
    return tuple(sorted({PAUSE, *(phone.name for clip in clips for phone in clip.phones)}))


def phones_at(clip: Clip, hop_length: int, frames: int, inventory: Sequence[str]) -> Tensor:
    """Number in `inventory` of the phone in the middle of each of `frames` frames of `hop_length` samples, int64 [frames].

    -1 for phones that the inventory lacks and beyond the end.
    """
    check_int("hop_length", hop_length, 1)
    check_int("frames", frames, 1)
    place = {name: number for number, name in enumerate(inventory)}
    labels = torch.full((len(clip.wave),), -1, dtype=torch.long)
    for phone in clip.phones:
        labels[phone.start : phone.end] = place.get(phone.name, -1)
    middles = torch.arange(frames) * hop_length + hop_length // 2
    inside = middles < len(labels)
    return torch.where(inside, labels[middles.clamp_max(len(labels) - 1)], -1)
