"""Claim of IDPruner: importance and diversity together lose less than either alone (arXiv 2602.13315, main table).

Measured here: accuracy of a vision-language model on visual questions at equal budgets, and importance retention with the
Hopkins statistic of the selections. The importance of all compared arms is the CLS attention of the tower, a training-free
stand-in for the paper's learned scorer. On the testbed the scorer trained for it (`tools/train_scorer.py`) and other stand-ins
have arms of their own, which no contrast reads.
"""

from __future__ import annotations

from typing import Any

import torch

from tokenry.core.progress import Progress
from tokenry.lab.beds.vqa.bench import bench_of, scale_settings
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.pruning import DivPrune, IDPruner, NoPruning, RandomPruner, TopK
from tokenry.pruning.idpruner import hopkins_statistic, importance_retention

_KEEPS = (0.25, 0.1)


class IDPrunerClaim(Claim):
    """MMR against top-k importance, farthest point and random."""

    system = "idpruner"
    statement = (
        "At 25 % and at 10 % of the visual tokens, maximal marginal relevance beats random selection, and is not worse than "
        "top-k importance or farthest point by more than 2 points."
    )
    metric = "accuracy on visual questions"
    contrasts = tuple(
        contrast
        for keep in _KEEPS
        for contrast in (
            Contrast(f"keep {keep}: over random", f"idpruner@{keep}", f"random@{keep}"),
            Contrast(f"keep {keep}: not worse than top-k", f"idpruner@{keep}", f"topk@{keep}", margin=-0.02),
            Contrast(f"keep {keep}: not worse than farthest point", f"idpruner@{keep}", f"divprune@{keep}", margin=-0.02),
        )
    )
    competence = Competence("none", 0.9)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Items, batch and host of a scale."""
        return scale_settings(scale, "Qwen/Qwen2.5-VL-7B-Instruct")

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Accuracy of every arm on the items of `seed`."""
        bench = bench_of(self.settings(scale), seed, device)
        arms: dict[str, list[float]] = {}
        facts: dict[str, float | str] = {}
        pruners: dict[str, Any] = {"none": NoPruning()}
        for keep in _KEEPS:
            pruners |= {f"idpruner@{keep}": IDPruner(keep), f"topk@{keep}": TopK(keep)}
            pruners |= {f"divprune@{keep}": DivPrune(keep), f"random@{keep}": RandomPruner(keep, seed=seed)}
        if scale == "small":
            pruners |= _other_importance(device)
        for number, (name, pruner) in enumerate(pruners.items()):
            arms[name], trace = bench.outcomes(pruner)
            progress(name, (number + 1) / (len(pruners) + 1))
            if name != "none" and hasattr(bench, "relevant_kept"):
                facts[f"needed patches kept, {name}"] = bench.relevant_kept(trace)
        facts |= _trade_off(seed, draws=20 if scale == "smoke" else 200)
        return Measurement(arms, facts)


def _other_importance(device: str) -> dict[str, Any]:
    """The rule, and top-k, with other importance than CLS attention: the learned scorer's, and the other stand-ins."""
    from tokenry.lab.beds.vqa.scorer import load_scorer

    scorer = load_scorer().to(device)
    pruners: dict[str, Any] = {}
    for keep in _KEEPS:
        pruners[f"learned@{keep}"] = IDPruner(keep, scorer=scorer)
        pruners[f"learned, top-k@{keep}"] = IDPruner(keep, balance=1.0, scorer=scorer)
        pruners |= {f"{source}@{keep}": IDPruner(keep, importance=source) for source in ("norm", "sensitivity")}
    return pruners


def _trade_off(seed: int, draws: int) -> dict[str, float | str]:
    """Importance retention and Hopkins statistic on clustered features (the paper's simulation), keep 25 %."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(draws, 24, 32, generator=generator)
    sizes = torch.rand(24, generator=generator).pow(2).add(0.05)
    member = torch.multinomial(sizes, draws * 256, replacement=True, generator=generator).view(draws, 256)
    features = centres.gather(1, member.unsqueeze(-1).expand(-1, -1, 32))
    features = features + 0.08 * torch.randn(features.shape, generator=generator)
    importance = torch.rand(draws, 256, generator=generator)
    facts: dict[str, float | str] = {}
    for name, pruner in (
        ("top-k", TopK(0.25)),
        ("farthest point", DivPrune(0.25)),
        *((f"MMR {balance:g}", IDPruner(0.25, balance=balance)) for balance in (0.1, 0.5, 0.9)),
    ):
        index = pruner.select(features, importance=importance)
        facts[f"simulation, {name}: importance retention"] = float(importance_retention(importance, index).mean())
        facts[f"simulation, {name}: Hopkins"] = float(hopkins_statistic(features, index, generator=generator).mean())
    return facts


CLAIM = IDPrunerClaim()
