"""Every full-size figure of the pruning wing on one GPU: the shapes of the papers' models, random weights, bfloat16.

    python benchmarks/full_size.py [--only vlm,cache,vit,selection] [--toy --device cpu --out FOLDER]

Ratios are against the plain model in the same process, batch and length stated. Quality needs real weights and is not measured.
``vlm``: LLaVA-1.5-7B and Qwen2.5-VL-7B, one image, every pruner of visual tokens at a quarter and a tenth; ``cache``:
Llama-3-8B at 4k and 16k tokens; ``vit``: EET on ViT-S and ViT-B; ``selection``: greedy selection. ``--toy`` runs the same code
on tiny models, to see that it works.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

import eet_latency
import kv_cache
import selection
from results_file import RESULTS, environment, write
from tokenry.hosts.release import cache_of
from tokenry.lab.compare.methods import methods_of
from tokenry.lab.evidence.measure import cache_bytes, peak_bytes, time_ratio
from tokenry.testing import zoo

Case = tuple[Any, dict[str, Tensor]]
_WORDS = 64
"""Words of text around the image."""


def llava(device: str, batch: int) -> Case:
    """LLaVA-1.5-7B: CLIP-L at 336 px, 576 visual tokens."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    text = LlamaConfig(vocab_size=32064)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576)
    inputs = {
        "input_ids": _ids(576, 32000, batch),
        "pixel_values": torch.randn(batch, 3, 336, 336, generator=torch.Generator().manual_seed(0)),
    }
    return _ready(_built(LlavaForConditionalGeneration, config, device), inputs, device)


def qwen(device: str, batch: int) -> Case:
    """Qwen2.5-VL-7B: an image of 1008 x 1008 pixels, 1296 visual tokens."""
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "window_size": 112, "spatial_merge_size": 2, "fullatt_block_indexes": [7, 15, 23, 31],
        },
        text_config={
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        image_token_id=151655, video_token_id=151656, vision_start_token_id=151652, vision_end_token_id=151653,
    )  # fmt: skip
    side, patch = 72, 3 * 2 * 14 * 14
    ids = _ids(side * side // 4, 151655, batch, before=[151652], after=[151653])
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == 151655).int(),
        "pixel_values": torch.randn(batch * side * side, patch, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, side, side]] * batch),
    }
    return _ready(_built(Qwen2_5_VLForConditionalGeneration, config, device), inputs, device)


def toy_llava(device: str, batch: int) -> Case:
    return _ready(zoo.tiny_llava(layers=8), zoo.llava_inputs((1,) * batch), device)


def toy_qwen(device: str, batch: int) -> Case:
    return _ready(zoo.tiny_qwen(layers=8), zoo.qwen_inputs((((8, 12),),) * batch), device)


def _ids(visual: int, token: int, batch: int, before: list[int] | None = None, after: list[int] | None = None) -> Tensor:
    words = torch.randint(10, 20000, (batch, _WORDS), generator=torch.Generator().manual_seed(1))
    image = torch.tensor([*(before or []), *[token] * visual, *(after or [])]).expand(batch, -1)
    return torch.cat((words[:, :4], image, words[:, 4:]), dim=1)


def _built(cls: Any, config: Any, device: str) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return cls._from_config(config, dtype=torch.bfloat16)


def _ready(model: Any, inputs: dict[str, Tensor], device: str) -> Case:
    model = model.eval().to(device)
    inputs = {"attention_mask": torch.ones_like(inputs["input_ids"]), **inputs}
    return model, {k: v.to(device, model.dtype if v.is_floating_point() else None) for k, v in inputs.items()}


def vlm(device: str, toy: bool, repeats: int) -> list[dict[str, Any]]:
    """Prefill of vision-language models under every pruner: time, memory and cache over the unpruned model."""
    cases = {"LLaVA-1.5-7B": toy_llava if toy else llava, "Qwen2.5-VL-7B": toy_qwen if toy else qwen}
    rows = []
    for name, case in cases.items():
        for batch in (2,) if toy else (1, 8):
            model, inputs = case(device, batch)
            for keep in (0.25,) if toy else (0.25, 0.1):
                for method, made in methods_of("vlm").items():
                    if method != "none":
                        row = {"model": name, "batch": batch, "tokens": inputs["input_ids"].shape[1], "keep": keep}
                        rows.append({**row, "method": method, **_prefill(model, inputs, made(keep, 0), device, repeats)})
                        print(rows[-1], flush=True)
            del model, inputs
            _free(device)
    return rows


@torch.no_grad()
def _prefill(model: Any, inputs: dict[str, Tensor], pruner: Any, device: str, repeats: int) -> dict[str, float]:
    """Ratios of one method, attached for every call; the plain model takes turns with it."""

    def call(attached: Any) -> Callable[[], Any]:
        def prefill() -> Any:
            with attached():
                return cache_of(model(**inputs, use_cache=True, logits_to_keep=1))

        return prefill

    pruned, plain = call(lambda: pruner.attach(model)), call(nullcontext)
    return {
        "time": time_ratio(pruned, plain, repeats=repeats, device=device),
        "peak_memory": peak_bytes(pruned, device) / peak_bytes(plain, device),
        "cache": cache_bytes(pruned()) / cache_bytes(plain()),
    }


def cache(device: str, toy: bool, repeats: int) -> list[dict[str, Any]]:
    """KV-cache methods on Llama-3-8B."""
    sizes = ("tiny", (64,), "float32", 2) if toy else ("8b", (4096, 16384), "bfloat16", 24)
    shape, contexts, dtype, steps = sizes
    rows = []
    for context in contexts:
        rows += kv_cache.compare(shape, context, device, dtype, 1, 0.2, steps, min(repeats, 2))
        _free(device)
    return rows


def vit(device: str, toy: bool, repeats: int) -> list[dict[str, Any]]:
    """EET and its baselines on ViT-S and ViT-B."""
    dtype, batches = ("float32", (1,)) if toy else ("bfloat16", (1, 32, 256))
    given = argparse.Namespace(device=device, dtype=dtype, repeats=repeats)
    rows = []
    for size in eet_latency.WIDTHS if not toy else ("ViT-S",):
        model = eet_latency.build(size, device, dtype)
        rows += [{"model": size, **eet_latency.measure(model, batch, given)} for batch in batches]
    return rows


def greedy(device: str, toy: bool, repeats: int) -> list[dict[str, Any]]:
    """Greedy selection over the straightforward implementation."""
    cases = {"B=2 N=48 K=8 D=16": (2, 48, 8, 16)} if toy else selection.CASES
    return [selection.compare(name, case, repeats, device) for name, case in cases.items()]


def _free(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


PARTS: dict[str, tuple[str, Callable[[str, bool, int], list[dict[str, Any]]]]] = {
    "selection": ("selection", greedy),
    "vit": ("eet_latency", vit),
    "cache": ("kv_cache", cache),
    "vlm": ("full_size", vlm),
}
"""Name -> the file it is written to, and what measures it; the shortest first."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny models; writes only where --out is given")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="folder of the result files")
    args = parser.parse_args(arguments)
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only must name parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU here, so nothing is measured; --toy --device cpu runs the same code on tiny models")
        return
    for part in wanted:
        name, measure = PARTS[part]
        started = time.perf_counter()
        rows = measure(args.device, args.toy, args.repeats)
        spent = round(time.perf_counter() - started, 3)
        print(f"{part}: {len(rows)} rows in {spent} s", flush=True)
        if args.out is not None or not args.toy:
            content = {"environment": environment(args.device), "seconds": spent, "rows": rows}
            print(write(name, content, args.device, args.out or RESULTS))


if __name__ == "__main__":
    main()
