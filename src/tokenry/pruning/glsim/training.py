"""Training recipe of GLSim: SGD, cosine decay with warm-up, on transformers' Trainer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments

from tokenry.core.checks import check_choice, check_range
from tokenry.errors import optional


def glsim_training_arguments(
    output_dir: str, *, base_learning_rate: float = 0.01, scale_learning_rate: bool = False, **overrides: Any
) -> TrainingArguments:
    """Training arguments with the released recipe: 50 epochs, batch 8, 500 warm-up steps, no weight decay, seed 1.

    Args:
        output_dir: where the Trainer writes.
        base_learning_rate: the recipe searches {0.03, 0.01, 0.003, 0.001}.
        scale_learning_rate: multiply it by batch / 8, the released option for other batch sizes (per device batch).
        overrides: any other argument of ``TrainingArguments``.

    Raises:
        MissingDependencyError: accelerate is not installed.
    """
    optional("accelerate", "training")
    check_range("base_learning_rate", base_learning_rate, 0.0, low_open=True)
    settings: dict[str, Any] = {
        "num_train_epochs": 50,
        "per_device_train_batch_size": 8,
        "warmup_steps": 500,
        "weight_decay": 0.0,
        "seed": 1,
        "max_grad_norm": 0.0,
        "report_to": [],
        **overrides,
    }
    factor = settings["per_device_train_batch_size"] / 8 if scale_learning_rate else 1.0
    return TrainingArguments(output_dir=output_dir, learning_rate=base_learning_rate * factor, **settings)


class GLSimTrainer(Trainer):
    """``transformers.Trainer`` for `GLSimClassifier` with the optimizer and schedule of the released recipe.

    SGD with momentum 0.9; linear warm-up from 1e-6 to the learning rate, cosine decay to 1e-5. Data sets yield
    ``{"pixel_values": [C,H,W], "labels": int}``. Checkpoints, resuming and several devices are the Trainer's.

    Args:
        optimizer_name: ``"sgd"`` as in the recipe, or ``"adamw"`` for training from scratch.
        momentum: of SGD.
        start_learning_rate: first rate of the warm-up.
        final_learning_rate: last rate of the decay.
        arguments: everything that ``Trainer`` takes.

    Raises:
        ValueError: options out of range.
    """

    def __init__(
        self,
        *arguments: Any,
        optimizer_name: str = "sgd",
        momentum: float = 0.9,
        start_learning_rate: float = 1e-6,
        final_learning_rate: float = 1e-5,
        **options: Any,
    ) -> None:
        self.optimizer_name = check_choice("optimizer_name", optimizer_name, ("sgd", "adamw"))
        self.momentum = check_range("momentum", momentum, 0.0, 1.0, high_open=True)
        self.start_learning_rate = check_range("start_learning_rate", start_learning_rate, 0.0)
        self.final_learning_rate = check_range("final_learning_rate", final_learning_rate, 0.0)
        super().__init__(*arguments, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """SGD with momentum (or AdamW) over the parameters that need a gradient."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            parameters = [p for p in trained.parameters() if p.requires_grad]
            rate, decay = self.args.learning_rate, self.args.weight_decay
            if self.optimizer_name == "adamw":
                self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            else:
                self.optimizer = torch.optim.SGD(parameters, lr=rate, momentum=self.momentum, weight_decay=decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Linear warm-up, then cosine to the final rate at the last step.

        Raises:
            ValueError: the warm-up is as long as the training.
        """
        if self.lr_scheduler is None:
            warmup, peak = int(self.args.get_warmup_steps(num_training_steps)), self.args.learning_rate
            if warmup >= num_training_steps:
                raise ValueError(f"warmup_steps must be below the {num_training_steps} training steps, got {warmup}")

            def factor(step: int) -> float:
                if step < warmup:
                    rate = self.start_learning_rate + (peak - self.start_learning_rate) * step / warmup
                else:
                    done = (step - warmup) / max(1, num_training_steps - warmup)
                    rate = self.final_learning_rate
                    rate += (peak - self.final_learning_rate) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
                return rate / peak

            chosen: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(chosen, factor)
        return self.lr_scheduler  # type: ignore[return-value]

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As in ``Trainer``; predictions are the logits alone."""
        ignored = ["similarity", "boxes", "crops"] if ignore_keys is None else ignore_keys
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignored)
