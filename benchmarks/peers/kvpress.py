"""kvpress on the shapes of benchmarks/kv_cache.py; runs in its own environment (see README.md beside this file).

python benchmarks/peers/kvpress.py [--quick] [--device cuda --dtype bfloat16 --shape 8b] [--contexts 4096,16384]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

# This file is called kvpress.py: keep its own folder from shadowing the package.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from kvpress import KnormPress, ObservedAttentionPress, SnapKVPress, StreamingLLMPress  # noqa: E402
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {
    "tiny": dict(zip(_FIELDS, (256, 688, 4, 8, 2), strict=True)),
    "135m": dict(zip(_FIELDS, (576, 1536, 30, 9, 3), strict=True)),
    "1b": dict(zip(_FIELDS, (2048, 8192, 16, 32, 8), strict=True)),
    "8b": dict(zip(_FIELDS, (4096, 14336, 32, 32, 8), strict=True)),
}


def build(shape: str, context: int, device: str, dtype: str, attention: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        **SHAPES[shape], vocab_size=32000, max_position_embeddings=context + 1024, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention).eval()


def clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def run(model: LlamaForCausalLM, press: Any, ids: torch.Tensor, steps: int, repeats: int) -> dict[str, Any]:
    device, context = ids.device.type, ids.shape[1]
    prefill = decode = float("inf")
    bytes_used = 0
    for _ in range(repeats):
        cache = DynamicCache()
        start = clock(device)
        with nullcontext() if press is None else press(model):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        prefill = min(prefill, clock(device) - start)
        bytes_used = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
        token = out.logits[:, -1:].argmax(-1)
        start = clock(device)
        for step in range(steps):
            position = torch.full_like(token, context + step)
            token = model(token, past_key_values=cache, position_ids=position).logits[:, -1:].argmax(-1)
        decode = min(decode, clock(device) - start)
    return {"prefill_s": prefill, "decode_tokens_per_s": ids.shape[0] * steps / decode, "cache_bytes": bytes_used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", default="135m", choices=SHAPES)
    parser.add_argument("--contexts", default="4096,16384")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    shape, contexts, steps = args.shape, [int(c) for c in args.contexts.split(",")], args.steps
    if args.quick:
        shape, contexts, steps = "tiny", [512], 8
    ratio = 1.0 - args.budget
    presses = {
        "plain model": (None, "sdpa"),
        "StreamingLLMPress": (StreamingLLMPress(compression_ratio=ratio), "sdpa"),
        "SnapKVPress": (SnapKVPress(compression_ratio=ratio), "sdpa"),
        "KnormPress": (KnormPress(compression_ratio=ratio), "sdpa"),
        "ObservedAttentionPress (H2O)": (ObservedAttentionPress(compression_ratio=ratio), "eager"),
    }
    rows = []
    for context in contexts:
        ids = torch.randint(0, 32000, (args.batch, context), generator=torch.Generator().manual_seed(0)).to(args.device)
        plain: dict[str, Any] = {}
        print(f"{'press':<30} {'cache MiB':>10} {'prefill s':>10} {'over':>7} {'tokens/s':>9} {'speed':>6}")
        for name, (press, attention) in presses.items():
            if attention == "eager" and context > 4096:
                continue  # a full map per layer
            model = build(shape, context, args.device, args.dtype, attention)
            row = {"method": f"kvpress {name}", "shape": shape, "dtype": args.dtype, "batch": args.batch, "context": context,
                   **run(model, press, ids, steps, args.repeats)}  # fmt: skip
            plain = plain or row
            row["prefill_overhead"] = row["prefill_s"] / plain["prefill_s"] - 1
            row["decode_ratio"] = row["decode_tokens_per_s"] / plain["decode_tokens_per_s"]
            rows.append(row)
            print(
                f"{name:<30} {row['cache_bytes'] / 2**20:>10.1f} {row['prefill_s']:>10.2f} {row['prefill_overhead']:>+7.1%} "
                f"{row['decode_tokens_per_s']:>9.1f} {row['decode_ratio']:>6.2f}",
                flush=True,
            )
    if not args.quick:
        path = Path(__file__).parents[1] / "results" / f"kvpress_{args.device.split(':')[0]}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"device": args.device, "threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
