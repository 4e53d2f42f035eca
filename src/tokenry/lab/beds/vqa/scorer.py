"""IDPruner's learned importance on the testbed: its scorer, trained on canvases that no claim asks about."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from tokenry.core.progress import Progress
from tokenry.core.seeding import seeded
from tokenry.lab.beds.pictures.canvas import CanvasSpec, make_canvases
from tokenry.lab.beds.pictures.questions import questions
from tokenry.lab.beds.pictures.sprites import build_sheet
from tokenry.lab.beds.vqa.bed import VQAItem, VQATestbed
from tokenry.lab.beds.vqa.losses import IGNORED, answer_ids
from tokenry.pruning.idpruner import ImportanceScorer, ScorerConfig, ScorerTraining, train_scorer


def learned_scorer(
    bed: VQATestbed, seed: int, settings: ScorerTraining, *, batch: int = 16, progress: Progress | None = None
) -> ImportanceScorer:
    """A scorer trained from scratch on pictures and questions of the training split, the testbed frozen.

    Needs the assets of the training split (`vqa_items`).
    """
    with seeded(seed):
        scorer = ImportanceScorer(ScorerConfig(bed.model.config.text_config.hidden_size))
    train_scorer(bed.model, scorer, training_batches(bed, seed, batch), settings, progress=progress)
    return scorer


def training_batches(bed: VQATestbed, seed: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches with ``labels``: a new picture and a question in each row, the answer behind it."""
    sheet, spec = build_sheet(train=True), CanvasSpec()
    generator, rng = torch.Generator().manual_seed(10_000 + seed), random.Random(seed)
    while True:
        canvases = make_canvases(generator, sheet, batch, spec=spec)
        asked = [questions(canvases, place, rng, 1)[0] for place in range(batch)]
        items = [
            VQAItem(image, question.text, question.answer, question.kind, torch.empty(0, dtype=torch.bool))
            for image, question in zip(canvases.images, asked, strict=True)
        ]
        yield with_answers(bed, items)


def with_answers(bed: VQATestbed, items: list[VQAItem]) -> dict[str, Tensor]:
    """The prompts of `items` with their answers behind them, and ``labels`` that are IGNORED everywhere else."""
    inputs = bed.encode(items)
    answers = [torch.tensor(answer_ids(item.answer)) for item in items]
    said = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=IGNORED).to(inputs["input_ids"].device)
    real = said != IGNORED
    prompt = torch.full_like(inputs["input_ids"], IGNORED)
    return {
        **inputs,
        "input_ids": torch.cat((inputs["input_ids"], said.where(real, bed.tokenizer.pad_token_id)), dim=1),
        "attention_mask": torch.cat((inputs["attention_mask"], real.to(inputs["attention_mask"])), dim=1),
        "labels": torch.cat((prompt, said), dim=1),
    }
