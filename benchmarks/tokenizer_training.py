"""Superword and character training against the stock trainer of `tokenizers`, stage by stage, in one process.

Each stage of ours runs next to a stock run that does the same stage's work, in turns, on the same texts:

- stage 1: `train_bpe` to transition * V entries; stock: `Tokenizer.train_from_iterator` with the same trainer arguments.
- stage 2: `extend_superword` from there to V; stock: the only way the stock trainer has to superwords, a run from bytes to V
  under the looser split (on the same lines: whole documents would be one huge word each). Its vocabulary is not the same
  (it has no stage 1), its size is.
- stage 2, inside: the same stage with the time of its calls into `tokenizers` taken apart; what is left is ours.
- character: `train_char_tokenizer`; stock: the same trainer with `max_token_length` and special tokens set by hand.
- domain: `train_domain_tokenizer` with 500 custom tokens; stock: BPE to the full size under the same normaliser.

    python benchmarks/tokenizer_training.py [--quick] [--megabytes 8] [--repeats 5]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from results_file import environment, write
from tokenry.text.bpe import bpe_parts
from tokenry.text.kl3m import SPECIAL_TOKENS, custom_tokens, train_char_tokenizer, train_domain_tokenizer
from tokenry.text.premium import STAGE2_REGEX, extend_superword, train_bpe
from tokenry.text.premium import superword as stages

ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def texts(megabytes: float) -> list[str]:
    """Modules of the standard library and Python's help topics, a document each, cut at `megabytes`."""
    import pydoc_data.topics

    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    sources = (path.read_text("utf-8", "ignore") for path in paths if "site-packages" not in path.parts)
    chosen, total = [], 0
    for text in itertools.chain(pydoc_data.topics.topics.values(), sources):
        chosen.append(text)
        total += len(text)
        if total >= megabytes * 1e6:
            break
    return chosen


def stock(corpus: list[str], vocab_size: int, split: Any, normalizer: Any = None, **options: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=ALPHABET, show_progress=False, **options)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def own_share(base: Tokenizer, corpus: list[str], vocab: int) -> dict[str, float]:
    """Stage 2 once, with its calls into `tokenizers` timed: seconds inside, and what is ours over them."""
    inside = {"split": 0.0, "encode": 0.0, "train": 0.0, "parts": 0.0}
    split = pre_tokenizers.Split(Regex(STAGE2_REGEX), "isolated").pre_tokenize_str
    lines = [line for text in corpus for line in text.splitlines(keepends=True)]
    inside["split"] = seconds(lambda: [split(line) for line in lines])
    pieces = stages.count_pieces(lambda: iter(corpus), STAGE2_REGEX)
    encoder = Tokenizer(base.model)
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    unique = list(pieces)
    batches = [unique[i : i + 20_000] for i in range(0, len(unique), 20_000)]
    inside["encode"] = seconds(lambda: [encoder.encode_batch_fast(b, add_special_tokens=False) for b in batches])
    strings = stages._relabel(base, pieces)
    joined = list(stages._repeated(strings))
    size = base.get_vocab_size()
    wanted = vocab - size

    def train() -> None:
        trainer = trainers.BpeTrainer(
            vocab_size=vocab + max(16, wanted // 50), initial_alphabet=stages._characters(size), show_progress=False
        )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
        tokenizer.train_from_iterator(joined, trainer)

    inside["train"] = seconds(train)
    inside["parts"] = 2 * seconds(base.to_str)
    total = seconds(lambda: extend_superword(base, corpus, vocab))
    return {"total_s": total, **{f"{k}_s": v for k, v in inside.items()}, "own_over_inside": total / sum(inside.values()) - 1.0}


def rows(corpus: list[str], vocab: int, repeats: int) -> list[dict[str, Any]]:
    first = int(0.9 * vocab)
    loose = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(STAGE2_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tight = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lines = [line for text in corpus for line in text.splitlines(keepends=True)]
    base = train_bpe(corpus, first)
    nfkc = normalizers.Sequence([normalizers.NFKC()])
    special = list(SPECIAL_TOKENS)
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "superword stage 1": (lambda: train_bpe(corpus, first), lambda: stock(corpus, first, tight)),
        "superword stage 2": (lambda: extend_superword(base, corpus, vocab), lambda: stock(lines, vocab, loose)),
        "character": (
            lambda: train_char_tokenizer(corpus, vocab, max_chars=3),
            lambda: stock(corpus, vocab, tight, nfkc, max_token_length=4, special_tokens=special, min_frequency=10),
        ),
        "domain": (
            lambda: train_domain_tokenizer(corpus, vocab, custom=custom_tokens()),
            lambda: stock(corpus, vocab, tight, nfkc, special_tokens=special, min_frequency=10),
        ),
    }
    found = []
    for name, (ours, theirs) in pairs.items():
        times = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]
        row = {
            "stage": name,
            "vocab": vocab,
            "ours_s": round(statistics.median(a for a, _ in times), 3),
            "stock_s": round(statistics.median(b for _, b in times), 3),
            "overhead": round(statistics.median(a / b for a, b in times) - 1.0, 4),
        }
        found.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    inside = [own_share(base, corpus, vocab) for _ in range(repeats + 1)][1:]
    share = {key: round(statistics.median(run[key] for run in inside), 4) for key in inside[0]}
    found.append({"stage": "superword stage 2, inside", "vocab": vocab, **share})
    print(found[-1])
    assert bpe_parts(base)[1] == bpe_parts(stock(corpus, first, tight))[1]  # stage 1 is the stock result
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="0.5 MB, one repeat; writes nothing")
    parser.add_argument("--megabytes", type=float, default=8.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32768])
    args = parser.parse_args()
    corpus = texts(0.5 if args.quick else args.megabytes)
    size = sum(len(text.encode()) for text in corpus)
    print(f"{size / 1e6:.1f} MB in {len(corpus)} documents, one thread, tokenizers {tokenizers.__version__}")
    found = [
        row
        for vocab in ([2048] if args.quick else args.vocab)
        for row in rows(corpus, vocab, 1 if args.quick else args.repeats)
    ]
    if not args.quick:
        facts = environment("cpu") | {"threads": 1, "tokenizers": tokenizers.__version__}
        content = {"text_bytes": size, "documents": len(corpus), "repeats": args.repeats, "environment": facts, "rows": found}
        print(f"written: {write('tokenizer_training', content, 'cpu')}")


if __name__ == "__main__":
    main()
