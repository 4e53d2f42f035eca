"""genlm-bytes (a beam over all tokenizations) on the model, prompt and bytes that ``benchmarks/byte_lm.py --export`` wrote.

    python benchmarks/peers/genlm_bytes.py FOLDER [--threads 2]

Per beam width: bytes per second, and how far its next-byte distribution is from the exact one over canonical tokenizations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from genlm.backend.llm.hf import AsyncTransformer
from genlm.bytes import BeamParams, ByteBeamState


async def run(llm: AsyncTransformer, width: int, exact: dict, size: int) -> dict[str, float]:
    """Follow the exported bytes with a beam of `width`; compare before every byte."""
    prompt, made = bytes(exact["prompt"]), bytes(exact["made"])[:size]
    state = await ByteBeamState.initial(llm, BeamParams(K=width))
    state = await state.prefill(prompt)
    await state.logp_next()
    gaps, distances, start = [], [], time.perf_counter()
    for byte, row in zip(made, exact["rows"], strict=False):
        found = await state.logp_next()
        probs = np.exp(np.array([found[b] for b in range(256)], dtype=np.float64))
        gaps.append(float(np.abs(probs - row).max()))
        distances.append(float(np.abs(probs - row).sum() / 2))
        state = await (state.prune() << byte)
    spent = time.perf_counter() - start
    await state.cleanup()
    return {
        "beam": width,
        "bytes_per_s": len(gaps) / spent,
        "ours_bytes_per_s": float(exact["bytes_per_s"]),
        "largest_gap": max(gaps),
        "mean_total_variation": float(np.mean(distances)),
    }


def main() -> None:
    """Measure each beam width and write benchmarks/results/byte_lm_peers_cpu.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=10_000)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5, 20])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    exact = dict(np.load(args.folder / "exact.npz"))
    llm = AsyncTransformer.from_name(str(args.folder / "model"), hf_opts={"device_map": "cpu", "torch_dtype": torch.float32})
    setting = (
        f"genlm-bytes, SmolLM2-135M, prompt of {len(exact['prompt'])} bytes, {min(args.bytes, len(exact['made']))} bytes, "
        f"batch 1, {args.threads} threads, load average {os.getloadavg()[0]:.1f}; "
        "it sums over all tokenizations, ours over canonical ones."
    )
    path = Path(__file__).parents[1] / "results" / "byte_lm_peers_cpu.json"
    rows: list[dict[str, float]] = []
    for width in args.beams:
        rows.append(asyncio.run(run(llm, width, exact, args.bytes)))
        path.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")  # a wide beam may take long
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
