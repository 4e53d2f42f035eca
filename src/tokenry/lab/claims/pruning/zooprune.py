"""Claim of ZOO-Prune: sensitivity times novelty is better than either alone (arXiv 2509.24837, ablation table).

Measured here: accuracy of a vision-language model on visual questions at equal budgets. Facts: how well the two-sided estimate
agrees with the exact derivative, and how closely sensitivity follows the norm of the projected token (a free substitute).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded
from tokenry.lab.beds.vqa.bench import bench_of, scale_settings
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.pruning import Compose, DivPrune, NoPruning, RandomPruner, ZOOPrune

_KEEPS = (0.25, 0.125)


class ZOOPruneClaim(Claim):
    """The product against each of its factors."""

    system = "zooprune"
    statement = (
        "At 25 % and at 12.5 % of the visual tokens, sensitivity times novelty beats random selection, and is not worse than "
        "sensitivity alone or diversity alone by more than 2 points."
    )
    metric = "accuracy on visual questions"
    contrasts = tuple(
        contrast
        for keep in _KEEPS
        for contrast in (
            Contrast(f"keep {keep}: over random", f"zooprune@{keep}", f"random@{keep}"),
            Contrast(f"keep {keep}: not worse than sensitivity alone", f"zooprune@{keep}", f"sensitivity@{keep}", margin=-0.02),
            Contrast(f"keep {keep}: not worse than diversity alone", f"zooprune@{keep}", f"divprune@{keep}", margin=-0.02),
        )
    )
    competence = Competence("none", 0.9)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Items, batch and host of a scale."""
        return scale_settings(scale, "llava-hf/llava-1.5-7b-hf")

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Accuracy of every arm on the items of `seed`."""
        bench = bench_of(self.settings(scale), seed, device)
        pruners: dict[str, Any] = {"none": NoPruning()}
        for keep in _KEEPS:
            pruners |= {f"zooprune@{keep}": ZOOPrune(keep, seed=seed), f"random@{keep}": RandomPruner(keep, seed=seed)}
            pruners |= {f"sensitivity@{keep}": Compose.named("sensitivity+top_k", keep), f"divprune@{keep}": DivPrune(keep)}
            pruners |= {f"norm times novelty@{keep}": Compose.named("norm+product", keep)}
        arms: dict[str, list[float]] = {}
        for number, (name, pruner) in enumerate(pruners.items()):
            arms[name], _ = bench.outcomes(pruner)
            progress(name, (number + 1) / (len(pruners) + 1))
        return Measurement(arms, _estimator(seed, samples=4))


def _estimator(seed: int, samples: int) -> dict[str, float | str]:
    """Agreement of the estimate with the exact derivative, and of sensitivity with the norm, on a random projector."""
    with seeded(seed):
        projector = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 256)).eval()
    x = torch.randn(samples, 256, 64, generator=torch.Generator().manual_seed(seed))
    pruner = ZOOPrune(0.25, seed=seed)
    estimate, exact = pruner.sensitivity(projector, x), pruner.sensitivity(projector, x, method="exact")
    many = ZOOPrune(0.25, directions=1024, seed=seed + 1).sensitivity(projector, x, method="exact")
    with torch.no_grad():
        norm = torch.linalg.vector_norm(projector(x), dim=-1)
    return {
        "largest relative error of the difference": float(((estimate - exact) / exact).abs().max()),
        "rank correlation, 64 against 1024 directions": _spearman(estimate, many),
        "rank correlation, sensitivity against norm": _spearman(many, norm),
    }


def _spearman(a: Tensor, b: Tensor) -> float:
    ranks = [v.argsort(dim=1).argsort(dim=1).float() for v in (a, b)]
    left, right = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    return float(((left * right).sum(dim=1) / (left.norm(dim=1) * right.norm(dim=1))).mean())


CLAIM = ZOOPruneClaim()
