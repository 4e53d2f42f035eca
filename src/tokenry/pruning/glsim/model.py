"""The two-pass classifier of GLSim."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils.generic import ModelOutput

from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.hosts.vision import (
    describe,
    fill,
    final_tokens,
    global_and_patches,
    image_size_of,
    load_vision_module,
    save_vision_module,
)
from tokenry.pruning.glsim.crops import crop_boxes, crop_images
from tokenry.pruning.glsim.similarity import METRICS, Metric, global_local_similarity

_KIND = "tokenry.glsim"
_EPS = 1e-12


@dataclass
class GLSimOutput(ModelOutput):
    """`loss` with labels, `logits` [B,classes], `similarity` [B,N], `boxes` [B,4], `crops` [B,C,H,W] where asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    similarity: Tensor | None = None
    boxes: Tensor | None = None
    crops: Tensor | None = None


class Aggregator(nn.Module):
    """One pre-norm transformer block and a layer norm over the two global features, without positions: [B,2,R] -> [B,2,R]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the aggregator width {width}, got {heads}")
        self.heads = heads
        self.norm_before = nn.LayerNorm(width, eps=_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm_after = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of `x` [B,T,R]."""
        q, k, v = self.qkv(self.norm_before(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.attention_out(mixed))
        return self.norm(x + self.dropout(self.mlp(self.norm_after(x))))


class GLSimClassifier(nn.Module):
    """Classifies the image together with a zoomed crop of its most CLS-like patches (GLSim).

    The first pass gives the CLS feature and the similarity; the crop goes through the same encoder, with gradient; both CLS
    features pass an optional reducer and the aggregator; the head reads the full-image position. Selection and box carry no
    gradient. One cross-entropy, no other loss.

    Args:
        backbone: a supported vision tower with a CLS token, square or not (or a classifier around one; its head is not used).
        num_classes: classes.
        top: patches O whose box is cropped.
        metric: similarity, ``"cosine"``, ``"l1"`` or ``"l2"``.
        width: width R of the reducer; None keeps the backbone's width and no reducer.
        aggregator: use the aggregator block.
        heads: heads of the aggregator; None is R / 64 rounded down, at least 1.
        head: ``"first"`` reads the full-image position; ``"mean"`` and ``"max"`` combine the head's outputs of both.
        anchors: ``"similarity"``, or ``"random"`` patches (the control of the paper's code).
        inclusive: keep the last selected patch row and column in the crop (see `crop_boxes`).
        min_size: smallest crop side in pixels.
        dropout: in the aggregator.
        seed: of the new weights and of random anchors.

    Raises:
        UnsupportedModelError: another kind of backbone, or one without CLS token.
        ValueError: options out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        top: int = 8,
        metric: Metric = "cosine",
        width: int | None = None,
        aggregator: bool = True,
        heads: int | None = None,
        head: Literal["first", "mean", "max"] = "first",
        anchors: Literal["similarity", "random"] = "similarity",
        inclusive: bool = False,
        min_size: int | None = None,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        host = describe(backbone)
        host.require_cls("GLSimClassifier")
        check_int("num_classes", num_classes, 2)
        check_int("top", top, 1)
        check_choice("metric", metric, METRICS)
        check_choice("head", head, ("first", "mean", "max"))
        check_choice("anchors", anchors, ("similarity", "random"))
        check_range("dropout", dropout, 0.0, 1.0, high_open=True)
        if not aggregator and head == "first":
            warnings.warn(
                "without the aggregator, head='first' never sees the crop: this is the plain classifier", stacklevel=2
            )
        self.settings: dict[str, Any] = {
            "num_classes": num_classes, "top": top, "metric": metric, "width": width, "aggregator": aggregator,
            "heads": heads, "head": head, "anchors": anchors, "inclusive": inclusive, "min_size": min_size,
            "dropout": dropout, "seed": seed,
        }  # fmt: skip
        size = host.width if width is None else check_int("width", width, 1)
        self.backbone = host.model
        self.reducer = nn.Identity() if width is None else nn.Linear(host.width, size)
        self.aggregator = Aggregator(size, heads or max(1, size // 64), dropout) if aggregator else nn.Identity()
        self.head = nn.Linear(size, num_classes)
        self._generator = torch.Generator().manual_seed(check_int("seed", seed, 0))
        self._initialise()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, *, return_crops: bool = False) -> GLSimOutput:
        """Logits of `pixel_values` [B,C,H,W], with loss where `labels` [B] are given.

        Raises:
            ValueError: `top` above the number of patches, or images whose sides are not multiples of the patch side.
        """
        tokens = global_and_patches(self.backbone, pixel_values)
        similarity = global_local_similarity(tokens.detach(), self.settings["metric"])
        boxes = self._boxes(similarity, image_size_of(pixel_values))
        crops = crop_images(pixel_values, boxes)
        second = final_tokens(self.backbone, crops).prefix[:, 0]
        pair = self.aggregator(self.reducer(torch.stack([tokens[:, 0], second], dim=1)))
        logits = self._read(pair)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return GLSimOutput(loss, logits, similarity, boxes, crops if return_crops else None)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights (safetensors) and configuration (JSON) to `folder`."""
        save_vision_module(folder, self, kind=_KIND, backbone=self.backbone, settings=self.settings)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GLSimClassifier:
        """Read what `save_pretrained` wrote; the model comes in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: files missing or damaged; the message names them.
        """
        backbone, settings, state = load_vision_module(folder, kind=_KIND)
        model = cls(backbone, **settings)
        fill(model, state, folder)
        return model.eval()

    def _boxes(self, similarity: Tensor, image_size: tuple[int, int]) -> Tensor:
        host = describe(self.backbone)
        options = self.settings
        metric = options["metric"]
        if options["anchors"] == "random":
            # The best of random numbers are O patches drawn without replacement.
            similarity = torch.rand(similarity.shape, generator=self._generator).to(similarity.device)
            metric = "cosine"
        return crop_boxes(
            similarity,
            options["top"],
            host.grid(image_size),
            host.patch,
            image_size,
            inclusive=options["inclusive"],
            metric=metric,
            min_size=options["min_size"],
        )

    def _read(self, pair: Tensor) -> Tensor:
        if self.settings["head"] == "first":
            return self.head(pair[:, 0])
        both = self.head(pair)
        return both.mean(dim=1) if self.settings["head"] == "mean" else both.amax(dim=1)

    def _initialise(self) -> None:
        for part in (self.reducer, self.aggregator):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight, generator=self._generator)
                    nn.init.normal_(module.bias, std=1e-6, generator=self._generator)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
