"""`tokenry audit` as a script sees it, and its page in a real browser. Tokenizers are trained here; nothing is fetched."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokenry.cli import run

LINES = {
    "en": ["the cat sat on the mat, where it had sat before", "a dog", "", "where is the mat?"],
    "de": ["die Katze saß auf der Matte, wo sie gesessen hatte", "ein Hund", "", "wo ist die Matte?"],
    "he": ["החתול ישב על המחצלת שבה ישב קודם לכן", "כלב", "", "איפה המחצלת?"],
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytes_.train_from_iterator(LINES["en"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False))
    (folder / "model").mkdir()
    bytes_.save(str(folder / "model" / "tokenizer.json"))
    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    words.decoder = decoders.Metaspace(prepend_scheme="never")
    words.train_from_iterator(LINES["en"], trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False))
    words.save(str(folder / "words.json"))
    (folder / "mine").mkdir()
    for code, lines in LINES.items():
        (folder / "mine" / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "notes.txt").write_text("some notes\nand more of them\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENRY_OFFLINE", "1")


def call(capsys, *arguments):
    code = run(["audit", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def both(here):
    return here / "model", here / "words.json", "--resamples", "50", "--corpus", here / "mine", "--corpus", here / "notes.txt"


def test_table(here, capsys):
    code, out, err = call(capsys, *both(here))
    assert code == 0
    for word in ("mine, 4 lines: premium over 'en'", "notes", "tokenizers", "model", "words", "he/en"):
        assert word in out, word
    assert re.search(r"he .*\*", out)  # unknown tokens are marked
    assert re.search(r"words, mine de, line 1 \(unknown\): 'die Katze saß.* came back as", out)
    assert "audit:" in err


def test_json_and_csv_are_clean_on_stdout(here, capsys):
    code, out, _ = call(capsys, *both(here), "--format", "json", "--languages", "he")
    found = json.loads(out)
    assert code == 0
    assert {row["language"] for row in found["rows"]} == {"en", "he", ""}
    assert found["facts"]["reference"] == "en"
    code, out, _ = call(capsys, *both(here), "--format", "csv", "--reference", "de")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["premium"] for row in rows if row["language"] == "de"] == ["1.0", "1.0"]


def test_bad_input_has_an_exit_code_and_a_sentence(here, tmp_path, capsys):
    model = here / "model"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "en.txt").write_text("a\nb\n")
    (broken / "de.txt").write_text("a\n")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"ok\n\xfe\xff\n")
    for arguments, expected, sentence in (
        ((tmp_path / "no.json",), 2, "does not exist"),
        ((tmp_path,), 2, "holds no tokenizer"),
        ((model, "--corpus", "nope"), 2, "is neither a corpus"),
        ((model, "--corpus", here / "mine", "--languages", "xx"), 2, "--languages xx"),
        ((model, "--corpus", here / "mine", "--reference", "ja"), 2, "holds no ja.txt"),
        ((model, "--corpus", broken), 2, "is not parallel: 'en' has 2 lines, but 'de' 1"),
        ((model, "--corpus", binary), 2, "line 2: byte 0xfe at column 1 is not UTF-8"),
        ((model, "--corpus", "django"), 3, "tokenry assets get django"),
        (("gpt2",), 3, "tokenry assets get gpt-ranks"),
        (("all",), 3, "tokenry assets get"),
        (("nobody/nothing",), 3, "without the hub use a local file"),
    ):
        code, out, err = call(capsys, *arguments)
        assert (code, out) == (expected, ""), (arguments, err)
        assert sentence in err, err
        assert "Traceback" not in err


def test_without_a_cache_the_default_is_what_python_brings(here, capsys, monkeypatch):
    from tokenry.lab.sources import text as corpora

    monkeypatch.setattr(corpora, "find_spec", lambda name: None)
    code, out, err = call(capsys, here / "model", "--domain-mb", "0.05", "--resamples", "5")
    assert code == 0
    assert "general" in out
    assert "corpus 'django' is left out, so there are no premiums" in err
    assert "tokenry assets get django" in err


@pytest.fixture(scope="module")
def page(here, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    assert run(["audit", *map(str, both(here)), "--out", str(out)]) == 0
    return out / "index.html"


def test_the_page_asks_for_nothing_outside(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)
    assert "@import" not in text
    assert "Hebrew" in text
    assert json.loads((page.parent / "audit.json").read_text(encoding="utf-8"))["rows"]
    assert (page.parent / "audit.csv").read_text(encoding="utf-8").startswith("tokenizer,corpus,language,")


def test_text_of_a_corpus_is_escaped_in_the_page(here, tmp_path, capsys):
    evil = tmp_path / "evil.txt"
    evil.write_text("</script><script>alert(1)</script> <b>bold</b> and some words\n", encoding="utf-8")
    code, _, _ = call(capsys, here / "words.json", "--corpus", evil, "--out", tmp_path / "out", "--resamples", "5")
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert code == 0
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<b>bold" not in text


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_in_a_browser(page, width):
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as browser:
        browser.set_window_size(width, 900)
        browser.get(page.as_uri())
        assert [e for e in browser.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith(("file:", "data:")) for url in urls), urls
        overflow = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0
        cell = browser.find_element(By.CSS_SELECTOR, "#grid-1 td.cell")
        before = cell.text
        Select(browser.find_element(By.CSS_SELECTOR, "select.measure")).select_by_value("corrected")
        assert cell.text != before
        assert cell.text == f"{float(cell.get_attribute('data-corrected')):.2f}"
        Select(browser.find_element(By.ID, "sample")).select_by_visible_text("mine: Hebrew (he)")
        splits = browser.find_elements(By.CSS_SELECTOR, ".split")
        assert len(splits) == 2
        assert "החתול" in splits[0].text.replace("\u200e", "") or splits[0].find_elements(By.CSS_SELECTOR, ".tokens span")
        letters = "".join(re.sub(r"\d+$", "", s.text) for s in splits[0].find_elements(By.CSS_SELECTOR, ".tokens span"))
        assert letters.replace(" ", "") == LINES["he"][0].replace(" ", "")
