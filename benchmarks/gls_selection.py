"""Cost of choosing discriminative patches: global-local similarity against the CLS row and attention rollout.

ViT-B shapes with random inputs. "Selection" is the time from what the encoder leaves behind to the top-8 patches, batch 1:
final tokens for GLS; query of CLS and keys of the last block for the CLS row; the attention maps of all blocks for rollout
(which a fused kernel does not return, so a model that wants them pays for them on top; that is not counted here).

    python benchmarks/gls_selection.py [--quick] [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from results_file import environment, write
from tokenry.core.attention import cls_row
from tokenry.core.selection import top_k
from tokenry.lab.claims.pruning.glsim import rollout
from tokenry.lab.evidence.measure import seconds
from tokenry.pruning.glsim import global_local_similarity

LAYERS, HEADS, WIDTH, TOP = 12, 12, 768, 8


def selections(n: int, device: str) -> dict[str, Callable[[], Tensor]]:
    tokens = torch.randn(1, 1 + n, WIDTH, device=device)
    query = torch.randn(1, HEADS, 1, WIDTH // HEADS, device=device)
    key = torch.randn(1, HEADS, 1 + n, WIDTH // HEADS, device=device)
    maps = [torch.rand(1, HEADS, 1 + n, 1 + n, device=device).softmax(-1) for _ in range(LAYERS)]
    return {
        "gls": lambda: top_k(global_local_similarity(tokens), TOP),
        "cls_row": lambda: top_k(cls_row(query, key)[..., 1:].mean(1), TOP),
        "rollout": lambda: top_k(rollout(maps), TOP),
    }


@torch.inference_mode()
def measure(n: int, args: argparse.Namespace) -> dict[str, float | int]:
    calls = selections(n, args.device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(args.repeats + 2):
        for name, call in calls.items():
            spent = seconds(call, args.device)
            if repeat >= 2:
                times[name].append(spent)
    row: dict[str, float | int] = {"patches": n}
    for name, spent in times.items():
        row[f"{name}_us"] = round(1e6 * statistics.median(spent), 1)
        row[f"{name}_over_gls"] = round(statistics.median(a / b for a, b in zip(spent, times["gls"], strict=True)), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="196 patches only; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # 196 patches: 224 px. 1,024: 512 px (the maps of 12 blocks already take 0.6 GB there).
    rows = [measure(n, args) for n in ((196,) if args.quick else (196, 1024))]
    print(f"ViT-B shapes, batch 1, float32 on {args.device}; microseconds per selection of the top {TOP}")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not args.quick:
        content = {
            "shapes": {"blocks": LAYERS, "heads": HEADS, "width": WIDTH, "batch": 1, "top": TOP, "dtype": "float32"},
            "repeats": args.repeats,
            "environment": environment(args.device),
            "rows": rows,
        }
        print(f"written: {write('gls_selection', content, args.device)}")


if __name__ == "__main__":
    main()
