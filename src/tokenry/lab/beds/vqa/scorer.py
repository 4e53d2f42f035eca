"""IDPruner's learned importance on the testbed: the scorer in the package, and the pictures and questions it learned from."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from tokenry.lab.beds.pictures.canvas import CanvasSpec, make_canvases
from tokenry.lab.beds.pictures.questions import questions
from tokenry.lab.beds.pictures.sprites import build_sheet
from tokenry.lab.beds.vqa.bed import WEIGHTS, WORDS, VQAItem, VQATestbed
from tokenry.lab.beds.vqa.losses import IGNORED, answer_ids
from tokenry.pruning.idpruner import ImportanceScorer

SCORER = WEIGHTS / "scorer"


def load_scorer() -> ImportanceScorer:
    """The scorer that `tools/train_scorer.py` trained for the packaged testbed, without any network."""
    return ImportanceScorer.from_pretrained(SCORER).eval()


def training_batches(bed: VQATestbed, seed: int, batch: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches with ``labels``: in each row a new picture of the training split and a question, the answer behind it.

    Needs the assets of that split (`vqa_items`).
    """
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
        "input_ids": torch.cat((inputs["input_ids"], said.masked_fill(~real, WORDS["<pad>"])), dim=1),
        "attention_mask": torch.cat((inputs["attention_mask"], real.to(inputs["attention_mask"])), dim=1),
        "labels": torch.cat((prompt, said), dim=1),
    }
