"""KV-cache methods on a Llama-shaped model with random weights: cache bytes, prefill overhead, decode throughput.

    python benchmarks/kv_cache.py [--quick] [--device cuda --dtype bfloat16 --shape 8b] [--contexts 4096,16384] [--budget 0.2]

All methods run in one process on the same weights and prompt; ratios are against the plain model. Prefill is the forward pass
over the prompt with compression at its end; decode is greedy, token by token, batch and context as stated in the table.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from results_file import earlier, environment, write
from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning import D2O, H2O, FullCache, SnapKV, StreamingLLM
from tokenry.pruning.kv_method import CacheMethod

_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "tiny": dict(zip(_FIELDS, (256, 688, 4, 8, 2), strict=True)),
    "135m": dict(zip(_FIELDS, (576, 1536, 30, 9, 3), strict=True)),
    "1b": dict(zip(_FIELDS, (2048, 8192, 16, 32, 8), strict=True)),
    "8b, 2 blocks": dict(zip(_FIELDS, (4096, 14336, 2, 32, 8), strict=True)),
    "8b": dict(zip(_FIELDS, (4096, 14336, 32, 32, 8), strict=True)),
}


def build(shape: str, context: int, device: str, dtype: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=32000, max_position_embeddings=context + 1024, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()


def done(rows: list[dict[str, Any]]) -> set[tuple[str, int]]:
    """Shapes and contexts that this run has measured."""
    return {(row["shape"], row["context"]) for row in rows}


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def run(model: LlamaForCausalLM, method: CacheMethod | None, ids: torch.Tensor, steps: int, repeats: int) -> dict[str, Any]:
    """Best prefill and decode time of `repeats` runs."""
    device = ids.device.type
    prefill = decode = float("inf")
    held = bytes_used = 0
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with nullcontext() if method is None else method.attach(model):
            start = clock(device)
            out = model(ids, use_cache=True, logits_to_keep=1)
            prefill = min(prefill, clock(device) - start)
            cache = cache_of(out)
            bytes_used = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
            held = sum(layer.keys.shape[-2] for layer in cache.layers)
            token = out.logits[:, -1:].argmax(-1)
            start = clock(device)
            for _ in range(steps):
                token = model(token, **as_argument(cache), use_cache=True).logits[:, -1:].argmax(-1)
            decode = min(decode, clock(device) - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {
        "prefill_s": prefill, "decode_tokens_per_s": ids.shape[0] * steps / decode, "cache_bytes": bytes_used,
        "mean_slots": held / len(cache.layers), "peak_bytes": peak,
    }  # fmt: skip


def methods(budget: float) -> dict[str, CacheMethod | None]:
    return {
        "plain model": None,
        "FullCache": FullCache(),
        "StreamingLLM": StreamingLLM(budget),
        "SnapKV": SnapKV(budget),
        "H2O": H2O(budget),
        "D2O": D2O(budget, skip_layers=()),
        "D2O, cut every 16": D2O(budget, skip_layers=(), cut_every=16),
        "D2O, window scores": D2O(budget, skip_layers=(), score="window"),
    }


def compare(
    shape: str, context: int, device: str, dtype: str, batch: int, budget: float, steps: int, repeats: int
) -> list[dict[str, Any]]:
    """A row per method for one model and prompt length."""
    model = build(shape, context, device, dtype)
    ids = torch.randint(0, 32000, (batch, context), generator=torch.Generator().manual_seed(0)).to(device)
    run(model, None, ids[:, :256], 2, 1)
    rows: list[dict[str, Any]] = []
    print(f"\n{shape} {dtype} {device}, batch {batch}, prompt {context}, {steps} decoded, budget {budget}")
    print(f"{'method':<20} {'cache MiB':>10} {'of full':>8} {'prefill s':>10} {'over':>7} {'tokens/s':>9} {'speed':>6}")
    for name, method in methods(budget).items():
        # The plain model is taken again beside every method: a shared machine drifts by more than the difference.
        beside = run(model, None, ids, steps, repeats)
        row = {"method": name, "shape": shape, "dtype": dtype, "batch": batch, "context": context,
               "decoded": steps, "budget": budget, **run(model, method, ids, steps, repeats)}  # fmt: skip
        row["cache_ratio"] = row["cache_bytes"] / beside["cache_bytes"]
        row["prefill_overhead"] = row["prefill_s"] / beside["prefill_s"] - 1
        row["decode_ratio"] = row["decode_tokens_per_s"] / beside["decode_tokens_per_s"]
        rows.append(row)
        print(
            f"{name:<20} {row['cache_bytes'] / 2**20:>10.1f} {row['cache_ratio']:>8.2f} {row['prefill_s']:>10.2f} "
            f"{row['prefill_overhead']:>+7.1%} {row['decode_tokens_per_s']:>9.1f} {row['decode_ratio']:>6.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shape, 512 tokens, seconds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--contexts", default="4096,16384")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shape, contexts, steps = (args.shape, [int(c) for c in args.contexts.split(",")], args.steps)
    if args.quick:
        shape, contexts, steps = "tiny", [512], 8
    rows = []
    for context in contexts:
        rows += compare(shape, context, args.device, args.dtype, args.batch, args.budget, steps, args.repeats)
    if not args.quick:
        rows = [*(row for row in earlier("kv_cache", args.device) if (row["shape"], row["context"]) not in done(rows)), *rows]
        print(write("kv_cache", {"environment": environment(args.device), "rows": rows}, args.device))


if __name__ == "__main__":
    main()
