"""Joint training of a pruned student and a dense teacher (EET, the DKT and DRG parts), on transformers' Trainer.

The released code runs two backward passes and two optimizers of equal settings. The two losses have separate graphs, so one
optimizer over both models, down the sum of the losses, makes the same updates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from tokenry.core.checks import check_choice, check_int, check_range, check_shape
from tokenry.core.similarity import cosine
from tokenry.errors import optional
from tokenry.hosts.vision import describe, image_size_of
from tokenry.pruning.eet.guidance import hide_regions
from tokenry.pruning.eet.hashing import check_codes
from tokenry.pruning.eet.model import EETHashModel


@dataclass(frozen=True)
class EETTrainingConfig:
    """Settings of `EETTrainer`; the defaults are the released recipe.

    Attributes:
        learning_rate: peak rate.
        momentum: of SGD.
        weight_decay: of the optimizer.
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


def eet_training_arguments(
    output_dir: str, config: EETTrainingConfig | None = None, *, save: bool = True, **overrides: Any
) -> TrainingArguments:
    """Training arguments of the recipe: epochs, batch size, rates and seed of `config`; no clipping; the losses of every step.

    Args:
        output_dir: where the Trainer writes; ``train(resume_from_checkpoint=True)`` goes on from there.
        config: settings.
        save: write a checkpoint after every epoch.
        overrides: any other argument of ``TrainingArguments``.

    Raises:
        MissingDependencyError: accelerate is not installed.
    """
    optional("accelerate", "training")
    config = config or EETTrainingConfig()
    settings: dict[str, Any] = {
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup_steps": config.warmup_steps,
        "max_grad_norm": 0.0,
        "seed": config.seed,
        "save_strategy": "epoch" if save else "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "report_to": [],
        **overrides,
    }
    return TrainingArguments(output_dir=output_dir, **settings)


class EETLosses(nn.Module):
    """Student and teacher with their losses for a batch.

    With outputs (y, u) of the student, (y_T, u_T) of the teacher, target codes b, and y~ the student's logits for the image
    whose most important patches (teacher's last block) are hidden::

        L_S = class_weight (CE(y, t) + CE(y~, t)) + code_weight MSE(u, b) + transfer_weight mean(1 - cos(u, stopgrad u_T))
        L_T = CE(y_T, t) + MSE(u_T, b)
    """

    codes: Tensor

    def __init__(self, student: EETHashModel, teacher: EETHashModel | None, codes: Tensor, config: EETTrainingConfig) -> None:
        super().__init__()
        self.student, self.teacher, self.settings = student, teacher, config
        self.register_buffer("codes", codes.float().to(next(student.parameters()).device), persistent=False)

    def forward(self, images: Tensor, labels: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Both losses and their terms; ``student`` and ``teacher`` have separate graphs.

        `images` [B,C,H,W], `labels` [B] ints, `index` [B] positions in `codes`.
        """
        config, codes = self.settings, self.codes[index]
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


class EETTrainer(Trainer):
    """``transformers.Trainer`` that trains a student and its teacher side by side; see `EETLosses`.

    Args:
        student: the model with a pruner (or any `EETHashModel`).
        teacher: a dense `EETHashModel`, for example ``student.twin()``; None trains the student alone, which needs
            ``transfer_weight=0`` and ``hidden_patches=0``.
        codes: target codes [n,bits] of the n training images, from `solve_hash_codes`.
        config: settings.
        train_dataset: (image, label) pairs, item i belonging to ``codes[i]``.
        augment: optional function from a batch of images to a batch of images.
        args: from `eet_training_arguments`; None = those of `config`, and no checkpoints.
        options: everything else that ``Trainer`` takes.

    Raises:
        ValueError: codes or a data set that do not fit, a pruned teacher, or terms that need a teacher without one.
        FloatingPointError: in ``train()``, a loss that is not finite; its step changes no weight.
    """

    def __init__(
        self,
        student: EETHashModel,
        teacher: EETHashModel | None,
        codes: Tensor,
        config: EETTrainingConfig | None = None,
        *,
        train_dataset: Dataset[Any],
        augment: Callable[[Tensor], Tensor] | None = None,
        args: TrainingArguments | None = None,
        **options: Any,
    ) -> None:
        self.config = config = EETTrainingConfig() if config is None else config
        if teacher is None and (config.transfer_weight > 0 or config.hidden_patches > 0):
            raise ValueError("transfer_weight and hidden_patches must be 0 without a teacher")
        if teacher is not None and (teacher.pruner is not None or teacher is student):
            raise ValueError("teacher must be another model than the student, with pruner=None")
        count = check_shape("codes", check_codes("codes", codes), "n bits", bits=student.bits)["n"]
        if len(train_dataset) != count:  # type: ignore[arg-type]
            items = len(train_dataset)  # type: ignore[arg-type]
            raise ValueError(f"train_dataset must have one item per row of codes ({count}), got {items}")
        if options.get("eval_dataset") is not None:
            raise ValueError("eval_dataset is not used here: codes belong to training images; see evaluate_retrieval")
        self.augment = augment
        if args is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="tokenry-eet-")
            on_cpu = next(student.parameters()).device.type == "cpu"
            args = eet_training_arguments(self._scratch.name, config, save=False, use_cpu=on_cpu)
        self._told: dict[str, float] = {}
        super().__init__(
            model=EETLosses(student, teacher, codes, config), args=args, train_dataset=_Indexed(train_dataset),
            data_collator=_collate, **options,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)

    @property
    def history(self) -> list[dict[str, float]]:
        """Losses and terms of every logged step."""
        return [row for row in self.state.log_history if "student" in row]

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *unused: Any, **options: Any) -> Any:
        """Sum of the two losses."""
        images = inputs["images"] if self.augment is None else self.augment(inputs["images"])
        # one value per device where the Trainer spreads a batch over several
        terms = {name: term.mean() for name, term in model(images, inputs["labels"], inputs["index"]).items()}
        self._told = {name: float(term.detach()) for name, term in terms.items()}
        for name, value in self._told.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"loss {name} is {value} at step {self.state.global_step}; no weight was changed")
        return terms["student"] + terms["teacher"] if "teacher" in terms else terms["student"]

    def log(self, logs: dict[str, float], *rest: Any, **options: Any) -> None:
        """As in ``Trainer``, with the terms of the step."""
        super().log({**logs, **self._told} if "loss" in logs else logs, *rest, **options)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in an order that depends on the seed and the epoch alone."""
        order = _EpochOrder(len(self.train_dataset), self.args.seed)  # type: ignore[arg-type]
        loader: Any = DataLoader(
            self.train_dataset, self.args.train_batch_size, sampler=order, collate_fn=self.data_collator,  # type: ignore
            num_workers=self.args.dataloader_num_workers,
        )  # fmt: skip
        return self.accelerator.prepare(loader)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """SGD with momentum (or AdamW) over both models."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            parameters = [p for p in trained.parameters() if p.requires_grad]
            rate, decay = self.args.learning_rate, self.args.weight_decay
            if self.config.optimizer == "adamw":
                self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            else:
                self.optimizer = torch.optim.SGD(parameters, lr=rate, momentum=self.config.momentum, weight_decay=decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Linear warm-up, then cosine to 0 at the last step.

        Raises:
            ValueError: the warm-up is as long as the training.
        """
        if self.lr_scheduler is None:
            steps, warmup = num_training_steps, int(self.args.get_warmup_steps(num_training_steps))
            if warmup >= steps:
                raise ValueError(f"warmup_steps must be below the {steps} steps of the whole training, got {warmup}")

            def factor(step: int) -> float:
                if step < warmup:
                    return (step + 1) / warmup
                return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))

            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(chosen, factor)
        return self.lr_scheduler  # type: ignore[return-value]


class _Indexed(Dataset[Any]):
    """Adds its position to each item."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Any, Any, int]:
        image, label = self.dataset[index]
        return image, label, index


def _collate(items: Sequence[tuple[Any, Any, int]]) -> dict[str, Tensor]:
    images, labels, index = torch.utils.data.default_collate(list(items))
    return {"images": images, "labels": labels, "index": index}


class _EpochOrder(Sampler[int]):
    """All positions in an order of the epoch's own, so that a resumed run sees the same batches."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        # The order of ``DataLoader(shuffle=True, generator=...)``, which draws its workers' seed first.
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        yield from torch.randperm(self.count, generator=generator).tolist()
