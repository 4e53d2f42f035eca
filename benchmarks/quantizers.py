"""Quantizers against plain torch and vector-quantize-pytorch, in one process, run by run in turn.

8 x 1024 vectors of width 256, books of 1024 codes. "train" is forward and backward of a training step (with the update of
an EMA book), "infer" the forward pass in evaluation without gradients. The plain peer of the nearest code is one matrix
product and an argmin over the whole score matrix. Peak memory is that of one child process a line, over its start.

    python benchmarks/quantizers.py [--quick] [--device cuda] [--threads 2] [--repeats 9]

Milliseconds are the shortest wall time of all repeats; "faster (CPU time)" compares the shortest times of the process on all
its cores, which other work on the machine disturbs less. The machine's load before and after stands in the file.

The peer is installed by: pip install 'tokenry[peers]'
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from results_file import environment, machine_load, write
from tokenry import codecs
from tokenry.core.codebooks.codebooks import nearest_codes
from tokenry.lab.evidence.measure import seconds

SHAPE, WIDTH, CODES = (8, 1024), 256, 1024
LEVELS = [8, 5, 5, 5]


def pairs() -> dict[str, tuple[nn.Module, nn.Module, int]]:
    """Name -> (ours, the peer's, width of the input), same estimator and same settings."""
    import vector_quantize_pytorch as peer

    plain = {"codebook_size": CODES, "rotation_trick": False}
    return {
        "VQ, EMA": (codecs.VectorQuantizer(WIDTH, CODES), peer.VectorQuantize(dim=WIDTH, **plain), WIDTH),
        "VQ, EMA, rotation": (
            codecs.VectorQuantizer(WIDTH, CODES, estimator="rotation"),
            peer.VectorQuantize(dim=WIDTH, codebook_size=CODES, rotation_trick=True),
            WIDTH,
        ),
        "VQ, cosine": (
            codecs.VectorQuantizer(WIDTH, CODES, distance="cosine"),
            peer.VectorQuantize(dim=WIDTH, use_cosine_sim=True, **plain),
            WIDTH,
        ),
        "RVQ, 8 levels": (
            codecs.ResidualVQ(WIDTH, 8, CODES),
            peer.ResidualVQ(dim=WIDTH, num_quantizers=8, **plain),
            WIDTH,
        ),
        "SimVQ": (codecs.SimVQ(WIDTH, CODES), peer.SimVQ(dim=WIDTH, **plain), WIDTH),
        "FSQ 8,5,5,5": (codecs.FSQ(LEVELS), peer.FSQ(LEVELS), 4),
        "FSQ 8,5,5,5 of width 256": (codecs.FSQ(LEVELS, dim=WIDTH), peer.FSQ(LEVELS, dim=WIDTH), WIDTH),
        "LFQ, 10 bits": (codecs.LFQ(10), peer.LFQ(codebook_size=1024), 10),
        "BSQ, 10 bits": (codecs.BSQ(10, groups=1), peer.LFQ(codebook_size=1024, spherical=True), 10),
    }


def training_step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        out = module(x.detach().requires_grad_())
        codes, loss = out[0], (out[2] if len(out) > 2 else None)
        total = codes.sum() if loss is None or isinstance(loss, tuple) else codes.sum() + loss.sum()
        total.backward()

    return run


def inference(module: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


class Best(NamedTuple):
    """Shortest times of a call in ms: on the clock, and of the process on all its cores."""

    wall: float
    cpu: float


def best_of(calls: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, Best]:
    """Shortest times of each call; the calls take turns, so that other work on the machine hits all alike."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for repeat in range(repeats + 2):
        for name, call in calls.items():
            before = time.process_time()
            wall = seconds(call, device)
            if repeat >= 2:
                times[name].append((wall, time.process_time() - before))
    return {name: Best(*(1e3 * min(spent) for spent in zip(*pairs, strict=True))) for name, pairs in times.items()}


def compare(name: str, ours: nn.Module, other: nn.Module, width: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    x = torch.randn(*SHAPE, width, device=args.device)
    rows = []
    for mode, call in (("train", training_step), ("infer", inference)):
        for module in (ours, other):
            module.to(args.device).train(mode == "train")
        best = best_of({"ours": call(ours, x), "peer": call(other, x)}, args.repeats, args.device)
        rows.append(_row(f"{name}, {mode}", best, "vector-quantize-pytorch"))
    return rows


def nearest(args: argparse.Namespace) -> dict[str, Any]:
    x, book = torch.randn(SHAPE[0] * SHAPE[1], WIDTH, device=args.device), torch.randn(CODES, WIDTH, device=args.device)
    best = best_of(
        {"ours": lambda: nearest_codes(x, book), "peer": lambda: (book.square().sum(1) - 2 * x @ book.t()).argmin(1)},
        args.repeats, args.device,
    )  # fmt: skip
    return _row("nearest code", best, "torch, one product and argmin")


def _row(what: str, best: dict[str, Best], other: str) -> dict[str, Any]:
    ours, peer = best["ours"], best["peer"]
    return {
        "what": what,
        "ours_ms": round(ours.wall, 2),
        "peer_ms": round(peer.wall, 2),
        "faster": round(peer.wall / ours.wall, 2),
        "faster (CPU time)": round(peer.cpu / ours.cpu, 2),
        "peer": other,
    }


def memory(codes: int, plain: bool) -> float:
    """Peak MB of finding the nearest of `codes` codes for 8192 vectors of width 64, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(codes), *(["--plain"] if plain else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def child(codes: int, plain: bool) -> None:
    torch.set_num_threads(1)
    x, book = torch.randn(8192, 64), torch.randn(codes, 64)
    nearest_codes(x[:64], book[:64])
    before = _peak()
    (book.square().sum(1) - 2 * x @ book.t()).argmin(1) if plain else nearest_codes(x, book)
    print((_peak() - before) / 1024)


def _peak() -> int:
    """Peak resident memory of this process in KiB (getrusage would report the parent's before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two pairs, few repeats; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.plain)
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load = machine_load()
    if find_spec("vector_quantize_pytorch") is None:
        print("vector-quantize-pytorch is not installed; run: pip install 'tokenry[peers]'")
        return
    every = pairs()
    if args.quick:
        every, args.repeats = {name: every[name] for name in ("VQ, EMA", "FSQ 8,5,5,5")}, 2
    rows = [nearest(args)]
    for name, (ours, other, width) in every.items():
        rows += compare(name, ours, other, width, args)
        print(*rows[-2:], sep="\n", flush=True)
    if args.device == "cpu" and not args.quick:
        for codes in (1024, 8192, 65536):
            best = {"ours_mb": round(memory(codes, False), 1), "peer_mb": round(memory(codes, True), 1)}
            rows.append({"what": f"peak memory, K = {codes}", **best, "peer": "torch, one product and argmin"})
    if args.quick:
        return
    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    setting = (
        f"{SHAPE[0]} x {SHAPE[1]} vectors of width {WIDTH}, {CODES} codes, best of {args.repeats}, in turn; "
        f"load of the machine before {load}, after {machine_load()}"
    )
    facts = environment(args.device) | {"peer": f"vector-quantize-pytorch {version('vector-quantize-pytorch')}"}
    print(write("quantizers", {"setting": setting, "environment": facts, "rows": rows}, args.device))


if __name__ == "__main__":
    main()
