"""One call that reads a tokenizer from wherever it is: hub id, folder, `tokenizer.json`, ranks, SentencePiece, Tekken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text.alphabet import BYTE_TO_CHAR
from tokenry.hosts.text.ranks import read_ranks, tokenizer_of_ranks, tokenizer_of_tekken, unpacked
from tokenry.hosts.text.sentencepiece import read_sentencepiece, tokenizer_of_sentencepiece

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_KINDS = (
    "a hub id, a folder (tokenizer.json, tekken.json, a .model or .tiktoken file, vocab.json and merges.txt, vocab.txt), or "
    "such a .json, .tiktoken or .model file"
)
_IN_FOLDER = ("tokenizer.json", "tekken.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_CONFIGS = ("config.json", "tokenizer_config.json")  # with one of them transformers knows more than the vocabulary says
_SPECIAL = re.compile(r"<\|?[^<>\s]+\|?>|\[[A-Z]+\d*\]")
CLIP_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SENTENCEPIECE = re.compile(r"\.model(\.v\d+\w*)?$")  # Mistral numbers its files
_FILE = re.compile(r"\.(json|tiktoken|model(\.v\d+\w*)?)(\.gz)?$")


def load_tokenizer(source: str | Path, *, pattern: str | None = None, offline: bool | None = None) -> Tokenizer:
    """The tokenizer of a file, a folder, or a model on the hub, as a `tokenizers.Tokenizer`.

    A file may be `tokenizer.json`, Mistral's `tekken.json`, a tiktoken rank file (`.tiktoken`, packed by gzip or not, or
    `.model` as Llama 3 has it; `pattern` as in `tokenizer_of_ranks`, for rank files that are not well known), or a
    SentencePiece `.model` (BPE or Unigram), also numbered as in `.model.v3`. A folder may hold one of these, or nothing but
    `vocab.json` and `merges.txt`, or `vocab.txt`. A hub id is looked for in the local hub cache first; `offline=True` (or
    HF_HUB_OFFLINE) looks nowhere else.
    Truncation and padding are switched off. Raises FileNotFoundError when a path does not exist, ValueError when what is
    there is no tokenizer, OSError when the hub has none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        tokenizer = _of_folder(path)
    elif path.is_file():
        tokenizer = _of_file(path, pattern)
    elif isinstance(source, Path) or not _HUB_ID.fullmatch(source) or _FILE.search(path.name):
        raise FileNotFoundError(f"{str(source)!r} does not exist; a tokenizer is {_KINDS}")
    else:
        tokenizer = _of_hub(str(source), offline)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def from_tiktoken(encoding: Any) -> Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of a `tiktoken.Encoding`."""
    return tokenizer_of_ranks(encoding._mergeable_ranks, pattern=encoding._pat_str, special=encoding._special_tokens)


def as_backend(tokenizer: Any) -> Tokenizer:
    """The `tokenizers.Tokenizer` behind a transformers tokenizer, a `tokenizers.Tokenizer` or a `tiktoken.Encoding`.

    Raises:
        UnsupportedModelError: the class is none of them.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Tokenizer):
        return backend
    if type(tokenizer).__module__.startswith("tiktoken"):
        return from_tiktoken(tokenizer)
    raise UnsupportedModelError.of(
        tokenizer, ("PreTrainedTokenizerFast (transformers)", "Tokenizer (tokenizers)", "Encoding (tiktoken)")
    )


def _of_folder(path: Path) -> Tokenizer:
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return _of_file(path / name, None)
    for pattern in ("*.tiktoken*", "*.model.v*", "tekken_*.json"):
        found = sorted(path.glob(pattern))
        if len(found) == 1:
            return _of_file(found[0], None)
    merges = (path / "vocab.json").is_file() and (path / "merges.txt").is_file()
    if any((path / name).is_file() for name in _CONFIGS) and (merges or (path / "vocab.txt").is_file()):
        return _by_transformers(str(path), local=True, where=f"the folder {path}")
    if merges:
        return _of_merges(path / "vocab.json", path / "merges.txt")
    if (path / "vocab.txt").is_file():
        return _of_pieces(path / "vocab.txt")
    raise ValueError(f"the folder {path} holds no tokenizer: {_KINDS} is expected")


def _of_file(path: Path, pattern: str | None) -> Tokenizer:
    data = unpacked(path)
    start = data[:256]
    if not start.strip():
        raise ValueError(f"{path} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the tokenizer itself; run `git lfs pull` in its repository")
    if re.search(r"\.json(\.gz)?$", path.name) or start.lstrip()[:1] == b"{":
        return _of_json(path, data)
    if ".tiktoken" in path.suffixes or re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", start):
        return tokenizer_of_ranks(read_ranks(path), pattern=pattern)
    if _SENTENCEPIECE.search(path.name):
        return tokenizer_of_sentencepiece(read_sentencepiece(path))
    raise ValueError(f"{path} is not a tokenizer: {_KINDS} is expected")


def _of_json(path: Path, data: bytes) -> Tokenizer:
    try:
        text = data.decode("utf-8-sig")
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library: it is no JSON ({error})") from error
    if isinstance(found, dict) and "vocab" in found and "config" in found:
        return tokenizer_of_tekken(found, where=str(path))
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error


def _of_hub(name: str, offline: bool | None) -> Tokenizer:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for local in (True,) if offline else (True, False):
        try:
            return _of_file(Path(hf_hub_download(name, "tokenizer.json", local_files_only=local)), None)
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError):
            continue
    return _by_transformers(name, local=bool(offline), where=f"{name!r} on the hub or in its local cache")


def _by_transformers(name: str, *, local: bool, where: str) -> Tokenizer:
    """What AutoTokenizer makes of it: older models without `tokenizer.json`."""
    from transformers import AutoTokenizer

    try:
        loaded: Any = AutoTokenizer.from_pretrained(name, local_files_only=local)
    except Exception as error:  # many kinds, from the network to a missing converter
        reason = str(error).strip().split("\n")[0][:200]
        raise OSError(f"no tokenizer could be loaded from {where}: {reason}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{where} has a tokenizer without the tokenizers library behind it ({type(loaded).__name__})")
    return backend


# --- folders that hold a vocabulary and nothing else ----------------------------------------------------------------
# What such files leave open is read off the vocabulary: word ends marked by "</w>" are CLIP's split, everything else with
# merges is byte-level BPE under GPT-2's; pieces without a capital letter are those of lower-cased text.


def _of_merges(vocabulary: Path, merges: Path) -> Tokenizer:
    """Byte-level BPE of `vocab.json` and `merges.txt`, with GPT-2's split, or CLIP's (lower case) where words end in "</w>".

    Raises ValueError, with file and line, for a merge that is no pair or that makes no entry, and for other than byte-level
    entries.
    """
    entries = _entries(vocabulary)
    pairs = _pairs(merges, entries)
    clip = any(entry.endswith("</w>") for entry in entries)
    absent = [symbol for symbol in BYTE_TO_CHAR.values() if symbol not in entries]
    if absent:
        raise ValueError(f"{vocabulary} is no byte-level vocabulary: {len(absent)} of the 256 byte symbols are missing")
    options = {"end_of_word_suffix": "</w>", "continuing_subword_prefix": ""} if clip else {}
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=pairs, fuse_unk=False, **options))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not clip)
    if clip:
        tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        split = pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
        tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
            [decoders.ByteLevel(), decoders.Replace("</w>", " ")]
        )
    else:
        tokenizer.pre_tokenizer = byte_level  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made = {left + right for left, right in pairs}
    special = [entry for entry in entries if entry not in made and _SPECIAL.fullmatch(entry)]
    tokenizer.add_special_tokens([AddedToken(entry, special=True, normalized=False) for entry in special])
    return tokenizer


def _of_pieces(path: Path) -> Tokenizer:
    """WordPiece of `vocab.txt` (a piece per line, its id the line's number), split and normalised as BERT's.

    Raises ValueError for a vocabulary without [UNK] or with an entry given twice; the message names the line.
    """
    entries: dict[str, int] = {}
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            piece = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not UTF-8") from error
        if piece in entries:
            raise ValueError(f"{path}, line {number}: {piece!r} is there twice, on line {entries[piece] + 1} too")
        entries[piece] = number - 1
    if "[UNK]" not in entries:
        raise ValueError(f"{path} is no WordPiece vocabulary: it has no [UNK]")
    special = [piece for piece in entries if _SPECIAL.fullmatch(piece)]
    lowercase = not any(piece != piece.lower() for piece in entries if piece not in special)
    tokenizer = Tokenizer(models.WordPiece(vocab=entries, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    return tokenizer


def _entries(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
        return {str(entry): int(index) for entry, index in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} must be a JSON object of entries and their ids: {error}") from error


def _pairs(path: Path, entries: dict[str, int]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.removesuffix("\r").split(" ")
        if len(parts) != 2 or not all(part in entries for part in (*parts, "".join(parts))):
            raise ValueError(f"{path}, line {number}: {line[:40]!r} is not a pair of entries that makes an entry")
        pairs.append((parts[0], parts[1]))
    return pairs
