"""Throughput of the tokenizer audit: the share of time inside the tokenizer, and text per second, to compare with peers.

The corpus is the installation guide in 19 languages (aligned paragraphs), repeated to a few megabytes; the tokenizer is
GPT-2's byte-level BPE. "counts" measures tokens, premiums and intervals, which is all that the peers measure; "round trip"
also decodes every line and compares; "all" adds numbers of encodings, costly words and the look at every id.

    python benchmarks/audit.py [--quick] [--repeat-text 8] [--export DIR]

`--export` writes the same text and tokenizer for benchmarks/peers/audit_peers.py. Rates per second of wall time and of
processor time: the second is the one to compare on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from results_file import environment, write
from tokenry.lab.sources.text import parallel_corpus
from tokenry.lab.sources.tokenizers import load_real_tokenizer
from tokenry.text.audit import TokenizerAudit

SETTINGS: dict[str, dict[str, Any]] = {
    "counts": {"round_trip": False, "words": 0, "vocabulary": False},
    "round trip": {"words": 0, "vocabulary": False},
    "all": {},
}


def measure(name: str, corpus: dict[str, list[str]], tokenizer: Any, repeats: int) -> dict[str, Any]:
    job = TokenizerAudit({"gpt2": tokenizer}, **SETTINGS[name])
    size = sum(len(line.encode()) for lines in corpus.values() for line in lines) / 1e6
    rows = []
    for _ in range(repeats):
        began, busy = time.perf_counter(), time.process_time()
        report = job.run({"guide": corpus})
        spent, busy = time.perf_counter() - began, time.process_time() - busy
        facts = report.facts
        streaming = facts["tokenizer_counting_seconds"] / facts["counting_seconds"]
        rows.append((size / spent, size / busy, facts["tokenizer_seconds"] / spent, streaming))
    speed, busy_speed, share, streaming = (statistics.median(column) for column in zip(*rows, strict=True))
    return {
        "setting": name, "megabytes": round(size, 2), "mb_per_s": round(speed, 3),
        "mb_per_cpu_s": round(busy_speed, 3), "share_inside_tokenizer": round(share, 3),
        "share_while_streaming": round(streaming, 3), "repeats": repeats,
    }  # fmt: skip


def export(folder: Path, corpus: dict[str, list[str]], tokenizer: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for code, lines in corpus.items():
        (folder / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the text once, one repeat; writes nothing")
    parser.add_argument("--repeat-text", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--export", type=Path)
    args = parser.parse_args()
    times = 1 if args.quick else args.repeat_text
    corpus = {code: lines * times for code, lines in parallel_corpus("debian-installer").lines.items()}
    tokenizer = load_real_tokenizer("gpt2")
    if args.export:
        export(args.export, corpus, tokenizer)
    rows = [measure(name, corpus, tokenizer, 1 if args.quick else args.repeats) for name in SETTINGS]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not args.quick:
        facts = environment("cpu") | {"parallelism": os.environ.get("TOKENIZERS_PARALLELISM", "default")}
        print(f"written: {write('audit', {'environment': facts, 'rows': rows}, 'cpu')}")


if __name__ == "__main__":
    main()
