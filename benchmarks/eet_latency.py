"""Latency of a ViT-S with patches pruned on EET's schedule, as a ratio to the dense model in the same process.

Random weights at the paper's size (224 px, patch 16, width 384, 6 heads, 12 blocks). All methods share the schedule {3: 0.5,
7: 0.5, 9: 0.25}; the paper reports 42.7 % less latency for EET on its hardware.

    python benchmarks/eet_latency.py [--quick] [--device cuda] [--dtype bfloat16] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics

import torch
from transformers import ViTConfig, ViTModel

from results_file import environment, write
from tokenry.lab.evidence.measure import seconds
from tokenry.pruning.eet import EET
from tokenry.pruning.vit_baselines import ClsRow, RandomPatches, ToMe
from tokenry.pruning.vit_schedule import PAPER_SCHEDULE, PatchPruner

METHODS: dict[str, PatchPruner | None] = {
    "dense": None,
    "eet": EET(),
    "cls_row": ClsRow(),
    "tome": ToMe(),
    "random": RandomPatches(),
}


WIDTHS = {"ViT-S": (384, 6), "ViT-B": (768, 12)}


def build(size: str, device: str, dtype: str) -> ViTModel:
    """A ViT of patch 16 at 224 px with random weights; a size is (width, heads)."""
    width, heads = WIDTHS[size]
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
    return ViTModel(config, add_pooling_layer=False).eval().to(device, getattr(torch, dtype))


def block_flops(tokens: int, width: int = 384) -> int:
    """Multiply-adds of one block: projections, MLP of ratio 4, and attention."""
    return 12 * tokens * width**2 + 2 * tokens**2 * width


def flop_ratio() -> float:
    """Pruned over dense block FLOPs on the schedule, 196 patches."""
    counts, left = [], 196
    stages = EET().stages(196)
    for block in range(12):
        counts.append(left)
        left = stages.get(block, left)
    return sum(block_flops(1 + n) for n in counts) / (12 * block_flops(197))


@torch.inference_mode()
def one(model: ViTModel, pruner: PatchPruner | None, pixels: torch.Tensor, device: str) -> float:
    if pruner is None:
        return seconds(lambda: model(pixels), device)
    with pruner.attach(model, record=False):
        return seconds(lambda: model(pixels), device)


def measure(model: ViTModel, batch: int, args: argparse.Namespace) -> dict[str, float | int]:
    """Median time per method; the methods take turns, so that a slow moment hits all of them."""
    pixels = torch.randn(batch, 3, 224, 224, device=args.device, dtype=getattr(torch, args.dtype))
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for repeat in range(args.repeats + 1):
        for name, pruner in METHODS.items():
            spent = one(model, pruner, pixels, args.device)
            if repeat:  # the first round warms up
                times[name].append(spent)
    row: dict[str, float | int] = {"batch": batch}
    for name, spent in times.items():
        row[f"{name}_ms"] = round(1000 * statistics.median(spent), 3)
        pairs = [a / b for a, b in zip(spent, times["dense"], strict=True)]
        row[f"{name}_ratio"] = round(statistics.median(pairs), 4)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and batches 1 and 8; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats = 3
    model = build("ViT-S", args.device, args.dtype)
    rows = [measure(model, batch, args) for batch in ((1, 8) if args.quick else (1, 32))]
    print(f"ViT-S, 196 patches, {args.dtype} on {args.device}; block FLOPs pruned / dense: {flop_ratio():.3f}")
    print("batch " + "".join(f"{name:>22}" for name in METHODS))
    for row in rows:
        print(f"{row['batch']:5} " + "".join(f"{row[f'{n}_ms']:>11.2f} ms  x{row[f'{n}_ratio']:.3f}" for n in METHODS))
    if not args.quick:
        content = {
            "model": "ViT-S/16 at 224 px, random weights",
            "schedule": {str(block): ratio for block, ratio in PAPER_SCHEDULE.items()},
            "dtype": args.dtype,
            "repeats": args.repeats,
            "flop_ratio": round(flop_ratio(), 4),
            "environment": environment(args.device),
            "rows": rows,
        }
        print(f"written: {write('eet_latency', content, args.device)}")


if __name__ == "__main__":
    main()
