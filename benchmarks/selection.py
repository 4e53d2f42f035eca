"""Greedy selection against the straightforward implementation with an N x N matrix; time and memory in one process."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from results_file import environment, write
from tokenry.core.selection import greedy_select
from tokenry.lab.evidence.measure import peak_bytes, time_ratio

CASES = {"B=1 N=2880 K=288 D=4096": (1, 2880, 288, 4096), "B=8 N=576 K=64 D=4096": (8, 576, 64, 4096)}
QUICK = {"B=1 N=720 K=72 D=512": (1, 720, 72, 512)}


def straightforward(features: Tensor, importance: Tensor, k: int) -> Tensor:
    """Full similarity matrix, one row of the batch at a time, the chosen columns looked up again at every step."""
    rows = []
    for x, w in zip(features, importance, strict=True):
        x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        similarity = x @ x.T
        w = (w - w.min()) / (w.max() - w.min() + 1e-6)
        chosen = [int(w.argmax())]
        free = torch.ones(len(x), dtype=torch.bool, device=x.device)
        free[chosen[0]] = False
        while len(chosen) < k:
            score = 0.5 * w - 0.5 * similarity[:, chosen].max(dim=1).values
            chosen.append(int(score.masked_fill(~free, -torch.inf).argmax()))
            free[chosen[-1]] = False
        rows.append(torch.tensor(chosen, device=x.device))
    return torch.stack(rows)


def compare(name: str, case: tuple[int, int, int, int], repeats: int, device: str = "cpu") -> dict[str, object]:
    """Time and memory of one case, over the straightforward implementation."""
    batch, n, k, width = case
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(64, width, generator=generator)
    features = centres[torch.randint(64, (batch, n), generator=generator)]
    features = (features + 0.5 * torch.randn(batch, n, width, generator=generator)).to(device)
    importance = torch.rand(batch, n, generator=generator).to(device)

    def ours() -> Tensor:
        return greedy_select(features, k, rule="mmr", importance=importance)

    def theirs() -> Tensor:
        return straightforward(features, importance, k)

    same = bool((ours() == theirs()).all())
    time = time_ratio(theirs, ours, repeats=repeats, device=device)
    memory = peak_bytes(theirs, device) / peak_bytes(ours, device)
    return {"case": name, "times faster": time, "times less memory": memory, "same selection": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    for name, case in (QUICK if options.quick else CASES).items():
        rows.append(compare(name, case, options.repeats))
        print(rows[-1], flush=True)
    if not options.quick:
        body = {
            "setting": f"`rule='mmr'` against an N x N implementation, float32, {torch.get_num_threads()} threads.",
            "rows": rows,
            "environment": environment("cpu"),
        }
        write("selection", body, "cpu")


if __name__ == "__main__":
    main()
