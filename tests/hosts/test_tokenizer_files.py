"""Tokenizers from files: the same ids as the libraries that own the formats, and one clear sentence for each bad input."""

from __future__ import annotations

import base64
import inspect
import itertools
import struct

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import SpmConverter

from tokenry.errors import MissingDependencyError
from tokenry.hosts.text import (
    PATTERNS,
    ByteVocabulary,
    byte_symbols,
    load_tokenizer,
    read_ranks,
    read_sentencepiece,
    tokenizer_of_ranks,
    tokenizer_of_sentencepiece,
)

converter = pytest.mark.skipif(
    "legacy" not in inspect.signature(SpmConverter.build_tokenizer_from_spm_proto).parameters,
    reason="the converter of this transformers leaves out parts of the file",
)
TEXTS = ["the cat sat on the mat", "a théâtre, 3 cats & 12 mats", "der Hund und die Katze", "猫は猫", "  two  spaces\n\n x"] * 4


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Ranks made by greedy merging of the sample, all 256 bytes first."""
    found = {bytes([byte]): byte for byte in range(256)}
    words = [piece.encode() for text in TEXTS for piece in text.replace(" ", "\n ").split("\n")]
    parts = [[bytes([byte]) for byte in word] for word in words]
    for _ in range(80):
        pairs: dict[bytes, int] = {}
        for word in parts:
            for left, right in itertools.pairwise(word):
                pairs[left + right] = pairs.get(left + right, 0) + 1
        best = max((pair for pair in pairs if pair not in found), key=lambda pair: (pairs[pair], pair), default=None)
        if best is None:
            break
        found[best] = len(found)
        for word in parts:
            place = 0
            while place + 1 < len(word):
                if word[place] + word[place + 1] == best:
                    word[place : place + 2] = [best]
                place += 1
    return found


def write_ranks(path, ranks):
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_ranks_give_the_ids_of_tiktoken(ranks, pattern):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS[pattern], mergeable_ranks=ranks, special_tokens={})
    ours = tokenizer_of_ranks(ranks, pattern=pattern, special={"<|end|>": 1000})

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=60) | st.sampled_from(TEXTS) | st.text("ab '\n\r\t1stheca", max_size=40))
    def equal(text):
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode_ordinary(text)
        assert ours.decode(ids) == text

    equal()
    assert ours.encode("<|end|>", add_special_tokens=False).ids == [ours.token_to_id("<|end|>")]


def test_rank_file_round_trip_and_pattern(tmp_path, ranks):
    path = write_ranks(tmp_path / "toy.tiktoken", ranks)
    assert read_ranks(path) == ranks
    with pytest.raises(ValueError, match=r"not one of the known ones .* pattern="):
        load_tokenizer(path)
    assert load_tokenizer(path, pattern="gpt2").get_vocab_size() == len(ranks)
    model = write_ranks(tmp_path / "tokenizer.model", ranks)  # as Llama 3 has it
    assert (
        load_tokenizer(model, pattern="cl100k").encode("the cat").ids
        == tokenizer_of_ranks(ranks, pattern="cl100k").encode("the cat").ids
    )


def test_bad_rank_files(tmp_path, ranks):
    bad = tmp_path / "bad.tiktoken"
    bad.write_bytes(b"IQ== 0\nnot base64!\n")
    with pytest.raises(ValueError, match=r"line 2: .*not a token in base64"):
        read_ranks(bad)
    write_ranks(bad, {token: rank for token, rank in ranks.items() if token != b"\x07"})
    with pytest.raises(ValueError, match="1 of the 256 single bytes are missing, the first is 0x07"):
        read_ranks(bad)
    write_ranks(bad, {**ranks, b"zzzz": 3})
    with pytest.raises(ValueError, match="two tokens have the same rank"):
        read_ranks(bad)


def test_byte_symbols_are_those_of_byte_level():
    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert byte_symbols()[0x20] == "\u0120"
    assert len(set(byte_symbols())) == 256


def field(number: int, kind: int, value: bytes | int) -> bytes:
    if kind == 0:
        return (
            bytes([number << 3]) + bytes([value]) if number < 16 else bytes([(number << 3) & 0x7F | 0x80, number >> 4, value])
        )
    return bytes([number << 3 | kind]) + (bytes([len(value)]) if kind == 2 else b"") + value


def write_spm(path, pieces, *, algorithm, fallback=False, prefix=True):
    data = b""
    for text, score, kind in pieces:
        body = field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score)) + field(3, 0, kind)
        data += field(1, 2, body)
    data += field(2, 2, field(3, 0, algorithm) + field(35, 0, int(fallback)))
    data += field(3, 2, field(3, 0, int(prefix)) + field(4, 0, 0))
    path.write_bytes(data)
    return path


def train_spm(folder, kind, fallback, **options):
    (folder / "corpus.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "m"), vocab_size=350 if fallback else 90, model_type=kind,
        byte_fallback=fallback, minloglevel=2, hard_vocab_limit=False, character_coverage=1.0, **options,
    )  # fmt: skip
    return folder / "m.model"


SPECIAL = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
LETTERS = [(letter, -20.0 - i, 1) for i, letter in enumerate("\u2581abcd")]


@pytest.mark.parametrize("algorithm", [1, 2])
@converter
def test_pieces_by_hand(tmp_path, algorithm):
    pieces = [*SPECIAL, ("\u2581ab", -1.0, 1), ("ab", -2.0, 1), ("cd", -3.0, 1), *LETTERS]
    tokenizer = load_tokenizer(write_spm(tmp_path / "m.model", pieces, algorithm=algorithm))
    ids = tokenizer.encode("ab cd abab", add_special_tokens=False).ids
    assert [pieces[i][0] for i in ids] == ["\u2581ab", "\u2581", "cd", "\u2581ab", "ab"]
    assert tokenizer.decode(ids) == "ab cd abab"
    assert tokenizer.encode("z", add_special_tokens=False).ids[-1] == 0  # unknown


@converter
def test_byte_fallback_spells_what_the_pieces_lack(tmp_path):
    bytes_of = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    path = write_spm(tmp_path / "m.model", [*SPECIAL, *bytes_of, *LETTERS], algorithm=2, fallback=True)
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("a猫", add_special_tokens=False).ids
    assert [tokenizer.id_to_token(i) for i in ids[-3:]] == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert tokenizer.decode(ids) == "a猫"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize("own", ["", "<sep>"])
@converter
def test_ids_are_those_of_sentencepiece(tmp_path, kind, fallback, rule, own):
    path = train_spm(tmp_path, kind, fallback, normalization_rule_name=rule, **({"user_defined_symbols": own} if own else {}))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = tokenizer_of_sentencepiece(read_sentencepiece(path))
    for text in [*TEXTS, "", "  x  y ", "\ufb01 \u2463", "zebra \U0001f600\u200d", "e\u0301", "\tcat\n", " the<sep>cat <sep>"]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("own", ["", "<sep>"])
@converter
def test_bytes_of_a_sentencepiece_model(tmp_path, kind, own):
    options = {"user_defined_symbols": own} if own else {}
    path = train_spm(tmp_path, kind, True, normalization_rule_name="identity", remove_extra_whitespaces=False, **options)
    vocabulary = ByteVocabulary.of(load_tokenizer(path))
    for text in (" the cat", "  ", "a  cat\n", "the<sep>cat <sep>"):
        assert vocabulary.decode(vocabulary.encode(text)) == text.encode()
    ids = vocabulary.encode(TEXTS[1])
    for stop in range(1, len(ids), 5):  # what stands before a cut between tokens is a beginning of its bytes
        assert ids[:stop] in vocabulary.canonical.tips(b"".join(vocabulary.pieces[token] for token in ids[:stop]))


def test_what_a_sentencepiece_file_needs(tmp_path, monkeypatch):
    path = write_spm(tmp_path / "m.model", SPECIAL, algorithm=1)
    monkeypatch.setattr(SpmConverter, "build_tokenizer_from_spm_proto", staticmethod(lambda proto, vocab, merges=None: None))
    with pytest.raises(MissingDependencyError, match=r"transformers 5.24 or later, got .* pip install 'transformers>=5.24'"):
        load_tokenizer(path)
    monkeypatch.setattr("tokenry.extras.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"protobuf, sentencepiece are needed .* 'tokenry\[sentencepiece\]'"):
        load_tokenizer(path)


def test_not_a_sentencepiece_model(tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(b"\xff\x00garbage of some kind")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        load_tokenizer(path)
    with pytest.raises(ValueError, match="type 3 is neither Unigram nor BPE"):
        load_tokenizer(write_spm(path, SPECIAL, algorithm=3))


@pytest.fixture
def small() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def test_json_and_folders(tmp_path, small):
    small.enable_truncation(3)
    small.save(str(tmp_path / "tokenizer.json"))
    for source in (tmp_path, str(tmp_path), tmp_path / "tokenizer.json"):
        assert len(load_tokenizer(source).encode("the cat sat on the mat").ids) > 3  # truncation is off


def test_folder_of_a_saved_transformers_tokenizer(tmp_path, small):
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=small).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).get_vocab() == small.get_vocab()


def test_bad_inputs_have_one_sentence_each(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"'no/such/file.json' does not exist"):
        load_tokenizer("no/such/file.json")
    with pytest.raises(ValueError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    for name, content, sentence in (
        ("a.json", b'{"model": 3}', "not a tokenizer.json"),
        ("b.json", b"", "is empty"),
        ("c.txt", b"hello there", "is not a tokenizer"),
        ("d.model", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            load_tokenizer(tmp_path / name)
    with pytest.raises(OSError, match="'nobody/nothing-here' on the hub"):
        load_tokenizer("nobody/nothing-here", offline=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "cl100k", "o200k", "qwen3.5", "claude2"])
def test_real_rank_files_equal_tiktoken(name):
    import json

    tiktoken = pytest.importorskip("tiktoken")
    from tokenry.lab.assets.folders import fetch
    from tokenry.lab.sources.text import parallel_corpus
    from tokenry.lab.sources.tokenizers import asset_of_tokenizer, load_real_tokenizer

    ours = load_real_tokenizer(name)
    root = fetch(asset_of_tokenizer(name))
    if name == "claude2":
        found = json.loads((root / "package/claude.json").read_text())
        ranks = {base64.b64decode(t): 5 + i for i, t in enumerate(found["bpe_ranks"].split()[2:])}
        pattern = found["pat_str"]
    else:
        stem = {"gpt2": "r50k_base", "qwen3.5": "qwen3_6"}.get(name, f"{name}_base")
        ranks, pattern = read_ranks(next(root.glob(f"**/{stem}.tiktoken"))), PATTERNS[name]
    theirs = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    corpus = parallel_corpus("django")
    for language in corpus.languages:
        text = "\n".join(corpus.lines[language])
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode_ordinary(text), language


# --- folders and files without anything that says what they are -----------------------------------------------------


def test_a_folder_of_vocabulary_and_merges(tmp_path, small):
    """GPT-2's layout without a config: the ids of the tokenizer that was saved, and of transformers' own class."""
    from transformers import GPT2Tokenizer

    small.model.save(str(tmp_path))
    loaded = load_tokenizer(tmp_path)
    theirs = GPT2Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in [*TEXTS, "unseen: \U0001f600 ÀÉ 12"]:
        assert loaded.encode(text).ids == small.encode(text).ids == theirs(text)["input_ids"]
        assert loaded.decode(loaded.encode(text).ids) == text
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nq\u0120 zzz\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"merges\.txt, line 3: .* is not a pair of entries that makes an entry"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": "x"}')
    with pytest.raises(ValueError, match=r"vocab\.json must be a JSON object of entries and their ids"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"t": 0, "h": 1, "th": 2}')
    (tmp_path / "merges.txt").write_text("t h\n")
    with pytest.raises(ValueError, match=r"25\d of the 256 byte symbols are missing"):
        load_tokenizer(tmp_path)


def test_a_folder_of_merges_with_word_ends(tmp_path):
    """CLIP's layout: lower case, word ends in the vocabulary; equal to transformers' class."""
    import json

    from transformers import CLIPTokenizer

    symbols = sorted(byte_symbols())
    merges = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]
    words = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    loaded = load_tokenizer(tmp_path)
    theirs = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ("The cat's  théâtre 12", "THE CAT", "caté\n<|endoftext|>"):
        assert loaded.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_folder_of_word_pieces(tmp_path, lowercase):
    """BERT's layout without a config: equal to transformers' class, whose case is read off the vocabulary."""
    from transformers import BertTokenizer

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "cat",
        "##s",
        "theatre",
        ",",
        "1",
        "##2",
        *([] if lowercase else ["The"]),
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    theirs = BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lowercase)
    for text in ("The cats, théatre 12", "the unknownword [SEP]"):
        assert loaded.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"]
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\ncat\nthe\n")
    with pytest.raises(ValueError, match=r"vocab\.txt, line 4: 'the' is there twice, on line 2 too"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(ValueError, match=r"vocab\.txt, line 2: .* is not UTF-8"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("the\ncat\n")
    with pytest.raises(ValueError, match=r"it has no \[UNK\]"):
        load_tokenizer(tmp_path)


def test_packed_ranks(tmp_path, ranks):
    import gzip

    path = write_ranks(tmp_path / "x.tiktoken", ranks)
    packed = tmp_path / "packed" / "x.tiktoken.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_ranks(packed) == ranks
    assert load_tokenizer(packed, pattern="gpt2").get_vocab_size() == len(ranks)
    packed.write_bytes(packed.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"x\.tiktoken\.gz is a damaged gzip file"):
        load_tokenizer(packed, pattern="gpt2")
    with pytest.raises(FileNotFoundError, match=r"y\.tiktoken\.gz' does not exist"):
        load_tokenizer("y.tiktoken.gz")


def tekken(ranks, specials=None):
    """A tekken.json whose vocabulary is longer than what counts of it, as Mistral's is."""
    entries = [{"rank": r, "token_bytes": base64.b64encode(t).decode(), "token_str": None} for t, r in ranks.items()]
    size = len(ranks) - 9
    config = {"pattern": PATTERNS["cl100k"], "default_vocab_size": size + 30, "default_num_special_tokens": 30}
    return {"config": config, "vocab": entries, **({"special_tokens": specials} if specials else {})}


def test_tekken(tmp_path, ranks):
    import json

    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(tekken(ranks)))
    plain = tokenizer_of_ranks({t: r for t, r in ranks.items() if r < len(ranks) - 9}, pattern="cl100k")
    for source in (path, tmp_path):
        loaded = load_tokenizer(source)
        for text in TEXTS:
            assert loaded.encode(text).ids == [30 + index for index in plain.encode(text).ids]
            assert loaded.decode(loaded.encode(text).ids) == text
    assert [loaded.id_to_token(i) for i in (1, 3, 19, 20, 29)] == [
        "<s>", "[INST]", "[TOOL_CONTENT]", "<SPECIAL_20>", "<SPECIAL_29>",
    ]  # fmt: skip
    path.write_text(json.dumps(tekken(ranks, [{"rank": 0, "token_str": "<first>", "is_control": True}])))
    assert [load_tokenizer(path).id_to_token(i) for i in (0, 1)] == ["<first>", "<SPECIAL_1>"]
    for change, match in (
        ({"vocab": tekken(ranks)["vocab"][1:]}, "do not fill the"),
        ({"config": {}}, r"tekken\.json is not a tekken\.json of Mistral: KeyError"),
        ({"vocab": [{"rank": 1, "token_bytes": "?"}] * 999}, "is not a tekken.json of Mistral"),
    ):
        path.write_text(json.dumps({**tekken(ranks), **change}))
        with pytest.raises(ValueError, match=match):
            load_tokenizer(path)


@converter
def test_numbered_sentencepiece_files(tmp_path):
    pieces = [*SPECIAL, *((letter, 0.0, 1) for letter in "\u2581abc")]
    for name in ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3", "x.model.v7m1"):
        write_spm(tmp_path / name, pieces, algorithm=2)
        assert load_tokenizer(tmp_path / name).token_to_id("a") == len(SPECIAL) + 1
        (tmp_path / name).rename(tmp_path / "moved")
        (tmp_path / "moved").unlink()
    write_spm(tmp_path / "tokenizer.model.v3", pieces, algorithm=2)
    assert load_tokenizer(tmp_path).token_to_id("b") == len(SPECIAL) + 2


@pytest.mark.slow
@converter
def test_real_files_of_mistral():
    """Ids of sentencepiece for every numbered file, and of tiktoken for Tekken, on lines of 30 languages."""
    import json

    import tiktoken

    from tokenry.errors import AssetMissingError
    from tokenry.lab.assets.folders import fetch
    from tokenry.lab.sources.text import parallel_corpus

    try:
        folder = next(fetch("mistral-tokenizers").glob("**/data"))
        lines = [line for found in parallel_corpus("libreoffice-help").lines.values() for line in found[::90]]
    except AssetMissingError as error:
        pytest.skip(str(error))
    for path in sorted(folder.glob("*.model.v*")):
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        loaded = load_tokenizer(path)
        assert [loaded.encode(line, add_special_tokens=False).ids for line in lines] == theirs.encode(lines)
    for path in sorted(folder.glob("tekken_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        config, loaded = found["config"], load_tokenizer(path)
        count = config["default_num_special_tokens"]
        kept = found["vocab"][: config["default_vocab_size"] - count]
        given = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in kept}
        theirs = tiktoken.Encoding("tekken", pat_str=config["pattern"], mergeable_ranks=given, special_tokens={})
        for line in lines:
            assert loaded.encode(line).ids == [count + index for index in theirs.encode(line)]
