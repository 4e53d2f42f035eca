"""Does the packaged model react to fewer visual tokens as real vision-language models do? The measurements, and the bar.

Published models lose a few points at half of the tokens and more below a quarter, whatever positions the kept tokens have, and
what they need is where the objects are. A model that does not cannot tell a good choice of tokens from a bad one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from tokenry.core.progress import Progress
from tokenry.lab.beds.pictures.questions import KINDS
from tokenry.lab.beds.vqa.bed import VQAItem, VQATestbed, vqa_items
from tokenry.pruning.visual import VisualPruner

KEEPS = (0.5, 0.25, 0.1)
TOLD_APART = 1.96  # standard errors of the paired difference


@dataclass(frozen=True)
class Needed(VisualPruner):
    """The upper bound: it keeps the tokens of the objects that the question needs, `wanted`, and no other."""

    wanted: tuple[int, ...] = ()

    @classmethod
    def of(cls, item: VQAItem) -> Needed:
        """For one item, at that item's exact budget."""
        wanted = tuple(item.relevant.nonzero()[:, 0].tolist())
        return cls(len(wanted), wanted)

    def select(self, features: Tensor, *, importance: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`wanted` for every row of `features` [B,N,D]."""
        return torch.tensor(self.wanted, device=features.device).expand(len(features), -1)


def measure(
    bed: VQATestbed, *, items: int = 800, seed: int = 100, batch: int = 32, methods: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy of `bed` on test items, unpruned and under every method and budget, and whether the bar is met."""
    from tokenry.lab.compare.methods import default_methods, visual_method

    asked = vqa_items(n=items, seed=seed)
    names = [name for name in methods or default_methods("vlm") if name not in ("none", "random")]
    runs: list[tuple[str, float, str]] = [("none", 1.0, "reindex")]
    runs += [("random", keep, positions) for keep in KEEPS for positions in ("reindex", "gather")]
    runs += [(name, keep, "reindex") for keep in KEEPS for name in names]
    outcomes: dict[tuple[str, float, str], Tensor] = {}
    for number, (name, keep, positions) in enumerate(runs):
        pruner: Any = visual_method(name, keep, seed)
        with pruner.attach(bed.model, positions=positions):
            outcomes[name, keep, positions] = torch.tensor(bed.accuracy(asked, batch_size=batch))
        if progress is not None:
            progress(f"{name} {keep:g}", number / (len(runs) + 1))
    outcomes["needed", 0.0, "reindex"] = needed_outcomes(bed, asked)
    rows = [_row(name, keep, positions, hits, asked) for (name, keep, positions), hits in outcomes.items()]
    share = sum(float(item.relevant.float().mean()) for item in asked) / items
    apart = {f"{keep:g}": _pairs_apart(outcomes, keep) for keep in KEEPS}
    return {
        "items": items, "seed": seed, "share_needed": round(share, 4), "rows": rows, "pairs_told_apart": apart,
        "bar": _bar(outcomes, apart),
    }  # fmt: skip


def needed_outcomes(bed: VQATestbed, items: Sequence[VQAItem]) -> Tensor:
    """1.0 per item that is answered rightly from the tokens it needs alone, each at its own budget."""
    hits: list[float] = []
    for item in items:
        with Needed.of(item).attach(bed.model):
            hits += bed.accuracy([item])
    return torch.tensor(hits)


def _row(name: str, keep: float, positions: str, hits: Tensor, items: Sequence[VQAItem]) -> dict[str, Any]:
    kinds = {kind: hits[[item.kind == kind for item in items]].mean().item() for kind in KINDS}
    rounded = {kind: round(value, 4) for kind, value in kinds.items()}
    return {"method": name, "keep": keep, "positions": positions, "accuracy": round(hits.mean().item(), 4), "kinds": rounded}


def _pairs_apart(outcomes: dict[tuple[str, float, str], Tensor], keep: float) -> list[int]:
    """How many pairs of methods the items tell apart at one budget, and of how many."""
    arms = [hits for (_, at, positions), hits in outcomes.items() if at == keep and positions == "reindex"]
    pairs = list(combinations(arms, 2))
    return [sum(_is_apart(a - b) for a, b in pairs), len(pairs)]


def _is_apart(difference: Tensor) -> bool:
    error = difference.std() / len(difference) ** 0.5
    return bool(difference.mean().abs() > TOLD_APART * error)


def _bar(outcomes: dict[tuple[str, float, str], Tensor], apart: dict[str, list[int]]) -> list[dict[str, Any]]:
    """The conditions: what was measured, what is wanted, whether it is met."""
    mean = {key: hits.mean().item() for key, hits in outcomes.items()}
    full = mean["none", 1.0, "reindex"]
    ways = max(abs(mean["random", keep, "reindex"] - mean["random", keep, "gather"]) for keep in KEEPS)
    lost = {keep: full - mean["random", keep, "reindex"] for keep in KEEPS}
    told = min(apart[f"{keep:g}"][0] / max(apart[f"{keep:g}"][1], 1) for keep in (0.25, 0.1))
    conditions = [
        ("accuracy, all tokens", full, "at least", 0.93),
        ("loss, random 50 %", lost[0.5], "at most", 0.05),
        ("loss, random 10 %", lost[0.1], "at least", 0.20),
        ("loss, the needed tokens alone", full - mean["needed", 0.0, "reindex"], "at most", 0.03),
        ("renumbered against original positions, largest difference", ways, "at most", 0.03),
        ("pairs of methods told apart at 25 % and 10 %, smaller share", told, "at least", 0.5),
    ]
    return [
        {"what": what, "measured": round(value, 4), "wanted": f"{word} {limit:g}",
         "met": bool(value >= limit if word == "at least" else value <= limit)}
        for what, value, word, limit in conditions
    ]  # fmt: skip


def acceptance_page(record: dict[str, Any]) -> str:
    """The measurements as Markdown tables."""
    lines = [f"{record['items']} items; a question needs {record['share_needed']:.1%} of the tokens on average.", ""]
    lines += ["| what | wanted | measured | met |", "|---|---|---|---|"]
    lines += [f"| {c['what']} | {c['wanted']} | {c['measured']:.3f} | {'yes' if c['met'] else 'no'} |" for c in record["bar"]]
    lines += ["", "| method | " + " | ".join(f"{keep:.0%}" for keep in KEEPS) + " |", "|---|" + "---|" * len(KEEPS)]
    found = {(row["method"], row["keep"], row["positions"]): row["accuracy"] for row in record["rows"]}
    for name in dict.fromkeys(row["method"] for row in record["rows"]):
        if name == "none":
            lines.append("| none (all tokens) | " + " | ".join([f"{found['none', 1.0, 'reindex']:.3f}"] * len(KEEPS)) + " |")
        elif name == "needed":
            lines.append(
                "| needed tokens alone | " + " | ".join([f"{found['needed', 0.0, 'reindex']:.3f}"] * len(KEEPS)) + " |"
            )
        else:
            for positions in ("reindex", "gather") if name == "random" else ("reindex",):
                label = f"{name}, original positions" if positions == "gather" else name
                lines.append(f"| {label} | " + " | ".join(f"{found[name, keep, positions]:.3f}" for keep in KEEPS) + " |")
    lines += ["", "| kind of question | all tokens | random 50 % | random 10 % | needed |", "|---|---|---|---|---|"]
    kinds = {(row["method"], row["keep"]): row["kinds"] for row in record["rows"] if row["positions"] == "reindex"}
    for kind in KINDS:
        values = [kinds[key][kind] for key in (("none", 1.0), ("random", 0.5), ("random", 0.1), ("needed", 0.0))]
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)
