"""A vision transformer with EET's two heads: class logits, and a hash embedding computed from the logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_int
from tokenry.hosts.attach import attached
from tokenry.hosts.vision import capture_cls_row, describe, fill, final_tokens, load_vision_module, save_vision_module
from tokenry.pruning.eet.hashing import binary_codes
from tokenry.pruning.eet.importance import content_importance
from tokenry.pruning.eet.prune import EET
from tokenry.pruning.vit_schedule import PatchPruner

_KIND = "tokenry.eet"


class HashOutput(NamedTuple):
    """`logits` [B,c], hash `embedding` [B,bits] (its signs are the code), and last-block `importance` [B,N] where asked for."""

    logits: Tensor
    embedding: Tensor
    importance: Tensor | None


class EETHashModel(nn.Module):
    """Class logits y = W_c CLS, and hash embedding u = W_h y: the hash head sits on the logits, without tanh.

    Student and teacher have this one form; the student has a `pruner`, the teacher none.

    Args:
        backbone: a supported vision tower with a CLS token (``ViTModel``, ``DINOv3ViTModel``, ``CLIPVisionModel`` ...).
        num_classes: c.
        bits: code length K.
        pruner: `EET` or any baseline of `tokenry.pruning.vit_baselines`, active in every forward; None: dense.

    Raises:
        UnsupportedModelError: another kind of backbone, or one without CLS token.
        ValueError: a schedule that the backbone's depth does not have.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, bits: int, *, pruner: PatchPruner | None = None) -> None:
        super().__init__()
        host = describe(backbone)
        host.require_cls("EETHashModel")
        if pruner is not None:
            pruner.schedule(host.depth)
        self.backbone = host.model
        self.pruner = pruner
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.bits = check_int("bits", bits, 1)
        self.classifier = nn.Linear(host.width, num_classes)
        self.hash = nn.Linear(num_classes, bits)

    def forward(self, pixel_values: Tensor, *, importance: bool = False) -> HashOutput:
        """Logits, embedding and, for a dense model where `importance` is set, the content importance of the last block.

        Raises:
            ValueError: `importance` asked from a model that prunes (its last block sees only some patches).
        """
        if importance and self.pruner is not None:
            raise ValueError("importance covers all patches, so it needs a model with pruner=None")
        scores = None
        if self.pruner is not None:
            with self.pruner.attach(self.backbone, record=False):
                cls = final_tokens(self.backbone, pixel_values).prefix[:, 0]
        elif importance:
            with attached(self.backbone, owner="EETHashModel") as hooks:
                row = capture_cls_row(hooks, self.backbone)
                cls = final_tokens(self.backbone, pixel_values).prefix[:, 0]
                with torch.no_grad():
                    scores = content_importance(row.attention, row.content)
        else:
            cls = final_tokens(self.backbone, pixel_values).prefix[:, 0]
        logits = self.classifier(cls)
        return HashOutput(logits, self.hash(logits), scores)

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Codes [B,bits] int8 in {-1,+1}: signs of the embedding, in evaluation mode."""
        training = self.training
        self.eval()
        try:
            return binary_codes(self(pixel_values).embedding)
        finally:
            self.train(training)

    def twin(self, *, pruner: PatchPruner | None = None) -> EETHashModel:
        """A copy with the same weights and another pruner: the teacher of a student (no pruner), or the reverse."""
        other = copy.deepcopy(self)
        if pruner is not None:
            pruner.schedule(describe(other.backbone).depth)
        other.pruner = pruner
        return other

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors) and configuration (JSON) to `folder`. Only `EET` pruners are written.

        Raises:
            TypeError: another kind of pruner.
        """
        if self.pruner is not None and type(self.pruner) is not EET:
            raise TypeError(f"pruner must be EET or None to be saved, got {type(self.pruner).__name__}")
        keep = None if self.pruner is None else dict(self.pruner.schedule(describe(self.backbone).depth))
        settings: dict[str, Any] = {
            "num_classes": self.num_classes,
            "bits": self.bits,
            "keep": None if keep is None else sorted(keep.items()),
        }
        save_vision_module(folder, self, kind=_KIND, backbone=self.backbone, settings=settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EETHashModel:
        """Read what `save_pretrained` wrote; the model comes in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: files missing or damaged; the message names them.
        """
        backbone, settings, state = load_vision_module(folder, kind=_KIND)
        pruner = None if settings["keep"] is None else EET(keep={int(b): k for b, k in settings["keep"]})
        model = cls(backbone, settings["num_classes"], settings["bits"], pruner=pruner)
        fill(model, state, folder)
        return model.eval()
