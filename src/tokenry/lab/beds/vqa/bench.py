"""Pictures with questions, and a vision-language model that answers them: the testbed in the package, or a model of the hub.

Claims of the visual pruners and `tokenry compare pruning` both run on a `Subject`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tokenry.core.progress import Progress
from tokenry.errors import AssetMissingError, optional
from tokenry.lab.beds.answers import matches
from tokenry.lab.beds.vqa.hub import HubModel
from tokenry.lab.sources.questions import ImageQuestion
from tokenry.pruning.base import PruningTrace
from tokenry.pruning.visual import VisualPruner


class PackagedSubject:
    """The visual-question-answering testbed and its held-out items."""

    model_name, data_name = "testbed (LLaVA, 196 visual tokens)", "canvases of held-out digits, pictures and photographs"

    def __init__(self, items: int, seed: int, device: str) -> None:
        from tokenry.lab.beds.vqa.bed import load_vqa, vqa_items

        self.bed = load_vqa(device=device)
        self.model = self.bed.model
        self.items: Sequence[Any] = vqa_items(split="test", n=items, seed=seed)

    def encode(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Model inputs of a left-padded batch."""
        return dict(self.bed.encode(items))

    def answers(self, items: Sequence[Any]) -> list[str]:
        """The model's answers."""
        return self.bed.answer(items, batch_size=len(items))

    def picture(self, item: Any) -> Any:
        """The item's image as a PIL image."""
        image = optional("PIL.Image", "lab")
        return image.fromarray(item.image.cpu().numpy() if isinstance(item.image, torch.Tensor) else item.image)


class HubSubject:
    """A model from a local folder or the hub, with questions about images (files, or PIL images)."""

    def __init__(self, model: str, items: Sequence[ImageQuestion], data_name: str, device: str) -> None:
        self.asked = HubModel(model, device)
        self.model, self.items = self.asked.model, items
        self.model_name, self.data_name = model, data_name

    def encode(self, items: Sequence[ImageQuestion]) -> dict[str, torch.Tensor]:
        """Model inputs of a left-padded batch."""
        return self.asked.encode([self.picture(item) for item in items], [item.question for item in items])

    def answers(self, items: Sequence[ImageQuestion]) -> list[str]:
        """The model's greedy answers."""
        return self.asked.answers([self.picture(item) for item in items], [item.question for item in items])

    def picture(self, item: ImageQuestion) -> Any:
        """The item's image as an RGB PIL image."""
        opened = optional("PIL.Image", "lab").open(item.image) if isinstance(item.image, Path) else item.image
        return opened.convert("RGB")


Subject = PackagedSubject | HubSubject


def answers_of(
    subject: Subject, pruner: VisualPruner, batch: int, *, positions: Any = "reindex", progress: Progress | None = None
) -> tuple[list[str], PruningTrace]:
    """Answers to all items of `subject` under `pruner`, and what was kept."""
    said: list[str] = []
    with pruner.attach(subject.model, positions=positions) as trace:
        for start in range(0, len(subject.items), batch):
            said += subject.answers(subject.items[start : start + batch])
            if progress is not None:
                progress("", len(said) / len(subject.items))
    return said, trace


class QuestionBench:
    """What the claims of the visual pruners run on."""

    def __init__(self, subject: Subject, batch: int) -> None:
        self.subject, self.batch, self.model = subject, batch, subject.model

    def outcomes(self, pruner: VisualPruner) -> tuple[list[float], PruningTrace]:
        """Accuracy per item under `pruner`."""
        said, trace = answers_of(self.subject, pruner, self.batch)
        return [matches(word, item.answer) for word, item in zip(said, self.subject.items, strict=True)], trace

    def relevant_kept(self, trace: PruningTrace) -> float:
        """Mean share of the patches a question needs that were kept before the decoder; the testbed alone knows them."""
        shares = []
        items: Sequence[Any] = self.subject.items
        for number, item in enumerate(items):
            kept = trace.of_image(number)[0].indices
            needed = item.relevant.sum()
            if needed:
                shares.append(float(item.relevant[kept].sum() / needed))
        return sum(shares) / max(len(shares), 1)


def scale_settings(scale: str, model: str) -> dict[str, Any]:
    """Items and batch per scale; at scale paper a model of the paper's tables and a data set that all three papers report."""
    sizes: dict[str, dict[str, Any]] = {
        "smoke": {"items": 32, "batch": 16},
        "small": {"items": 1000, "batch": 32},
        "paper": {"items": 1000, "batch": 8, "model": model, "data": "lmms-lab/POPE", "split": "test"},
    }
    return sizes[scale]


def bench_of(settings: dict[str, Any], seed: int, device: str) -> QuestionBench:
    """The bench that a claim's settings describe.

    Raises:
        AssetMissingError: model or data set are neither in the local cache nor to be had.
    """
    if "model" not in settings:
        return QuestionBench(PackagedSubject(settings["items"], seed, device), settings["batch"])
    model, data = settings["model"], settings["data"]
    datasets = optional("datasets", "training")
    try:
        rows = datasets.load_dataset(data, split=settings["split"])
        chosen = [rows[i] for i in random.Random(seed).sample(range(len(rows)), min(settings["items"], len(rows)))]
        items = [ImageQuestion(row["image"], row["question"], str(row["answer"])) for row in chosen]
        subject = HubSubject(model, items, data, device)
    except (OSError, ValueError) as error:
        raise AssetMissingError(
            f"{model} and {data} are not on this machine ({error}); run while online: "
            f"hf download {model} && hf download --repo-type dataset {data}"
        ) from error
    return QuestionBench(subject, settings["batch"])
