"""Tokenizers of tiktoken rank files as `tokenizers.Tokenizer` objects with the same ids, without tiktoken.

A rank file holds one line per token: its bytes in base64 and its rank, which is also its id. Merging lowest rank first
equals a merge list with every split of a token into two known tokens, in the order of the token's rank; a whole
pre-token that is itself a token is taken as it is (`ignore_merges`).
"""

from __future__ import annotations

import base64
import binascii
import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tokenry.hosts.text.alphabet import BYTE_TO_CHAR

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"

PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}",
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
    ),
    "qwen": rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}",
    "qwen3.5": (rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_ENDS}"),
}
"""Pre-tokenization patterns by name."""

_END, _FIM = "<|endoftext|>", ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")
_KNOWN: dict[int, tuple[str, dict[str, int]]] = {  # by the number of ranks
    50256: ("gpt2", {_END: 50256}),
    50280: ("gpt2", {_END: 50256}),
    100256: ("cl100k", {_END: 100257, **{t: 100258 + i for i, t in enumerate(_FIM)}, "<|endofprompt|>": 100276}),
    128000: ("cl100k", {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001}),
    151643: ("qwen", {_END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}),
    199998: ("o200k", {_END: 199999, "<|endofprompt|>": 200018}),
    248044: ("qwen3.5", {_END: 248044, "<|im_start|>": 248045, "<|im_end|>": 248046}),
}
_TEKKEN = (  # special tokens of files that do not list them
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each of the 256 bytes."""
    return [BYTE_TO_CHAR[byte] for byte in range(256)]


def unpacked(path: str | Path) -> bytes:
    """Bytes of a file, those that a gzip file holds; ValueError for a damaged one."""
    data = Path(path).read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is a damaged gzip file ({error})") from error


def read_ranks(path: str | Path) -> dict[bytes, int]:
    """Ranks of a `.tiktoken` file, packed by gzip or not; ValueError names the first line that is not `base64 rank`."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(unpacked(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not a token in base64 and its rank") from error
    _check(ranks, str(path))
    return ranks


def tokenizer_of_ranks(
    ranks: Mapping[bytes, int], *, pattern: str | None = None, special: Mapping[str, int] | None = None
) -> Tokenizer:
    """A `tokenizers.Tokenizer` with the ids that tiktoken gives for these ranks.

    `pattern` is a name of `PATTERNS` or a regular expression, `special` the ids of special tokens; both default to those
    of the well-known files, told apart by their number of ranks. Raises ValueError when the number is not known.
    """
    _check(ranks, "ranks")
    if pattern is None:
        if len(ranks) not in _KNOWN:
            raise ValueError(
                f"a rank file of {len(ranks)} tokens is not one of the known ones ({', '.join(map(str, _KNOWN))} tokens); "
                f"give pattern=, one of {', '.join(PATTERNS)} or a regular expression"
            )
        pattern = _KNOWN[len(ranks)][0]
    if special is None:
        special = _KNOWN[len(ranks)][1] if len(ranks) in _KNOWN else {}
    symbol = byte_symbols()
    written = {token: "".join([symbol[byte] for byte in token]) for token in ranks}
    merges = [
        (written[token[:cut]], written[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in _cuts(token, ranks)
    ]
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    taken = set(vocabulary.values())
    vocabulary |= {text: index for text, index in special.items() if index not in taken}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(PATTERNS.get(pattern, pattern)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def tokenizer_of_tekken(found: Mapping[str, Any], *, where: str = "tekken") -> Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of Mistral's `tekken.json`: the special tokens first, then the ranks behind them.

    Raises ValueError when entries are missing, or numbered otherwise than that.
    """
    try:
        config = found["config"]
        count, size = int(config["default_num_special_tokens"]), int(config["default_vocab_size"])
        entries = found["vocab"][: size - count]
        ranks = {base64.b64decode(entry["token_bytes"], validate=True): int(entry["rank"]) + count for entry in entries}
        named = found.get("special_tokens") or [{"rank": rank, "token_str": text} for rank, text in enumerate(_TEKKEN)]
        special = {f"<SPECIAL_{rank}>": rank for rank in range(count)}
        given = {int(entry["rank"]): str(entry["token_str"]) for entry in named}
        special = {given.get(rank, text): rank for text, rank in special.items()}
        pattern = str(config["pattern"])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ValueError(f"{where} is not a tekken.json of Mistral: {type(error).__name__} {error}") from error
    if sorted(ranks.values()) != list(range(count, size)) or len(special) != count:
        raise ValueError(
            f"{where}: {len(ranks)} tokens and {len(special)} special ones do not fill the {size} ids, {count} special"
        )
    return tokenizer_of_ranks(ranks, pattern=pattern, special=special)


def _cuts(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Places where a token splits into two tokens, lower ranks of the parts first."""
    places = [cut for cut in range(1, len(token)) if token[:cut] in ranks and token[cut:] in ranks]
    return places if len(places) < 2 else sorted(places, key=lambda cut: (ranks[token[:cut]], ranks[token[cut:]]))


def _check(ranks: Mapping[bytes, int], where: str) -> None:
    if len(set(ranks.values())) != len(ranks):
        raise ValueError(f"{where}: two tokens have the same rank")
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ValueError(f"{where}: {len(absent)} of the 256 single bytes are missing, the first is {absent[0]:#04x}")
