"""Claim of ToDRE: a diverse quarter is enough, and vision can leave the decoder at 7/8 of its depth (arXiv 2505.18757).

Measured here: accuracy of a vision-language model on visual questions. Stage 2 is forced (a threshold above 1 always drops), so
that the arms differ only in the depth at which the visual tokens are removed: the paper's sweep over L/2, 5L/8, 6L/8, 7L/8.
"""

from __future__ import annotations

from typing import Any

from tokenry.core.progress import Progress
from tokenry.lab.beds.vqa.bench import bench_of, scale_settings
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.pruning import NoPruning, RandomPruner, ToDRE

_ALWAYS = 2.0
_DEPTHS = (0.5, 0.625, 0.75, 0.875)


class ToDREClaim(Claim):
    """Stage 1 against random selection, stage 2 at 7/8 against no removal and against removal half way."""

    system = "todre"
    statement = (
        "Keeping 25 % of the visual tokens by summed diversity beats keeping 25 % at random; removing all visual tokens after "
        "7/8 of the decoder costs at most 1 point, and is better than removing them half way."
    )
    metric = "accuracy on visual questions"
    contrasts = (
        Contrast("stage 1: over random", "max_sum@0.25", "random@0.25"),
        Contrast("stage 2 at 7/8: not worse than keeping vision", "removed at 0.875", "none", margin=-0.01),
        Contrast("stage 2 at 7/8: over half way", "removed at 0.875", "removed at 0.5"),
    )
    competence = Competence("none", 0.9)

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Items, batch and host of a scale."""
        return scale_settings(scale, "Qwen/Qwen2.5-VL-7B-Instruct")

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Accuracy of every arm on the items of `seed`; facts hold the attention mass that stage 2 looks at."""
        bench = bench_of(self.settings(scale), seed, device)
        pruners: dict[str, Any] = {"none": NoPruning(), "random@0.25": RandomPruner(0.25, seed=seed)}
        pruners |= {
            "max_sum@0.25": ToDRE(0.25, threshold=0.0, seed=seed),
            "k_center@0.25": ToDRE(0.25, rule="k_center", threshold=0.0, seed=seed),
            "both stages@0.25": ToDRE(0.25, seed=seed),
        }
        for depth in _DEPTHS:
            pruners[f"removed at {depth:g}"] = ToDRE(1.0, threshold=_ALWAYS, check_depth=depth)
        arms: dict[str, list[float]] = {}
        facts: dict[str, float | str] = {}
        for number, (name, pruner) in enumerate(pruners.items()):
            arms[name], trace = bench.outcomes(pruner)
            progress(name, (number + 1) / len(pruners))
            masses = [row["text_to_vision"] for row in trace.facts.get("relevance", [])]
            if masses:
                facts[f"text-to-vision mass, {name}"] = sum(masses) / len(masses)
                dropped = [row["dropped"] for row in trace.facts["relevance"]]
                facts[f"share of prompts that dropped vision, {name}"] = sum(dropped) / len(dropped)
        return Measurement(arms, facts)


CLAIM = ToDREClaim()
