"""Corpora: catalogues and pages read right, aligned, deterministic; nothing here needs a download."""

from __future__ import annotations

import bz2
import json
import unicodedata
from pathlib import Path

import pytest

from tokenry.errors import AssetMissingError
from tokenry.lab.assets.folders import ASSETS
from tokenry.lab.compare.audit_sources import find_corpora, find_tokenizers
from tokenry.lab.sources import text as corpora
from tokenry.lab.sources import text_help
from tokenry.lab.sources.language_names import NAMES, language_name
from tokenry.lab.sources.text import DOMAINS, ParallelCorpus, domain_corpus, parallel_corpus, split_texts
from tokenry.lab.sources.text_gettext import has_words, po_messages
from tokenry.lab.sources.text_html import html_blocks, named_blocks
from tokenry.lab.sources.tokenizers import asset_of_tokenizer, load_real_tokenizer, real_tokenizers

PO = """\
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

#: somewhere.py:3
msgid "Hello \\"you\\""
msgstr "%s"

msgctxt "month"
msgid ""
"Two "
"lines\\n"
msgstr ""
"Zwei "
"Zeilen\\n"

#, fuzzy
msgid "Unsure"
msgstr "Unsicher"

msgid "%d thing"
msgid_plural "%d things"
msgstr[0] "a"
msgstr[1] "b"

msgid "Untranslated"
msgstr ""
"""


def test_gettext_catalogue(tmp_path):
    path = tmp_path / "django.po"
    path.write_text(PO, encoding="utf-8")
    assert po_messages(path) == {("", 'Hello "you"'): "%s", ("month", "Two lines\n"): "Zwei Zeilen\n"}
    path.write_text(PO + "\nrubbish\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 28: 'rubbish' is not a line"):
        po_messages(path)


def test_messages_without_words():
    assert not has_words("%(count)d %s / {0} <b>%d</b> :")
    assert has_words("%s ago")
    assert has_words("猫が好き")


def test_html_blocks():
    page = """<html><head><title>no</title></head><body><div class="navheader"><p>no</p></div><h2>1. Head&amp;ing</h2>
    <p>One <em>two</em>
    three<br>four</p><ul><li><p>item</p></li><li>bare</li></ul><pre>code</pre><p></p><div class="navfooter">x</div></body></html>"""
    expected = [("h2", "1. Head&ing"), ("p", "One two threefour"), ("li", ""), ("p", "item"), ("li", "bare"), ("p", "")]
    assert html_blocks(page) == expected


def test_named_blocks():
    page = """<p>no name</p><h1 id="hd_1" dir="auto"><a name="x"></a>Head&amp;ing
    <em>one</em></h1><p class="a" id="par_2">two  three</p><p id="par_3"> </p><p id="par_2">again</p><li id="li_4">no</li>"""
    assert named_blocks(page) == {"hd_1": "Head&ing one", "par_2": "two three"}


def test_help_blocks_are_aligned_by_their_names(tmp_path, monkeypatch):
    """Same names, whatever their order; what one language lacks or left in English, and repeated blocks, are left out."""
    pages = {
        "en": '<p id="a">Open the file</p><p id="b">Close it all now</p><p id="c">Save a copy of it</p><p id="d">Open the file</p>',
        "de": '<p id="d">Datei auf</p><p id="c">Save a copy of it</p><p id="a">Datei öffnen</p><p id="b">Alles schließen</p>',
        "pt-BR": '<p id="a">Abrir o arquivo</p><p id="c">Salvar</p><p id="d">Abra</p>',
    }
    for code, page in pages.items():
        folder = tmp_path / code / "usr/help" / code / "text/swriter"
        folder.mkdir(parents=True)
        (folder / "page.html").write_text(page, encoding="utf-8")
    rows = {"en": "libreoffice-help", "de": "libreoffice-help-de", "pt-BR": "libreoffice-help-pt-br"}
    folders = {name: tmp_path / code for code, name in rows.items()}
    kept = tmp_path / "kept"

    def derived(name, label, build):
        (kept / name).mkdir(parents=True, exist_ok=True)
        build(kept / name)
        return kept / name

    monkeypatch.setattr(text_help, "fetch", folders.__getitem__)
    monkeypatch.setattr(text_help, "derived", derived)
    monkeypatch.setattr(corpora, "fetch", folders.__getitem__)
    monkeypatch.setattr(corpora, "help_locales", lambda: rows)
    both = parallel_corpus("libreoffice-help", languages=["de", "en"])
    assert both.lines == {"en": ["Open the file", "Close it all now"], "de": ["Datei öffnen", "Alles schließen"]}
    assert both.facts == {"blocks": 4, "blocks left out (not translated or repeated)": 2}
    every = parallel_corpus("libreoffice-help")
    assert every.lines == {"en": ["Open the file"], "de": ["Datei öffnen"], "pt-BR": ["Abrir o arquivo"]}
    with pytest.raises(ValueError, match=r"languages=\['xx'\] are not in corpus 'libreoffice-help'"):
        parallel_corpus("libreoffice-help", languages=["xx"])


def test_the_help_has_thirty_languages_and_their_names():
    locales = text_help.help_locales()
    assert len(locales) == 30
    assert {"en", "pt-BR", "zh-CN", "km", "om"} <= set(locales)
    for code in locales:
        assert language_name({"zh-CN": "zh-Hans", "zh-TW": "zh-Hant"}.get(code, code)) != code


@pytest.fixture
def catalogues(tmp_path, monkeypatch) -> Path:
    def write(locale: str, messages: dict[str, str]) -> None:
        path = tmp_path / "django/conf/locale" / locale / "LC_MESSAGES/django.po"
        path.parent.mkdir(parents=True)
        path.write_text(
            "".join(f"msgid {json.dumps(k)}\nmsgstr {json.dumps(v, ensure_ascii=False)}\n\n" for k, v in messages.items()),
            encoding="utf-8",
        )

    english = {"Yes please": "", "%s": "%s", "No thanks": "", "Maybe later": ""}
    write("en", english)
    write("de", {"Yes please": "Ja bitte", "%s": "%s", "No thanks": "Nein danke", "Maybe later": "Vielleicht"})
    write("pt_BR", {"Yes please": "Sim", "No thanks": "Nao", "%s": "%s"})
    write("es_AR", {"Yes please": "Si", "No thanks": "No gracias"})
    write("es", {"Yes please": "Si", "No thanks": "No gracias"})
    monkeypatch.setattr(corpora, "fetch", lambda name: tmp_path)
    monkeypatch.setattr(corpora, "MESSAGES", 2)
    return tmp_path


def test_django_messages_are_aligned(catalogues):
    corpus = parallel_corpus("django")
    assert corpus.languages == ("en", "de", "es", "pt-BR")  # es-AR is a variant of es, pt-BR has no pt beside it
    assert corpus.lines["en"] == ["No thanks", "Yes please"]
    assert corpus.lines["de"] == ["Nein danke", "Ja bitte"]
    assert corpus.facts["messages"] == 2
    some = parallel_corpus("django", languages=["de", "en"])
    assert some.languages == ("de", "en")
    assert len(some) == 3
    with pytest.raises(ValueError, match=r"languages=\['xx'\] are not in corpus 'django'"):
        parallel_corpus("django", languages=["xx"])
    assert parallel_corpus("django", languages=["en"]).lines["en"] == ["Maybe later", "No thanks", "Yes please"]


def test_pages_that_differ_and_english_blocks_are_left_out(tmp_path, monkeypatch):
    pages = {
        "en": ["<p>The cat sat here today</p><p>Second block of words</p>", "<p>a page</p>"],
        "de": ["<p>Die Katze saß heute hier</p><p>Second block of words</p>", "<p>eine</p><p>Seite</p>"],
    }
    for code, texts in pages.items():
        folder = tmp_path / "doc/installation-guide-amd64" / code
        folder.mkdir(parents=True)
        (folder / "index.html").write_text("<p></p>", encoding="utf-8")
        for number, text in enumerate(texts):
            (folder / f"p{number}.html").write_text(text, encoding="utf-8")
    monkeypatch.setattr(corpora, "fetch", lambda name: tmp_path)
    corpus = parallel_corpus("debian-installer")
    assert corpus.lines == {"en": ["The cat sat here today"], "de": ["Die Katze saß heute hier"]}
    assert corpus.facts == {
        "pages": 3, "pages left out (blocks differ)": 1, "blocks": 2, "blocks left out (not translated)": 1,
    }  # fmt: skip


def test_unequal_languages_are_refused():
    with pytest.raises(ValueError, match=r"different numbers of lines: \{'a': 1, 'b': 2\}"):
        ParallelCorpus("x", ("a", "b"), {"a": ["1"], "b": ["1", "2"]})
    with pytest.raises(ValueError, match="are not those of the lines"):
        ParallelCorpus("x", ("a",), {"b": []})


def test_splits_are_contiguous():
    lines = [str(i) for i in range(10)]
    train, held_out = ParallelCorpus("x", ("a", "b"), {"a": lines, "b": lines}).split(0.3)
    assert (train.lines["a"], held_out.lines["b"]) == (lines[:7], lines[7:])
    assert split_texts(lines, 0.2) == (lines[:8], lines[8:])
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="held_out"):
            split_texts(lines, share)


def test_domains_of_the_python_installation():
    for name in ("general", "code"):
        texts = domain_corpus(name)
        assert texts == domain_corpus(name)
        assert sum(map(len, texts)) > 200_000
    with pytest.raises(ValueError, match="name"):
        domain_corpus("poetry")
    with pytest.raises(ValueError, match="name"):
        parallel_corpus("poetry")


def test_domains_of_assets(tmp_path, monkeypatch):
    files = {
        "x/licenses/a.json": json.dumps({"licenseText": " Text "}),
        "x/licenses/b.json": json.dumps({"licenseText": "Text"}),
        "data/ham/1.json": json.dumps({"text": "From: x\r\n\r\nBody\r\n"}),
        "texts/x_gut.txt": "A play\r\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    handbook = tmp_path / "HTML/en/kmymoney/index.cache.bz2"
    handbook.parent.mkdir(parents=True)
    handbook.write_bytes(bz2.compress(b"<body><h2>One</h2><p>Money</p><h2>Two</h2><p>More</p></body>"))
    monkeypatch.setattr(corpora, "fetch", lambda name: tmp_path)
    assert domain_corpus("legal") == ["Text"]
    assert domain_corpus("email") == ["Body"]
    assert domain_corpus("literature") == ["A play"]
    assert domain_corpus("financial") == ["One\n\nMoney", "Two\n\nMore"]


def test_languages_have_names():
    assert language_name("zh-Hans") == "Chinese, simplified"
    assert language_name("xx") == "xx"
    assert len(NAMES) > 80


# --- what the command asks for by name ---------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENRY_OFFLINE", "1")


def test_tokenizers_by_name(empty_cache):
    assert set(map(asset_of_tokenizer, real_tokenizers())) <= set(ASSETS)
    assert real_tokenizers(here=True) == []
    with pytest.raises(ValueError, match=r"'gpt3' is not a tokenizer of the assets; did you mean gpt2"):
        load_real_tokenizer("gpt3")
    with pytest.raises(AssetMissingError, match="tokenry assets get gpt-ranks"):
        find_tokenizers(["o200k"], say=print)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_tokenizers(["./no-file.json"], say=print)
    said: list[str] = []
    with pytest.raises(AssetMissingError, match="no tokenizer is here"):
        find_tokenizers(["all"], say=said.append)
    assert "left out, because they are not here: smollm2" in said[0]
    assert said[0].count("gpt-ranks") == 1


def test_corpora_by_name(empty_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "find_spec", lambda name: None)
    said: list[str] = []
    found = find_corpora([], languages=None, reference="en", domain_mb=0.1, say=said.append)
    assert list(found) == ["general", "code"]
    assert "corpus 'django' is left out, so there are no premiums" in said[0]
    assert 50_000 < sum(map(len, found["general"])) < 150_000
    with pytest.raises(AssetMissingError, match="tokenry assets get django"):
        find_corpora(["django"], languages=None, reference="en", domain_mb=1, say=print)
    with pytest.raises(FileNotFoundError, match=r"--corpus 'nope' is neither"):
        find_corpora(["nope"], languages=None, reference="en", domain_mb=1, say=print)
    with pytest.raises(ValueError, match="needs a parallel corpus"):
        find_corpora(["general"], languages=["de"], reference="en", domain_mb=1, say=print)


def test_folders_and_files(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for code in ("en", "de", "fr"):
        (folder / f"{code}.txt").write_text("a\nb\n", encoding="utf-8")
    found = find_corpora([str(folder)], languages=["fr"], reference="en", domain_mb=1, say=print)
    assert list(found["mine"]) == ["en", "fr"]
    assert list(found["mine"]["fr"]) == ["a", "b"]
    found = find_corpora(
        [str(folder / "en.txt"), str(folder / "en.txt")], languages=None, reference="en", domain_mb=1, say=print
    )
    assert list(found) == ["en", "en (2)"]
    with pytest.raises(ValueError, match=r"--languages xx: .* has de, en, fr"):
        find_corpora([str(folder)], languages=["xx"], reference="en", domain_mb=1, say=print)
    with pytest.raises(ValueError, match=r"holds no ja\.txt \(de\.txt, en\.txt, fr\.txt\); see --reference"):
        find_corpora([str(folder)], languages=None, reference="ja", domain_mb=1, say=print)


@pytest.mark.slow
def test_the_real_corpora():
    django = parallel_corpus("django")
    assert len(django.languages) >= 60
    assert len(django) >= 250
    guide = parallel_corpus("debian-installer")
    assert len(guide.languages) == 19
    assert len(guide) >= 400
    assert guide.facts["pages left out (blocks differ)"] < 12
    manual = parallel_corpus("libreoffice-help")
    assert (len(manual.languages), len(manual)) == (30, 5703)
    for name in DOMAINS:
        assert sum(map(len, domain_corpus(name))) > 200_000, name


@pytest.mark.slow
@pytest.mark.parametrize("name", real_tokenizers())
def test_real_tokenizers_return_what_they_can_spell(name):
    tokenizer = load_real_tokenizer(name)
    corpus = parallel_corpus("django")
    lossy = {"clip", "bert", "e5"}
    for code in ("en", "de", "hi", "th", "ar", "zh-Hans", "ja"):
        for line in corpus.lines[code]:
            ids = tokenizer.encode(line, add_special_tokens=False).ids
            if name not in lossy:
                expected = unicodedata.normalize("NFC", line) if name == "qwen3" else line
                assert tokenizer.decode(ids, skip_special_tokens=False) == expected
