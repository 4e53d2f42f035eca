"""The printable characters that byte-level BPE writes for bytes."""

from __future__ import annotations


def byte_alphabet() -> dict[str, int]:
    """The byte-level BPE alphabet: printable characters stand for themselves, the other bytes for U+0100 onwards."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    for extra, byte in enumerate(byte for byte in range(256) if byte not in set(plain)):
        table[chr(256 + extra)] = byte
    return table


CHAR_TO_BYTE = byte_alphabet()
BYTE_TO_CHAR = {byte: char for char, byte in CHAR_TO_BYTE.items()}
