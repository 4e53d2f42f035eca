"""Projector sensitivity: closed form against the two-sided difference of the paper, at the paper's sizes."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from results_file import environment, write
from tokenry.lab.evidence.measure import time_ratio
from tokenry.pruning import ZOOPrune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    tokens, directions, widths = (64, 16, (128, 256, 256)) if options.quick else (576, 64, (1024, 4096, 4096))
    torch.manual_seed(0)
    projector = nn.Sequential(nn.Linear(widths[0], widths[1]), nn.GELU(), nn.Linear(widths[1], widths[2])).eval()
    x = torch.randn(1, tokens, widths[0])
    pruner = ZOOPrune(0.25, directions=directions)

    def two_sided() -> Tensor:
        return pruner.sensitivity(projector, x)

    def closed() -> Tensor:
        return pruner.sensitivity(projector, x, method="exact")

    difference = float(((two_sided() - closed()) / closed()).abs().max())
    row = {
        "tokens": tokens,
        "directions": directions,
        "projector": "-".join(map(str, widths)),
        "times faster": time_ratio(two_sided, closed, repeats=options.repeats),
        "largest relative difference": difference,
    }
    print(row)
    if not options.quick:
        body = {
            "setting": f"Closed form against two-sided difference, batch 1, float32, {torch.get_num_threads()} threads.",
            "rows": [row],
            "environment": environment("cpu"),
        }
        write("sensitivity", body, "cpu")


if __name__ == "__main__":
    main()
