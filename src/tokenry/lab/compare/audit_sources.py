"""What `tokenry audit` is asked for by name: tokenizers and corpora, from assets, files, folders and the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenry.errors import AssetMissingError
from tokenry.hosts.text import load_tokenizer
from tokenry.lab.sources.text import DOMAINS, PARALLEL, domain_corpus, parallel_corpus
from tokenry.lab.sources.tokenizers import asset_of_tokenizer, load_real_tokenizer, real_tokenizers
from tokenry.text.audit import LineFile
from tokenry.text.reading import stem_of

Say = Callable[[str], None]
DEFAULT = ("django", "general", "code")
Corpora = dict[str, Mapping[str, Any] | Any]


def find_tokenizers(names: Sequence[str], *, pattern: str | None = None, say: Say) -> dict[str, Tokenizer]:
    """Tokenizers by name: of an asset, a path, or a hub id, tried in this order; "all" stands for those of the assets.

    `say` is told what "all" left out. Raises AssetMissingError when a tokenizer cannot be had now, ValueError or
    FileNotFoundError when there is no such thing; the message names it.
    """
    wanted = [real for name in names for real in (real_tokenizers() if name == "all" else [name])]
    found: dict[str, Tokenizer] = {}
    missing: list[str] = []
    for name in dict.fromkeys(wanted):
        if name not in real_tokenizers():
            found[_free(_short(name), found)] = _other(name, pattern)
            continue
        try:
            found[name] = load_real_tokenizer(name)
        except AssetMissingError:
            if name in names:
                raise
            missing.append(name)
    if missing:
        assets = " ".join(dict.fromkeys(map(asset_of_tokenizer, missing)))
        say(f"left out, because they are not here: {', '.join(missing)}; get them with: tokenry assets get {assets}")
    if not found:
        raise AssetMissingError("no tokenizer is here; run: tokenry assets get gpt-ranks")
    return found


def _other(name: str, pattern: str | None) -> Tokenizer:
    try:
        return load_tokenizer(name, pattern=pattern)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or one of {', '.join(real_tokenizers())}") from error
    except OSError as error:
        here = ", ".join(real_tokenizers(here=True)) or "none"
        raise AssetMissingError(f"{error}; without the hub use a local file or folder, or one that is here: {here}") from error


def _short(name: str) -> str:
    path = Path(name)
    if not path.exists():
        return name
    return (
        path.resolve().parent.name if path.name in {"tokenizer.json", "tokenizer.model", "tekken.json"} else path.resolve().stem
    )


def _free(name: str, taken: Mapping[str, Any]) -> str:
    number = 2
    free = name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def find_corpora(
    names: Sequence[str],
    *,
    languages: Sequence[str] | None,
    reference: str,
    domain_mb: float,
    say: Say,
    field: str | None = None,
) -> Corpora:
    """Corpora by name, folder (a file per language such as `de.txt` or `de.jsonl.gz`, aligned lines) or file (one domain).

    A text is a line, or what `field` (default "text") holds in a line of a .jsonl file; see `LineFile` for what is read.
    Without names: those that need no download beyond the small ones, as far as they are here. Domains that have a name are
    cut to about `domain_mb` million characters (0: not at all). Raises ValueError for unknown names and languages.
    """
    found: Corpora = {}
    wanted = [reference, *(code for code in languages if code != reference)] if languages else None
    for name in names or DEFAULT:
        try:
            if Path(name).is_dir():
                found[_free(Path(name).resolve().name, found)] = _folder(Path(name), wanted, reference, field)
            elif Path(name).is_file():
                found[_free(stem_of(name) or Path(name).stem, found)] = LineFile(name, field=field)
            elif name in PARALLEL:
                found[name] = parallel_corpus(name, languages=wanted).lines
            elif name in DOMAINS:
                found[name] = _cut(domain_corpus(name), domain_mb)
            else:
                known = ", ".join([*PARALLEL, *DOMAINS])
                raise FileNotFoundError(f"--corpus {name!r} is neither a corpus ({known}) nor a file or folder")
        except AssetMissingError as error:
            if names:
                raise
            say(f"corpus {name!r} is left out, so there are no premiums: {error}" if name in PARALLEL else str(error))
    if languages and not any(isinstance(content, Mapping) for content in found.values()):
        raise ValueError("--languages needs a parallel corpus, and none is asked for")
    return {name: content for name, content in found.items() if content}


def _folder(folder: Path, wanted: Sequence[str] | None, reference: str, field: str | None) -> Mapping[str, LineFile]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        code = stem_of(path) if path.is_file() else ""
        if code in files:
            raise ValueError(f"the folder {folder} has two files for {code!r}: {files[code].name} and {path.name}")
        if code:
            files[code] = path
    if reference not in files:
        raise ValueError(
            f"the folder {folder} is no parallel corpus with the reference {reference!r}: it holds no {reference}.txt "
            f"({', '.join(path.name for path in files.values()) or 'no .txt or .jsonl file, packed or not'}); see --reference"
        )
    absent = [code for code in wanted or () if code not in files]
    if absent:
        raise ValueError(f"--languages {','.join(absent)}: {folder} has {', '.join(files)}")
    return {code: LineFile(files[code], field=field) for code in wanted or files}


def _cut(texts: Sequence[str], millions: float) -> list[str]:
    """The first texts, together about that many million characters; all for 0."""
    if not millions:
        return list(texts)
    kept, size = [], 0
    for text in texts:
        if kept and size + len(text) > millions * 1e6:
            break
        kept.append(text)
        size += len(text)
    return kept
