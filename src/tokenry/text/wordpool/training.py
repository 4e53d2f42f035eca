"""Training recipe of the released runs, on transformers' Trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from tokenry.errors import optional


def wordpool_training_arguments(output_dir: str, **overrides: Any) -> TrainingArguments:
    """Training arguments of the released runs: AdamW 1e-4 at a constant rate, betas 0.9 and 0.95, weight decay 0.1, clip 1.0.

    50 epochs of batch 2; half precision where there is a CUDA device.

    Args:
        output_dir: where the Trainer writes.
        overrides: any other argument of ``TrainingArguments``.

    Raises:
        MissingDependencyError: accelerate is not installed.
    """
    optional("accelerate", "training")
    settings: dict[str, Any] = {
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "num_train_epochs": 50,
        "per_device_train_batch_size": 2,
        "fp16": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "report_to": [],
        **overrides,
    }
    return TrainingArguments(output_dir=output_dir, **settings)


def decayed_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters with and without weight decay: only the matrices of linear layers are decayed."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, (nn.Embedding, nn.LayerNorm)) for p in m.parameters()}
    decayed, rest = [], []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (decayed if parameter.dim() == 2 and id(parameter) not in embeddings else rest).append(parameter)
    return decayed, rest


class WordPoolTrainer(Trainer):
    """``transformers.Trainer`` whose AdamW decays linear layers only, as minGPT (the released code's base) does.

    Data sets yield ``{"words": ...}`` (`word_windows`); give a `WordPoolCollator` as ``data_collator``.
    """

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the betas of the arguments."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            decayed, rest = decayed_parameters(trained)
            groups = [{"params": decayed, "weight_decay": self.args.weight_decay}, {"params": rest, "weight_decay": 0.0}]
            betas = (self.args.adam_beta1, self.args.adam_beta2)
            self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, betas=betas, eps=self.args.adam_epsilon)
        return self.optimizer

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """As in ``Trainer``; predictions are the log-probabilities of words, one shape for all batches."""
        ignored = ["logits", "pooled", "states"] if ignore_keys is None else ignore_keys
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignored)
