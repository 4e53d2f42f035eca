"""Speech by libespeak-ng in a process of its own; run as a script with the paths of the library and of its data.

The synthesiser carries hidden state from one utterance to the next, and the state of a library cannot be reset. Every
utterance is therefore spoken by a fresh fork, so that it depends on its own text and voice only. Standard library only.
Reads one JSON line, a list of {"text", "voice", "rate", "pitch"}; writes for each a JSON line with the phones as
[name, first sample] pairs, the number of samples and the sample rate, or an "error", followed by the 16-bit samples.
"""

import ctypes
import json
import os
import sys
from typing import Any

SYNCHRONOUS, PHONEME_EVENTS, IPA, DONT_EXIT = 2, 1, 2, 0x8000
LIST_END, WORD, PHONEME = 0, 1, 7
RATE, PITCH, CHARACTER, UTF8 = 1, 3, 1, 1


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", _Id),
    )  # fmt: skip


class _Voice(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("languages", ctypes.c_void_p), ("identifier", ctypes.c_char_p), ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte), ("variant", ctypes.c_ubyte), ("xx1", ctypes.c_ubyte), ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def choose(library: Any, voice: str) -> bool:
    """Set a voice by its name, or by its language ("en-gb"), each with or without "+variant"."""
    if library.espeak_SetVoiceByName(voice.encode()) == 0:
        return True
    language, plus, variant = voice.partition("+")
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
    voices = library.espeak_ListVoices(None)
    place = 0
    while voices[place]:
        found = voices[place].contents
        # a priority byte, then the first language and a zero byte
        if ctypes.string_at(found.languages + 1).decode("utf-8", "ignore") == language:
            return library.espeak_SetVoiceByName(found.identifier + (plus + variant).encode()) == 0
        place += 1
    return False


def speak(library: Any, data: str, job: dict) -> tuple[dict, bytes]:
    """Header and samples of one utterance."""
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), PHONEME_EVENTS | IPA | DONT_EXIT)
    if rate <= 0:
        return {"error": f"the synthesiser does not start with the data in {data}"}, b""
    samples, phones = bytearray(), []

    @_Callback
    def receive(wave, count, events):
        if wave and count:
            samples.extend(ctypes.string_at(wave, 2 * count))
        place = 0
        while events[place].type != LIST_END:
            if events[place].type == PHONEME:
                phones.append([bytes(events[place].id.string).decode("utf-8", "ignore"), events[place].sample])
            place += 1
        return 0

    library.espeak_SetSynthCallback(receive)
    if not choose(library, job["voice"]):
        return {"error": f"there is no voice {job['voice']!r}"}, b""
    library.espeak_SetParameter(RATE, job["rate"], 0)
    library.espeak_SetParameter(PITCH, job["pitch"], 0)
    text = job["text"].encode() + b"\0"
    library.espeak_Synth(text, len(text), 0, CHARACTER, 0, UTF8, None, None)
    library.espeak_Synchronize()
    return {"rate": rate, "samples": len(samples) // 2, "phones": phones}, bytes(samples)


def main(path: str, data: str) -> None:
    """Answer the list of utterances on standard input."""
    library = ctypes.CDLL(path)
    for job in json.loads(sys.stdin.readline()):
        child = os.fork()
        if child == 0:
            header, samples = speak(library, data, job)
            out = (json.dumps(header) + "\n").encode() + samples
            while out:
                out = out[os.write(1, out) :]
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            os.write(1, (json.dumps({"error": "the synthesiser crashed"}) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
