"""The learned importance scorer of IDPruner, in the form of VisionSelector, with its differentiable top-k."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenry.core.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from tokenry.core.checks import check_finite, check_float, check_int, check_mask, check_range, check_shape

_BISECTIONS = 64


@dataclass(frozen=True)
class ScorerConfig:
    """Sizes of a scorer: width of the visual tokens and of its query and key (None = half; 1792 for 3584 in the release)."""

    hidden_size: int
    width: int | None = None

    def __post_init__(self) -> None:
        check_int("hidden_size", self.hidden_size, 2)
        if self.width is not None:
            check_int("width", self.width, 1)


class ImportanceScorer(nn.Module):
    """Score of a visual token: its query against the mean key of all tokens, ``q_i . mean_j k_j / sqrt(h)``.

    This equals the mean over j of ``q_i . k_j / sqrt(h)`` and costs O(N h) instead of O(N^2 h). Weights start at N(0, std 1e-4)
    and biases at 0.
    """

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width or config.hidden_size // 2
        self.query = nn.Linear(config.hidden_size, width)
        self.key = nn.Linear(config.hidden_size, width)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=1e-4)
            nn.init.zeros_(linear.bias)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores [B,N] of `tokens` [B,N,D]; `mask` [B,N] bool, False = not a token (left out of the mean, score 0)."""
        check_shape("tokens", check_float("tokens", tokens), "B N D", D=self.config.hidden_size)
        tokens = tokens.to(self.query.weight.dtype)
        query, key = self.query(tokens), self.key(tokens)
        if mask is None:
            mean = key.mean(dim=1)
        else:
            real = check_mask("mask", mask, tokens.shape[:2]).unsqueeze(-1).to(key.dtype)
            mean = (key * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
        scores = torch.einsum("bnh,bh->bn", query, mean) * query.shape[-1] ** -0.5
        return scores if mask is None else scores.masked_fill(~mask, 0.0)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` to `folder`."""
        write_checkpoint(folder, self, {"version": 1, **asdict(self.config)})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImportanceScorer:
        """Read a scorer from a local folder written by `save_pretrained`, or from a hub id that holds the same files."""
        path = Path(folder)
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(str(folder), allow_patterns=[WEIGHTS, CONFIG]))
        settings = json.loads((path / CONFIG).read_text())
        if settings.pop("version", None) != 1:
            raise ValueError(f"{path / CONFIG} is not the configuration of an importance scorer (version 1)")
        scorer = cls(ScorerConfig(**settings))
        scorer.load_state_dict(load_file(path / WEIGHTS))
        return scorer


class _SoftTopK(torch.autograd.Function):
    """sigmoid(s + t) with t found by bisection; the gradient accounts for t moving with s."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, budget: float, real: Tensor) -> Tensor:
        hidden = scores.masked_fill(~real, float("inf"))
        low = -scores.masked_fill(~real, float("-inf")).amax(dim=1, keepdim=True) - 10.0
        high = -hidden.amin(dim=1, keepdim=True) + 10.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = (torch.sigmoid(scores + middle) * real).sum(dim=1, keepdim=True) > budget
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        soft = torch.sigmoid(scores + (low + high) / 2) * real
        ctx.save_for_backward(soft)
        return soft

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (soft,) = ctx.saved_tensors
        slope = soft * (1 - soft)
        total = slope.sum(dim=1, keepdim=True).clamp(min=torch.finfo(slope.dtype).tiny)
        # Jacobian diag(v) - v v^T / sum(v): the sum of the outputs is pinned to the budget.
        return slope * (grads[0] - (slope * grads[0]).sum(dim=1, keepdim=True) / total), None, None


def soft_top_k(scores: Tensor, budget: float, *, mask: Tensor | None = None) -> Tensor:
    """Differentiable top-k: ``sigmoid(score + t)`` [B,N] float32 whose sum over the unmasked tokens is `budget`.

    t is bisected 64 times on [-max - 10, -min + 10]. Masked tokens get 0.

    Raises:
        ValueError: `budget` not inside (0, number of unmasked tokens) for some row; non-finite scores.
    """
    check_shape("scores", check_float("scores", scores), "B N")
    real = torch.ones_like(scores, dtype=torch.bool) if mask is None else check_mask("mask", mask, scores.shape)
    check_finite("scores", scores.masked_fill(~real, 0.0))
    check_range("budget", budget, 0.0, float(real.sum(dim=1).min()), low_open=True, high_open=True)
    values = scores if scores.dtype == torch.float64 else scores.float()
    return _SoftTopK.apply(values, budget, real)  # pyright: ignore[reportReturnType]
