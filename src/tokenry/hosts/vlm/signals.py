"""Per-token scores of visual tokens that are read off on the way: CLS attention, and functions of the projector's input.

The order of the tokens is restored where the host changes it after the score is known: LLaVA-OneVision packs the crops of an
image into one sequence with separators, Qwen2.5-VL runs its projector in window order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks
from tokenry.hosts.vision.signals import ClsAttention, capture_cls_row

ProjectorSignal = Callable[[nn.Module, Tensor], Tensor]
"""(token-wise projector, its input [G,N,d]) -> score [G,N]; G counts images, or crops of images."""


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


@dataclass(frozen=True)
class Signals:
    """What to compute per visual token while the model encodes its images."""

    cls_attention: bool = False
    projector: Mapping[str, ProjectorSignal] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """Scores and layout of one image's tokens."""

    prunable: Tensor
    crop: Tensor
    signals: Mapping[str, Tensor]
    grid: tuple[int, int] | None


class _Own(threading.local):
    """What one thread's encoder run has left so far."""

    packed: list[Tensor] | None = None
    probing = False

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.packed_shapes: list[tuple[int, int]] = []


class SignalCapture:
    """Computes the requested scores during the encoder's forward and hands them out in the language model's order."""

    def __init__(self, hooks: Hooks, inner: Any, wanted: Signals) -> None:
        self.inner, self.wanted = inner, wanted
        self.own = _Own()
        self.merge = hasattr(inner, "visual")
        self.row: ClsAttention | None = None
        if wanted.cls_attention:
            if self.merge:
                raise UnsupportedModelError.of(inner, ("models with a CLIP tower",), reason="its tower has no CLS token")
            self.row = capture_cls_row(hooks, inner.vision_tower)
        projector = inner.visual.merger if self.merge else inner.multi_modal_projector
        hooks.forward(projector, self._at_projector)
        if hasattr(inner, "pack_image_features"):
            pack = inner.pack_image_features
            hooks.patch(inner, "pack_image_features", lambda *a, **k: self._at_packing(pack, *a, **k))

    def clear(self) -> None:
        """Forget the last forward."""
        self.own.values, self.own.packed = {}, None

    def describe(self, features: Sequence[Tensor], grid_thw: Tensor | None) -> list[Described]:
        """What the encoder's last run said about the tokens of each image, in the language model's order."""
        names = list(self.own.values)
        if self.own.packed is not None:
            return self._describe_packed(names)
        if self.merge and names:
            self._to_raster(grid_thw)
        counts = [len(f) for f in features]
        flat = {name: self.own.values[name].reshape(-1).split(counts) for name in names}
        return [
            Described(
                torch.ones(n, dtype=torch.bool, device=f.device),
                torch.zeros(n, dtype=torch.long, device=f.device),
                {name: flat[name][i] for name in names},
                self._grid(i, n, grid_thw),
            )
            for i, (n, f) in enumerate(zip(counts, features, strict=True))
        ]

    def unobserved(self, features: Tensor) -> Described:
        """Layout of one image whose features [n,D] came encoded from elsewhere: separators are told by their value.

        Raises:
            ValueError: a score was asked for that is read inside the encoder.
        """
        names = [*(["cls_attention"] if self.wanted.cls_attention else []), *self.wanted.projector]
        if names:
            raise ValueError(f"pixel_values must be given: {names[0]} is read inside the encoder, which did not run")
        newline = getattr(self.inner, "image_newline", None)
        token = torch.ones(len(features), dtype=torch.bool, device=features.device)
        if newline is not None:
            token = (features != newline.to(features)).any(dim=1)
        return Described(token, torch.where(token, 0, -1), {}, None)

    def _grid(self, image: int, n: int, grid_thw: Tensor | None) -> tuple[int, int] | None:
        if grid_thw is not None:
            time, rows, columns = (int(v) for v in grid_thw[image])
            unit = self.inner.visual.spatial_merge_size
            return (rows // unit, columns // unit) if time == 1 else None
        side = isqrt(n)
        return (side, side) if side * side == n else None

    @torch.no_grad()
    def _at_projector(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        if self.own.probing:
            return
        x: Tensor = args[0].detach() if args else next(iter(kwargs.values())).detach()
        projector = TokenwiseProjector(module)
        if self.merge:
            projector = TokenwiseProjector(module, x.shape[-1])
            x = x.reshape(1, -1, self.inner.visual.spatial_merge_size**2 * x.shape[-1])
        self.own.probing = True
        try:
            for name, score in self.wanted.projector.items():
                self.own.values[name] = score(projector, x).float()
        finally:
            self.own.probing = False
        if self.row is not None:
            self.own.values["cls_attention"] = self.row.attention.mean(dim=1)

    def _to_raster(self, grid_thw: Tensor | None) -> None:
        from transformers.vision_utils import get_vision_window_index

        visual = self.inner.visual
        window, _ = get_vision_window_index(
            grid_thw,  # pyright: ignore[reportArgumentType]
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
        )
        order = torch.argsort(window)
        self.own.values = {name: value.reshape(-1)[order.to(value.device)] for name, value in self.own.values.items()}

    def _at_packing(self, pack: Callable[..., Any], image_features: Any, image_sizes: Any, *args: Any, **kwargs: Any) -> Any:
        """Send crop numbers and scores through the same view, un-padding and resizing as the features."""
        names = list(self.own.values)
        tables, start, shapes = [], 0, []
        for features, size in zip(image_features, image_sizes, strict=True):
            crops, tokens = features.shape[:2]
            columns = self._tile_columns(size) if crops > 1 else 1
            number = torch.arange(crops, device=features.device) - 1
            base = torch.zeros(crops, tokens, 4, device=features.device)
            base[..., 0] = 1.0
            base[..., 1] = torch.div(number, columns, rounding_mode="floor").unsqueeze(1)
            base[..., 2] = (number % columns).unsqueeze(1)
            base[0, :, 3] = 1.0
            scores = [self.own.values[name][start : start + crops].unsqueeze(-1) for name in names]
            tables.append(torch.cat([base, *scores], dim=-1))
            shapes.append((crops, columns))
            start += crops
        plain = {**kwargs}
        if plain.get("image_newline") is not None:
            plain["image_newline"] = torch.zeros(4 + len(names), device=tables[0].device)
        packed: Any = pack(tables, image_sizes, *args, **plain)
        self.own.packed = packed[0]
        self.own.packed_shapes = shapes
        return pack(image_features, image_sizes, *args, **kwargs)

    def _tile_columns(self, size: Any) -> int:
        from transformers.models.llava_onevision.modeling_llava_onevision import get_anyres_image_grid_shape

        config = self.inner.config
        return get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)[1]

    def _describe_packed(self, names: Sequence[str]) -> list[Described]:
        assert self.own.packed is not None
        described = []
        for table, (crops, columns) in zip(self.own.packed, self.own.packed_shapes, strict=True):
            token = table[:, 0] > 0.5
            tile = 1 + table[:, 1].round().long() * columns + table[:, 2].round().long()
            crop = torch.where(table[:, 3] > 0.5, 0, tile).masked_fill(~token, -1)
            scores = {name: table[:, 4 + i] for i, name in enumerate(names)}
            side = isqrt(int(token.sum()))
            grid = (side, side) if crops == 1 and side * side == int(token.sum()) else None
            described.append(Described(token, crop, scores, grid))
        return described
