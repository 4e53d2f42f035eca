"""What the claims of the visual pruners run on: the testbed in the package, or a hub model with a hub data set."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tokenry.errors import AssetMissingError, optional
from tokenry.lab.beds.answers import matches
from tokenry.pruning.base import PruningTrace
from tokenry.pruning.visual import VisualPruner


class PackagedBench:
    """Held-out items of the visual-question-answering testbed."""

    def __init__(self, items: int, batch: int, seed: int, device: str) -> None:
        from tokenry.lab.beds.vqa.bed import load_vqa, vqa_items

        self.bed, self.batch = load_vqa(device=device), batch
        self.model = self.bed.model
        self.items = vqa_items(split="test", n=items, seed=seed)

    def outcomes(self, pruner: VisualPruner) -> tuple[list[float], PruningTrace]:
        """Accuracy per item under `pruner`."""
        with pruner.attach(self.model) as trace:
            return self.bed.accuracy(self.items, batch_size=self.batch), trace

    def relevant_kept(self, trace: PruningTrace) -> float:
        """Mean share of the patches a question needs that were kept before the decoder."""
        shares = []
        for number, item in enumerate(self.items):
            kept = trace.of_image(number)[0].indices
            needed = item.relevant.sum()
            if needed:
                shares.append(float(item.relevant[kept].sum() / needed))
        return sum(shares) / max(len(shares), 1)


class HubBench:
    """Questions of a hub data set (columns image, question, answer) asked of a hub model."""

    def __init__(self, model: str, data: str, split: str, items: int, batch: int, seed: int, device: str) -> None:
        from tokenry.lab.beds.vqa.hub import HubModel

        datasets = optional("datasets", "training")
        try:
            self.asked = HubModel(model, device)
            rows = datasets.load_dataset(data, split=split)
        except (OSError, ValueError) as error:
            raise AssetMissingError(
                f"{model} and {data} are not on this machine ({error}); run while online: "
                f"hf download {model} && hf download --repo-type dataset {data}"
            ) from error
        self.model, self.batch = self.asked.model, batch
        self.rows: Sequence[Any] = [rows[i] for i in random.Random(seed).sample(range(len(rows)), min(items, len(rows)))]

    def outcomes(self, pruner: VisualPruner) -> tuple[list[float], PruningTrace]:
        """Accuracy per item under `pruner`."""
        said: list[str] = []
        with pruner.attach(self.model) as trace:
            for start in range(0, len(self.rows), self.batch):
                part = self.rows[start : start + self.batch]
                said += self.asked.answers([r["image"].convert("RGB") for r in part], [r["question"] for r in part])
        return [matches(s, str(r["answer"])) for s, r in zip(said, self.rows, strict=True)], trace


def scale_settings(scale: str, model: str) -> dict[str, Any]:
    """Items and batch per scale; at scale paper a model of the paper's tables and a data set that all three papers report."""
    sizes: dict[str, dict[str, Any]] = {
        "smoke": {"items": 32, "batch": 16},
        "small": {"items": 320, "batch": 32},
        "paper": {"items": 1000, "batch": 8, "model": model, "data": "lmms-lab/POPE", "split": "test"},
    }
    return sizes[scale]


def bench_of(settings: dict[str, Any], seed: int, device: str) -> Any:
    """The bench that a claim's settings describe."""
    if "model" in settings:
        return HubBench(**settings, seed=seed, device=device)
    return PackagedBench(settings["items"], settings["batch"], seed, device)
