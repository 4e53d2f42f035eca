"""Column sums of attention in chunks against one more attention pass: time and peak memory.

Two yardsticks in the same process: the chunked softmax(QK^T) of all queries over all keys (the "extra attention pass" an
implementation pays that looks at every map once), and torch's fused causal attention, which also multiplies by V.

    python benchmarks/attention_columns.py [--quick] [--device cuda] [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from results_file import environment, write
from tokenry.core.attention import column_sums


class Peak(TorchDispatchMode):
    """Largest single tensor that an operation inside returns (bytes)."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel() * x.element_size())
        return out


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Best of `repeats` after one warm-up."""
    best = float("inf")
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def plain_pass(query: Tensor, key: Tensor, chunk: int) -> None:
    """softmax(QK^T) chunk by chunk over all keys, nothing kept."""
    wide = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(-1, -2)
    for start in range(0, query.shape[2], chunk):
        torch.softmax((query[:, :, start : start + chunk] @ wide).float() * query.shape[-1] ** -0.5, dim=-1)


def measure(context: int, heads: int, kv_heads: int, size: int, args: argparse.Namespace) -> dict[str, float | int | str]:
    dtype = getattr(torch, args.dtype)
    query = torch.randn(args.batch, heads, context, size, device=args.device, dtype=dtype)
    key = torch.randn(args.batch, kv_heads, context, size, device=args.device, dtype=dtype)
    fused = torch.nn.functional.scaled_dot_product_attention
    times = {
        "columns_s": seconds(lambda: column_sums(query, key), args.device, args.repeats),
        "plain_pass_s": seconds(lambda: plain_pass(query, key, 128), args.device, args.repeats),
        "fused_causal_s": seconds(lambda: fused(query, key, key, is_causal=True, enable_gqa=True), args.device, args.repeats),
    }
    with Peak() as peak:
        column_sums(query, key)
    return {
        "context": context, "batch": args.batch, "heads": heads, "kv_heads": kv_heads, "head_size": size, "dtype": args.dtype,
        **times,
        "ratio_to_plain_pass": times["columns_s"] / times["plain_pass_s"],
        "ratio_to_fused_causal": times["columns_s"] / times["fused_causal_s"],
        "largest_tensor_bytes": peak.largest,
        "full_map_bytes": 4 * args.batch * heads * context * context,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1k context only, seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [measure(n, 8, 2, 64, args) for n in ((1024,) if args.quick else (2048, 8192))]
    print(
        f"{'context':>8} {'columns':>9} {'plain':>9} {'fused':>9} {'/plain':>7} {'/fused':>7} {'tensor MiB':>10} {'map MiB':>8}"
    )
    for row in rows:
        print(
            f"{row['context']:>8} {row['columns_s']:>8.3f}s {row['plain_pass_s']:>8.3f}s {row['fused_causal_s']:>8.3f}s "
            f"{row['ratio_to_plain_pass']:>7.2f} {row['ratio_to_fused_causal']:>7.2f} "
            f"{row['largest_tensor_bytes'] / 2**20:>10.1f} {row['full_map_bytes'] / 2**20:>8.0f}"
        )
    if not args.quick:
        print(write("attention_columns", {"environment": environment(args.device), "rows": rows}, args.device))


if __name__ == "__main__":
    main()
