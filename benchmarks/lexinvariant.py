"""Cost of random embeddings at real vocabularies: a table per sequence and a shared permuted pool, against learnt embeddings.

One training step (forward, backward) and one prefill of a GPT-2 body; the three arms differ in nothing but their embeddings.
Peak memory is what a step allocates on top of the weights; learnt embeddings have their gradient in it, and their weights and
optimizer state besides. Times are medians of interleaved runs, ratios are to learnt embeddings.

    python benchmarks/lexinvariant.py [--quick] [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from results_file import environment, write
from tokenry.lab.evidence.measure import peak_bytes, seconds
from tokenry.text.lexinvariant import LexinvariantConfig, LexinvariantForCausalLM

ARMS: dict[str, dict[str, Any]] = {
    "learnt": {"random_rate": 0.0},
    "per_sequence": {"table": "sequence"},
    "pool": {"table": "pool"},
}


def models(vocabulary: int, args: argparse.Namespace) -> dict[str, LexinvariantForCausalLM]:
    made = {}
    for name, options in ARMS.items():
        torch.manual_seed(0)
        config = LexinvariantConfig(
            vocab_size=vocabulary, hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=8,
            max_position_embeddings=args.length, **options,
        )  # fmt: skip
        made[name] = LexinvariantForCausalLM(config).to(args.device)
    return made


def training_step(model: LexinvariantForCausalLM, ids: torch.Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    model(ids, labels=ids).loss.backward()


@torch.inference_mode()
def prefill(model: LexinvariantForCausalLM, ids: torch.Tensor) -> None:
    model.eval()
    model(ids, logits_to_keep=1)


def measure(vocabulary: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    ids = torch.randint(0, vocabulary, (args.batch, args.length), generator=torch.Generator().manual_seed(0)).to(args.device)
    made = models(vocabulary, args)
    rows = []
    for task, call in (("training step", training_step), ("prefill", prefill)):
        calls: dict[str, Callable[[], None]] = {name: partial(call, model, ids) for name, model in made.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(args.repeats + 1):
            for name, run in calls.items():
                spent = seconds(run, args.device)
                if repeat:
                    times[name].append(spent)
        row: dict[str, Any] = {"task": task, "vocabulary": vocabulary}
        for name, spent in times.items():
            row[f"{name}_ms"] = round(1e3 * statistics.median(spent), 1)
            row[f"{name}_over_learnt"] = round(statistics.median(a / b for a, b in zip(spent, times["learnt"], strict=True)), 2)
            row[f"{name}_peak_mb"] = round(peak_bytes(calls[name], args.device) / 2**20, 1)
        for model in made.values():
            model.zero_grad(set_to_none=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a vocabulary of 4,096 only; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [row for vocabulary in ((4096,) if args.quick else (49_152, 131_072)) for row in measure(vocabulary, args)]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not args.quick:
        shapes = {"batch": args.batch, "length": args.length, "width": args.width, "layers": args.layers, "dtype": "float32"}
        setting = f"batch {args.batch}, {args.length} tokens, width {args.width}, {args.layers} blocks, float32, {args.device}"
        content = {
            "setting": setting,
            "shapes": shapes,
            "repeats": args.repeats,
            "environment": environment(args.device),
            "rows": rows,
        }
        print(f"written: {write('lexinvariant', content, args.device)}")


if __name__ == "__main__":
    main()
