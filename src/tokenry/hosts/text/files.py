"""One call that reads a tokenizer from wherever it is: hub id, local folder, `tokenizer.json`, rank file, SentencePiece."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.text.ranks import read_ranks, tokenizer_of_ranks
from tokenry.hosts.text.sentencepiece import read_sentencepiece, tokenizer_of_sentencepiece

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_KINDS = "a hub id, a folder with tokenizer.json, or a .json, .tiktoken or .model file"
_IN_FOLDER = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def load_tokenizer(source: str | Path, *, pattern: str | None = None, offline: bool | None = None) -> Tokenizer:
    """The tokenizer of a file, a folder, or a model on the hub, as a `tokenizers.Tokenizer`.

    A file may be `tokenizer.json`, a tiktoken rank file (`.tiktoken`, or `.model` as Llama 3 has it; `pattern` as in
    `tokenizer_of_ranks`, for rank files that are not well known), or a SentencePiece `.model` (BPE or Unigram). A
    hub id is looked for in the local hub cache first; `offline=True` (or HF_HUB_OFFLINE) looks nowhere else.
    Truncation and padding are switched off. Raises FileNotFoundError when a path does not exist, ValueError when what is
    there is no tokenizer, OSError when the hub has none.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        tokenizer = _of_folder(path)
    elif path.is_file():
        tokenizer = _of_file(path, pattern)
    elif isinstance(source, Path) or not _HUB_ID.fullmatch(source) or path.suffix in {".json", ".tiktoken", ".model"}:
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
    ranks = sorted(path.glob("*.tiktoken"))
    if len(ranks) == 1:
        return _of_file(ranks[0], None)
    if (path / "vocab.txt").is_file() or (path / "vocab.json").is_file():
        return _by_transformers(str(path), local=True, where=f"the folder {path}")
    raise ValueError(f"the folder {path} holds no tokenizer: none of {', '.join(_IN_FOLDER)}, one .tiktoken file, vocab.txt")


def _of_file(path: Path, pattern: str | None) -> Tokenizer:
    start = path.open("rb").read(256)
    if not start.strip():
        raise ValueError(f"{path} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the tokenizer itself; run `git lfs pull` in its repository")
    if path.suffix == ".json" or start.lstrip()[:1] == b"{":
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from error
    if path.suffix == ".tiktoken" or re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", start):
        return tokenizer_of_ranks(read_ranks(path), pattern=pattern)
    if path.suffix == ".model":
        return tokenizer_of_sentencepiece(read_sentencepiece(path))
    raise ValueError(f"{path} is not a tokenizer: {_KINDS} is expected")


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
