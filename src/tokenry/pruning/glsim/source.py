"""GLS as an importance source, beside the CLS row of attention, behind one interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice, check_device, check_shape
from tokenry.core.selection import top_k
from tokenry.errors import UnsupportedModelError
from tokenry.hosts.vision import cls_attention, global_and_patches
from tokenry.pruning.base import Pruner, PruningTrace, check_tokens
from tokenry.pruning.glsim.similarity import METRICS, Metric, best_first, global_local_similarity


@dataclass(frozen=True)
class GLSim(Pruner):
    """Ranks patches by their similarity to the global token, or by CLS attention, and keeps the best.

    GLS is a property of well pre-trained transformers. On a backbone of your own, compare it with ``score="cls_attention"``
    first: in small models trained from scratch the most CLS-like patches can be background.

    Attributes:
        keep: share or count of patches for `select`.
        score: ``"gls"`` (no attention needed) or ``"cls_attention"`` (mean over heads of the last block's CLS row).
        metric: of GLS.
        anchor: global token of GLS: ``"cls"``, or ``"pooled"`` for SigLIP's attention-pooled vector.
    """

    score: Literal["gls", "cls_attention"] = "gls"
    metric: Metric = "cosine"
    anchor: Literal["cls", "pooled"] = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("score", self.score, ("gls", "cls_attention"))
        check_choice("metric", self.metric, METRICS)
        check_choice("anchor", self.anchor, ("cls", "pooled"))

    @torch.no_grad()
    def importance(self, model: nn.Module, pixel_values: Tensor, *, resize: bool = False, **inputs: Any) -> Tensor:
        """Importance [B,N] of the patches of `pixel_values` [B,C,H,W] in a vision tower; larger is better for every score.

        `inputs` is what else the model takes, such as the ``spatial_shapes`` of SigLIP 2.

        Raises:
            UnsupportedModelError: unknown class, or no CLS token where one is needed.
        """
        if self.score == "cls_attention":
            return cls_attention(model, pixel_values, resize=resize).mean(dim=1)
        tokens = global_and_patches(model, pixel_values, anchor=self.anchor, resize=resize, **inputs)
        return best_first(global_local_similarity(tokens, self.metric), self.metric)

    @torch.no_grad()
    def select(
        self,
        features: Tensor,
        *,
        importance: Tensor | None = None,
        mask: Tensor | None = None,
        global_token: Tensor | None = None,
    ) -> Tensor:
        """Indices [B,K] of the best patches, best first; K = N returns 0..N-1.

        Args:
            features: patches [B,N,D].
            importance: [B,N], for example from `importance`; None computes GLS from `features` and `global_token`.
            mask: [B,N] bool, False = never chosen.
            global_token: CLS features [B,D], where no `importance` is given.

        Raises:
            ValueError: neither `importance` nor `global_token` is given, or shapes that do not agree.
        """
        batch, n = check_tokens(features, importance)
        if importance is None:
            if global_token is None:
                raise ValueError("importance or global_token must be given, got neither")
            check_shape("global_token", global_token, "B D", B=batch, D=features.shape[2])
            check_device("global_token", global_token, "features", features)
            tokens = torch.cat([global_token[:, None].to(features.dtype), features], dim=1)
            importance = best_first(global_local_similarity(tokens, self.metric), self.metric)
        k = self.plan(n)
        if k == n and mask is None:
            return torch.arange(n, device=features.device).expand(batch, -1)
        return top_k(importance, k, mask=mask)

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[PruningTrace]:
        """Refused: GLS is known only after the last block, when there is nothing left to prune inside the same encoder.

        Raises:
            UnsupportedModelError: always; `importance` gives the scores for any other pruner.
        """
        raise UnsupportedModelError.of(
            model,
            ("GLSim.importance(vision_tower, pixels) with any selector",),
            reason="global-local similarity is known only after the last block",
        )
        yield PruningTrace()
