"""Projectors as maps of single tokens, whatever they read: one patch, a group of patches, or the average of some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Reader = Callable[[Any, nn.Module, tuple, Mapping[str, Any]], tuple[nn.Module, Tensor]]
"""(the model inside, the projector, its arguments) -> the map of single tokens and its input [G,N,d], as projected."""


class TokenwiseProjector(nn.Module):
    """A projector as a map of single tokens; where one output token reads a group of patches, the group is the token."""

    def __init__(self, module: nn.Module, patch_width: int | None = None) -> None:
        super().__init__()
        self.module, self.patch_width = module, patch_width

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., N, d] -> [..., N, D]."""
        if self.patch_width is None:
            return self.module(tokens)
        return self.module(tokens.reshape(-1, self.patch_width)).view(*tokens.shape[:-1], -1)


class _Pooled(nn.Module):
    """Gemma 3's projector behind its pooling: the average of some patches is the token."""

    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., N, d] -> [..., N, D]."""
        normed = self.projector.mm_soft_emb_norm(tokens)
        return normed @ self.projector.mm_input_projection_weight.to(normed)


class _Mistral3Group(nn.Module):
    """Mistral 3's projector for groups of patches, concatenated patch by patch."""

    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, groups: Tensor) -> Tensor:
        """[..., N, k*k*d] -> [..., N, D]."""
        projector, unit = self.projector, self.projector.patch_merger.spatial_merge_size**2
        normed = projector.norm(groups.unflatten(-1, (unit, -1)))
        # The merging layer wants the patches of a group side by side for every channel.
        merged = projector.patch_merger.merging_layer(normed.transpose(-1, -2).flatten(-2))
        return projector.linear_2(projector.act(projector.linear_1(merged)))


def _given(args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    return (args[0] if args else next(iter(kwargs.values()))).detach()


def single_tokens(inner: Any, projector: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[nn.Module, Tensor]:
    """A projector that is called with one row per token: [G,N,d], or [n,d] for all images in one."""
    x = _given(args, kwargs)
    return TokenwiseProjector(projector), x if x.dim() == 3 else x.unsqueeze(0)


def grouped_patches(inner: Any, projector: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> tuple[nn.Module, Tensor]:
    """Qwen's merger: the patches [n,d] that make up a token follow each other; the token is their concatenation."""
    x = _given(args, kwargs)
    width, unit = x.shape[-1], inner.visual.spatial_merge_size**2
    return TokenwiseProjector(projector, width), x.reshape(1, -1, unit * width)


def pooled_patches(inner: Any, projector: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[nn.Module, Tensor]:
    """Gemma 3: squares of patches are averaged first; a shift of the average is, up to a factor, one of all its patches."""
    x = _given(args, kwargs)
    side = projector.patches_per_image
    pooled = projector.avg_pool(x.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
    return _Pooled(projector), pooled


def mistral3_groups(inner: Any, projector: Any, args: tuple, kwargs: Mapping[str, Any]) -> tuple[nn.Module, Tensor]:
    """Mistral 3: squares of patches of every image [n,d] are merged; the token is their concatenation."""
    x = _given(args, kwargs)
    sizes = args[1] if len(args) > 1 else kwargs["image_sizes"]
    merger = projector.patch_merger
    grids = [(int(height) // merger.patch_size, int(width) // merger.patch_size) for height, width in sizes]
    unit, groups = merger.spatial_merge_size, []
    for patches, (rows, columns) in zip(x.split([r * c for r, c in grids]), grids, strict=True):
        squares = patches.view(rows, columns, -1)[: rows // unit * unit, : columns // unit * unit]
        squares = squares.unflatten(1, (-1, unit)).unflatten(0, (-1, unit)).transpose(1, 2)
        groups.append(squares.flatten(2).flatten(0, 1))
    return _Mistral3Group(projector), torch.cat(groups).unsqueeze(0)
