"""tokscope and toklens on the text and the tokenizer of benchmarks/audit.py, in an environment of their own.

    python benchmarks/peers/audit_peers.py DIR [--repeats 3]       # DIR: what benchmarks/audit.py --export wrote

Both work on one string at a time: every language is one text, English the reference text of the premium. tokscope gets the
tokenizer through its Hugging Face adapter (transformers), toklens takes the `tokenizers.Tokenizer` itself. Loading is not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer


def tokscope_run(folder: Path) -> Callable[[str, str], object]:
    import tokscope.runner as runner
    from tokscope.adapters import HuggingFaceAdapter
    from transformers import PreTrainedTokenizerFast

    adapter = HuggingFaceAdapter.__new__(HuggingFaceAdapter)  # its constructor takes a hub id only
    adapter._tok = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    adapter.name, adapter.vocab_size, adapter._partial = "gpt2", len(adapter._tok), {}
    return lambda text, reference: runner.analyze(text, adapter, reference_text=reference)


def toklens_run(folder: Path) -> Callable[[str, str], object]:
    from toklens.analyzer import Analyzer

    analyzer = Analyzer(Tokenizer.from_file(str(folder / "tokenizer.json")), "gpt2")
    return lambda text, reference: analyzer.evaluate_text(text, ref_text=reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(args.folder.glob("*.txt"))}
    size = sum(len(text.encode()) for text in texts.values()) / 1e6
    rows = []
    for name, make in (("tokscope", tokscope_run), ("toklens", toklens_run)):
        call = make(args.folder)
        speeds = []
        for _ in range(args.repeats):
            began, busy = time.perf_counter(), time.process_time()
            for text in texts.values():
                call(text, texts["en"])
            speeds.append((size / (time.perf_counter() - began), size / (time.process_time() - busy)))
        wall, processor = (round(statistics.median(column), 3) for column in zip(*speeds, strict=True))
        row = {"peer": name, "version": version(name), "megabytes": round(size, 2), "mb_per_s": wall, "mb_per_cpu_s": processor}
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    facts = {"python": platform.python_version(), "cores": os.cpu_count(), "repeats": args.repeats}
    out = Path(__file__).parent.parent / "results" / "audit_peers_cpu.json"
    out.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
