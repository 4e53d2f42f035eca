"""Comparison of visual token pruners on a vision-language model: the testbed in the package, or the user's own."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import torch

from tokenry.core.progress import Progress, within
from tokenry.hosts.release import cache_of
from tokenry.lab.beds.answers import matches
from tokenry.lab.beds.vqa.bench import HubSubject, PackagedSubject, Subject, answers_of
from tokenry.lab.compare.methods import default_methods, visual_method
from tokenry.lab.compare.rows import Row, Settings
from tokenry.lab.evidence.measure import cache_bytes, peak_bytes, time_ratio
from tokenry.lab.sources.questions import read_questions
from tokenry.pruning.base import PruningTrace


class VisionBench:
    """Methods on a vision-language model."""

    quality = "accuracy"
    default_methods = default_methods("vlm")

    def __init__(self, settings: Settings) -> None:
        self.subject = _subject(settings)
        self.settings = settings
        self.model_name, self.data_name = self.subject.model_name, self.subject.data_name
        self.reference: list[str] | None = None
        self.reference_cost: tuple[int, int] | None = None
        self.shown: dict[str, Any] = {}

    def count(self) -> int:
        """Number of items."""
        return len(self.subject.items)

    @staticmethod
    def check(methods: tuple[str, ...]) -> None:
        """Refuse unknown names."""
        for name in methods:
            visual_method(name, 0.5, 0)

    def measure(self, method: str, keep: float, progress: Progress) -> Row:
        """Accuracy over all items, cost on one batch."""
        pruner = visual_method(method, keep, self.settings.seed)
        answers, trace = self._answers(pruner, progress)
        items = self.subject.items
        if any(not item.answer for item in items) and self.reference is None:
            self.reference = answers if method == "none" else self._answers(visual_method("none", 1.0, 0), progress)[0]
        wanted = [item.answer or reference for item, reference in zip(items, self.reference or [""] * len(items), strict=True)]
        outcomes = [matches(said, answer) for said, answer in zip(answers, wanted, strict=True)]
        self._show(method, keep, trace)
        kept = [len(_kept_indices(trace, i)) for i in sorted(trace.counts())]
        totals = [trace.of_image(i)[0].total for i in sorted(trace.counts())]
        time, memory, cache = self._cost(pruner)
        return Row(outcomes, _mean(kept), _mean(totals), time, memory, cache)

    def maps(self) -> dict[str, Any]:
        """Pictures and kept tokens of the first items."""
        return self.shown

    def _answers(self, pruner: Any, progress: Progress) -> tuple[list[str], PruningTrace]:
        told = within(progress, 0.0, 0.9)
        return answers_of(self.subject, pruner, self.settings.batch, positions=self.settings.positions, progress=told)

    def _cost(self, pruner: Any) -> tuple[float, float, float]:
        """Prefill time, peak memory and cache bytes of one batch, each over those without pruning."""
        model, device = self.subject.model, self.settings.device
        inputs = self.subject.encode(self.subject.items[: self.settings.batch])

        @torch.no_grad()
        def plain() -> Any:
            return cache_of(model(**inputs, logits_to_keep=1, use_cache=True))

        @torch.no_grad()
        def pruned() -> Any:
            with pruner.attach(model):
                return cache_of(model(**inputs, logits_to_keep=1, use_cache=True))

        if self.reference_cost is None:
            self.reference_cost = (cache_bytes(plain()), peak_bytes(plain, device))
        cache = cache_bytes(pruned()) / self.reference_cost[0]
        return time_ratio(pruned, plain, device=device), peak_bytes(pruned, device) / self.reference_cost[1], cache

    def _show(self, method: str, keep: float, trace: PruningTrace) -> None:
        items = self.subject.items[: self.settings.maps]
        first = [trace.of_image(i)[0] for i in range(min(len(items), len(trace.counts())))]
        if not first or any(entry.grid is None for entry in first):
            return
        if "items" not in self.shown:
            pictures = [_data_uri(self.subject.picture(item)) for item in items]
            shown = [
                {"image": picture, "question": item.question, "answer": item.answer, "grid": entry.grid}
                for picture, item, entry in zip(pictures, items, first, strict=True)
            ]
            self.shown = {"items": shown, "kept": {}}
        budgets = self.shown["kept"].setdefault(method, {})
        budgets[f"{keep:g}"] = [_kept_indices(trace, i) for i in range(len(first))]


def _subject(settings: Settings) -> Subject:
    if settings.model is None and settings.data is None:
        return PackagedSubject(settings.limit, settings.seed, settings.device)
    if settings.model is None or settings.data is None:
        raise ValueError("--model and --data go together: a model of one's own needs images and questions (see --help)")
    items = read_questions(settings.data, settings.limit)
    return HubSubject(settings.model, items, str(settings.data), settings.device)


def _kept_indices(trace: PruningTrace, image: int) -> list[int]:
    """What an image was left with after its last decision that left anything (a removal of all tokens is shown in the text)."""
    entries = [entry for entry in trace.of_image(image) if entry.indices.numel()]
    return entries[-1].indices.tolist() if entries else []


def _mean(values: Sequence[int]) -> float:
    return sum(values) / max(len(values), 1)


def _data_uri(picture: Any) -> str:
    picture = picture.copy()
    picture.thumbnail((448, 448))
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
