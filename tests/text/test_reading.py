"""Text files as people have them: every packing and encoding gives the same texts, and errors name file and line."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.cli import run
from tokenry.errors import MissingDependencyError
from tokenry.text.audit import LineFile, TokenizerAudit
from tokenry.text.bpe import text_source, train_bpe
from tokenry.text.kl3m import custom_tokens, read_jsonl, train_char_tokenizer, train_domain_tokenizer
from tokenry.text.premium import extend_superword, train_superword
from tokenry.text.reading import blocks_of, format_of, stem_of, texts_of


def byte_level():
    return train_bpe(["the quick brown fox jumps over the lazy dog"] * 4, 270)


LINES = ["the café", "", "日本語 \U0001f600", 'a "quoted" one', "\ufeff not a mark", "last"]
MARKED = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16-LE", "utf-32": "UTF-32-LE"}


def packed(data, packing):
    if packing == "zst":
        return pytest.importorskip("zstandard").ZstdCompressor().compress(data)
    return gzip.compress(data, mtime=0) if packing else data


@pytest.mark.parametrize("packing", ["", "gz", "zst"])
@pytest.mark.parametrize("encoding", ["utf-8", *MARKED])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_every_way_to_write_a_file_gives_the_same_texts(packing, encoding, kind, tmp_path):
    path = tmp_path / ("x." + kind + (f".{packing}" if packing else ""))
    rows = LINES if kind == "txt" else [json.dumps({"body": line, "text": 1}, ensure_ascii=False) for line in LINES]
    path.write_bytes(packed("\r\n".join(rows).encode(encoding), packing))
    file = LineFile(path, field="body")
    assert list(file) == LINES
    for size in (1, 3, 50):
        found = []
        for first, block in blocks_of(str(path), file.form, size):
            assert first == len(found)
            found += texts_of(block, file.form, str(path), first)
        assert found == LINES
    assert (file.note == "") == (packing == "" and encoding == "utf-8" and kind == "txt")
    for said in (
        MARKED.get(encoding, ""),
        {"gz": "gzip", "zst": "Zstandard", "": ""}[packing],
        {"jsonl": "'body'"}.get(kind, ""),
    ):
        assert said in file.note
    assert [stem_of(path), stem_of("de.TXT"), stem_of("de.json"), stem_of("de.zip")] == ["x", "de", "", ""]
    audit = TokenizerAudit({"x": byte_level()}, words=0, resamples=10)
    rows = [audit.run({"d": lines}).rows[0] for lines in (file, LINES)]
    assert rows[0].tokens == rows[1].tokens
    assert list(audit.run({"d": file}).notes) == ([file.note] if file.note else [])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=9), min_size=1),
    st.integers(1, 40),
)
def test_blocks_of_any_size(tmp_path_factory, lines, size):
    path = tmp_path_factory.mktemp("blocks") / "x.txt.gz"
    path.write_bytes(gzip.compress("".join(line + "\n" for line in ["start", *lines]).encode("utf-8")))
    form = format_of(path)
    assert [t for first, block in blocks_of(str(path), form, size) for t in texts_of(block, form, "", first)] == [
        "start",
        *lines,
    ]


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', r"a\.jsonl, line 2: 'text' must be a string, got NoneType"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl, line 2: must be a JSON object with 'text': no 'text'"),
        ("a.jsonl", b'{"text": "x"}\n[1\n', r"a\.jsonl, line 2: must be a JSON object"),
        ("a.txt", b"ok\nb\xffc\n", r"a\.txt, line 2: byte 0xff( at column 2)? is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"ok\nok\nb\xffc\n", mtime=0), r"a\.txt\.gz, line 3: byte 0xff is not UTF-8"),
        ("a.txt", "ok\nno".encode("utf-16") + b"\x00", r"a\.txt, line 2: byte 0x00 is not UTF-16-LE"),
        ("a.txt", "plain text".encode("utf-16-le"), r"a\.txt: every other byte is 0"),
        (
            "a.txt.gz",
            gzip.compress(bytes(range(32, 127)) * 99, mtime=0)[:60],
            r"a\.txt\.gz, after line 0: damaged gzip archive",
        ),
    ],
)
def test_errors_name_file_and_line(name, data, match, tmp_path):
    """In the audit and in the trainers alike."""
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match):
        TokenizerAudit({"x": byte_level()}).run({"d": LineFile(path)})
    with pytest.raises(ValueError, match=match):
        train_bpe(path, 300)
    with pytest.raises(ValueError, match=match):
        list(text_source([path])())


def test_a_cut_archive_of_zstandard_is_not_taken_for_a_whole_one(tmp_path):
    library = pytest.importorskip("zstandard")
    path = tmp_path / "x.txt.zst"
    whole = library.ZstdCompressor().compress("\n".join(map(str, range(9000))).encode())
    path.write_bytes(whole + library.ZstdCompressor().compress(b"\nanother frame"))
    assert list(LineFile(path)) == [*map(str, range(9000)), "another frame"]
    for data in (whole[: len(whole) // 2], whole[:9] + b"\xff" * 40):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x\.txt\.zst, after line \d+: damaged Zstandard archive"):
            list(LineFile(path))


def test_zstandard_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "x.zst").write_bytes(b"\x28\xb5\x2f\xfd rest")
    with pytest.raises(MissingDependencyError, match=r"tokenry\[zstd\]"):
        LineFile(tmp_path / "x.zst")


def test_sampling_reads_the_same_files(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress("\n\n".join(json.dumps({"t": line}) for line in LINES).encode("utf-16")))
    assert list(read_jsonl(path, field="t")()) == LINES
    kept = list(read_jsonl(f"{path}:0.5", field="t", seed=3)())
    assert 0 < len(kept) < len(LINES)
    path.write_bytes(gzip.compress(b'{"t": "x"}\n\n{"t": 3}\n', mtime=0))
    with pytest.raises(ValueError, match=r"x\.jsonl\.gz, line 3: 't' must be a string, got int"):
        list(read_jsonl(path, field="t")())


# --- the audit -------------------------------------------------------------------------------------------------------


def test_one_line_gives_no_interval_and_says_so():
    audit = TokenizerAudit({"x": byte_level()}, words=0, resamples=50)
    report = audit.run({"p": {"en": ["the one line"], "de": ["die eine Zeile"]}, "d": ["a line", "two lines"]})
    row = report.row("x", "p", "de")
    assert row.premium is not None
    intervals = ("premium_low", "premium_high", "corrected_low", "corrected_high", "tokens_per_character_low")
    assert [getattr(row, name) for name in intervals] == [None] * 5
    assert report.row("x", "d").tokens_per_character_low is not None
    assert report.notes == ("corpus 'p' has one line: nothing to resample, so there are no intervals",)


def test_the_command_reads_folders_of_any_of_these(tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "en.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n')
    (folder / "de.jsonl.gz").write_bytes(gzip.compress(b'{"body": "eins"}\n{"body": "zwei"}\n', mtime=0))
    (folder / "notes.md").write_text("not a language")
    byte_level().save(str(tmp_path / "tokenizer.json"))
    command = ["audit", str(tmp_path / "tokenizer.json"), "--corpus", str(folder), "--field", "body", "--format", "csv"]
    assert run(command) == 0
    shown = capsys.readouterr()
    assert ",de," in shown.out
    assert "packed by gzip" in shown.err
    (folder / "de.txt").write_text("eins\nzwei\n")
    assert run(command) != 0
    assert "two files for 'de': de.jsonl.gz and de.txt" in capsys.readouterr().err


# --- the trainers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train_bpe", "train_superword", "train_char_tokenizer", "train_domain_tokenizer", "extend"])
def test_numbers_that_the_stock_trainer_cannot_hold_are_named(name):
    trainers = {
        "train_bpe": train_bpe,
        "train_superword": train_superword,
        "train_char_tokenizer": train_char_tokenizer,
        "train_domain_tokenizer": lambda texts, size, **o: train_domain_tokenizer(texts, size, custom=(), **o),
        "extend": lambda texts, size, **o: extend_superword(byte_level(), texts, size, **o),
    }
    with pytest.raises(ValueError, match=r"min_frequency must be in \[0, 18446744073709551615\], got 18446744073709551616"):
        trainers[name](["some text"], 300, min_frequency=2**64)
    with pytest.raises(ValueError, match=r"vocab_size must be .*16777216.*, got 1099511627776"):
        trainers[name](["some text"], 2**40)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str, got NoneType"):
        trainers[name](["some text", None], 400)


# --- custom tokens that the normaliser changes -------------------------------------------------------------------------


def test_custom_tokens_that_the_normaliser_changes_are_refused():
    """Under NFKC "①" is "1", and would be matched in every number."""
    texts = ["1 and ① and 2"] * 20
    with pytest.raises(ValueError, match=r"custom\[1\] must be as normalization='nfkc' leaves it.* got '①', which becomes '1'"):
        train_domain_tokenizer(texts, 400, custom=["and", "①"])
    with pytest.raises(ValueError, match=r"normalization='nfc'.* got 'A\u030a', which becomes 'Å'"):
        train_domain_tokenizer(texts, 400, custom=["A\u030a"], normalization="nfc")
    made = train_domain_tokenizer(texts, 400, custom=["and", "①"], normalization="nfc", min_frequency=1)
    assert made.encode("① 1").tokens.count("①") == 1
    assert "①" not in made.encode("1").tokens
    for lowercase in (False, True):  # the curated tokens are as every form leaves them
        every = custom_tokens(lowercase=lowercase, citations=["F.3d", "U.S.C."])
        for normalization in ("nfc", "nfd", "nfkc", "nfkd", None):
            made = train_domain_tokenizer(texts, 3000, custom=every, normalization=normalization, lowercase=lowercase)
            assert set(every) <= set(made.get_vocab())
