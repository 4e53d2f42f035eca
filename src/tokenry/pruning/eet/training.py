"""Joint training of a pruned student and a dense teacher (EET, the DKT and DRG parts)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset

from tokenry.core.checks import check_choice, check_int, check_range, check_shape
from tokenry.core.similarity import cosine
from tokenry.hosts.vision import describe, image_size_of
from tokenry.pruning.eet.guidance import hide_regions
from tokenry.pruning.eet.hashing import check_codes
from tokenry.pruning.eet.model import EETHashModel


@dataclass(frozen=True)
class EETTrainingConfig:
    """Settings of :class:`EETTrainer`; the defaults are the released recipe.

    Attributes:
        learning_rate: peak rate of both optimizers.
        momentum: of SGD.
        weight_decay: of both optimizers.
        optimizer: ``"sgd"`` as in the recipe, or ``"adamw"`` for training from scratch.
        batch_size: images per step.
        epochs: passes over the training set.
        warmup_steps: linear warm-up, then cosine to 0 at the last step.
        class_weight: weight of each of the student's cross-entropies (plain and hidden image).
        code_weight: weight of the student's code regression.
        transfer_weight: weight of the transfer term (DKT); 0 switches it off.
        hidden_patches: patches hidden for the guidance term (DRG); 0 switches it off.
        transposed_mask: hide the transposed patches, as the released code does.
        seed: order of the images.
    """

    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_size: int = 64
    epochs: int = 90
    warmup_steps: int = 500
    class_weight: float = 0.1
    code_weight: float = 1.0
    transfer_weight: float = 1.0
    hidden_patches: int = 4
    transposed_mask: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)
        check_range("momentum", self.momentum, 0.0, 1.0, high_open=True)
        for name in ("weight_decay", "class_weight", "code_weight", "transfer_weight"):
            check_range(name, getattr(self, name), 0.0)
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        for name, minimum in (("batch_size", 1), ("epochs", 1), ("warmup_steps", 0), ("hidden_patches", 0), ("seed", 0)):
            check_int(name, getattr(self, name), minimum)


def hash_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Transfer term (DKT): mean over the batch of ``1 - cos(u, u_T)``, with no gradient to the teacher's embedding.

    0 for positively scaled copies, 2 for negated ones. Shapes [B,bits] both.
    """
    sizes = check_shape("student", student, "B bits")
    check_shape("teacher", teacher, "B bits", **sizes)
    return (1.0 - cosine(student, teacher.detach())).mean()


class EETTrainer:
    """Trains a student and its teacher side by side: two losses, two backward passes, two optimizers.

    With outputs (y, u) of the student, (y_T, u_T) of the teacher, target codes b, and y~ the student's logits for the image
    whose most important patches (teacher's last block) are hidden::

        L_S = class_weight (CE(y, t) + CE(y~, t)) + code_weight MSE(u, b) + transfer_weight mean(1 - cos(u, stopgrad u_T))
        L_T = CE(y_T, t) + MSE(u_T, b)

    Args:
        student: the model with a pruner (or any :class:`EETHashModel`).
        teacher: a dense :class:`EETHashModel`, for example ``student.twin()``; None trains the student alone, which needs
            ``transfer_weight=0`` and ``hidden_patches=0``.
        codes: target codes [n,bits] of the n training images, from :func:`solve_hash_codes`.
        config: settings.
        augment: optional function from a batch of images to a batch of images.

    Raises:
        ValueError: codes that do not fit, a pruned teacher, or terms that need a teacher without one.
    """

    def __init__(
        self,
        student: EETHashModel,
        teacher: EETHashModel | None,
        codes: Tensor,
        config: EETTrainingConfig | None = None,
        *,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.config = config = EETTrainingConfig() if config is None else config
        if teacher is None and (config.transfer_weight > 0 or config.hidden_patches > 0):
            raise ValueError("transfer_weight and hidden_patches must be 0 without a teacher")
        if teacher is not None and (teacher.pruner is not None or teacher is student):
            raise ValueError("teacher must be another model than the student, with pruner=None")
        check_shape("codes", check_codes("codes", codes), "n bits", bits=student.bits)
        self.student, self.teacher = student, teacher
        self.augment = augment
        self.device = next(student.parameters()).device
        self.codes = codes.float().to(self.device)
        self.optimizers = [self._optimizer(model) for model in self._models()]
        self.schedulers: list[LambdaLR] = []
        self.history: list[dict[str, float]] = []

    def losses(self, images: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Both losses and their terms for one batch; ``student`` and ``teacher`` have separate graphs.

        `images` [B,C,H,W], `labels` [B] ints, `index` [B] positions in `codes`.
        """
        config, codes = self.config, self.codes[index]
        terms: dict[str, Tensor] = {}
        importance = teacher_embedding = None
        if self.teacher is not None:
            seen = self.teacher(images, importance=config.hidden_patches > 0)
            teacher_embedding, importance = seen.embedding, seen.importance
            terms["teacher"] = F.cross_entropy(seen.logits, labels) + F.mse_loss(seen.embedding, codes)
        output = self.student(images)
        terms["class"] = F.cross_entropy(output.logits, labels)
        terms["code"] = F.mse_loss(output.embedding, codes)
        total = config.class_weight * terms["class"] + config.code_weight * terms["code"]
        if importance is not None:
            grid = describe(self.student.backbone).grid(image_size_of(images))
            hidden = hide_regions(images, importance, config.hidden_patches, grid, transposed=config.transposed_mask)
            terms["hidden_class"] = F.cross_entropy(self.student(hidden).logits, labels)
            total = total + config.class_weight * terms["hidden_class"]
        if config.transfer_weight > 0 and teacher_embedding is not None:
            terms["transfer"] = hash_distillation(output.embedding, teacher_embedding)
            total = total + config.transfer_weight * terms["transfer"]
        return {"student": total, **terms}

    def train_step(self, images: Tensor, labels: Tensor, index: Tensor) -> dict[str, float]:
        """One step of both optimizers on one batch; returns the losses as numbers.

        Raises:
            FloatingPointError: a loss that is not finite; the weights are left as they were.
        """
        for model in self._models():
            model.train()
        images, labels, index = (x.to(self.device) for x in (images, labels, index))
        terms = self.losses(images, labels, index)
        values = {name: float(term.detach()) for name, term in terms.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"loss {bad[0]} is {values[bad[0]]} at step {len(self.history)}; no weight was changed")
        for optimizer, name in zip(self.optimizers, ("student", "teacher"), strict=False):
            optimizer.zero_grad(set_to_none=True)
            terms[name].backward()
            optimizer.step()
        for scheduler in self.schedulers:
            scheduler.step()
        self.history.append(values)
        return values

    def fit(
        self,
        dataset: Dataset[Any],
        *,
        checkpoint: str | Path | None = None,
        progress: Callable[[int, int, dict[str, float]], None] | None = None,
    ) -> list[dict[str, float]]:
        """Train on `dataset` of (image, label) pairs, item i belonging to ``codes[i]``; returns the losses of every step.

        With `checkpoint` (a file), the state is saved after every epoch, and a later call with the same file goes on from
        there; an interruption loses the epoch in progress. ``progress(step, steps, losses)`` is called after every step.

        Raises:
            ValueError: a data set whose length is not that of `codes`, or fewer steps than the warm-up.
        """
        count = len(dataset)  # type: ignore[arg-type]
        if count != len(self.codes):
            raise ValueError(f"dataset must have one item per row of codes ({len(self.codes)}), got {count}")
        per_epoch = math.ceil(count / self.config.batch_size)
        steps = per_epoch * self.config.epochs
        self.schedulers = [self._scheduler(optimizer, steps) for optimizer in self.optimizers]
        start = self._resume(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else 0
        for epoch in range(start, self.config.epochs):
            # The order of an epoch depends on its number alone, so a resumed run sees the same batches.
            order = torch.Generator().manual_seed(self.config.seed + epoch)
            for images, labels, index in DataLoader(_Indexed(dataset), self.config.batch_size, shuffle=True, generator=order):
                values = self.train_step(images if self.augment is None else self.augment(images), labels, index)
                if progress is not None:
                    progress(len(self.history), steps, values)
            if checkpoint is not None:
                self._save(checkpoint, epoch + 1)
        return self.history

    def _models(self) -> list[EETHashModel]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        config = self.config
        parameters = [p for p in model.parameters() if p.requires_grad]
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay)

    def _scheduler(self, optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        warmup = self.config.warmup_steps
        if warmup >= steps:
            raise ValueError(f"warmup_steps must be below the {steps} steps of the whole training, got {warmup}")

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

        return LambdaLR(optimizer, factor)

    def _save(self, path: str | Path, epoch: int) -> None:
        state = {
            "config": asdict(self.config),
            "epoch": epoch,
            "models": [model.state_dict() for model in self._models()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "history": self.history,
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)

    def _resume(self, path: str | Path) -> int:
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["config"] != asdict(self.config) or len(state["models"]) != len(self._models()):
            raise ValueError(f"{path} belongs to a training with other settings; use another file or the same settings")
        for parts, saved in (
            (self._models(), state["models"]),
            (self.optimizers, state["optimizers"]),
            (self.schedulers, state["schedulers"]),
        ):
            for part, values in zip(parts, saved, strict=True):
                part.load_state_dict(values)
        self.history = state["history"]
        return state["epoch"]


class _Indexed(Dataset[Any]):
    """Adds its position to each item."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        image, label = self.dataset[index]
        return image, label, index
