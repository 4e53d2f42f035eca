"""Per-token scores of visual tokens that are read off on the way: CLS attention, and functions of the projector's input.

The order of the tokens is restored where the host changes it after the score is known: LLaVA-NeXT and OneVision pack the crops
of an image into one sequence with separators, OneVision shrinks the frames of a clip, Qwen2.5-VL projects in window order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.attach import Hooks
from tokenry.hosts.vision.signals import ClsAttention, capture_cls_row
from tokenry.hosts.vlm.families import Shape, family_of, has_cls, part
from tokenry.hosts.wrappers import uncompiled

ProjectorSignal = Callable[[nn.Module, Tensor], Tensor]
"""(token-wise projector, its input [G,N,d]) -> score [G,N]; G counts images, or crops of images."""
Kind = Literal["image", "video"]
KINDS: tuple[Kind, ...] = ("image", "video")


@dataclass(frozen=True)
class Signals:
    """What to compute per visual token while the model encodes its images."""

    cls_attention: bool = False
    projector: Mapping[str, ProjectorSignal] = field(default_factory=dict)


@dataclass(frozen=True)
class Described:
    """Scores and layout of the tokens of one image, tile or frame."""

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

    def __init__(self, hooks: Hooks, model: Any, wanted: Signals) -> None:
        self.inner, self.family, self.wanted = model.model, family_of(model), wanted
        self.own = _Own()
        self.row: ClsAttention | None = None
        if wanted.cls_attention or wanted.projector:
            for name in (self.family.tower, self.family.projector):
                hooks.do(partial(uncompiled, self.inner, name))
        if wanted.cls_attention:
            if not has_cls(model):
                reason = "none of its visual tokens is one patch of a tower with a CLS token"
                raise UnsupportedModelError.of(model, ("models with a CLIP tower",), reason=reason)
            self.row = capture_cls_row(hooks, part(self.inner, self.family.tower))
        hooks.forward(part(self.inner, self.family.projector), self._at_projector)
        if hasattr(self.inner, "pack_image_features"):
            pack = self.inner.pack_image_features
            hooks.patch(self.inner, "pack_image_features", lambda *a, **k: self._at_packing(pack, *a, **k))

    def clear(self) -> None:
        """Forget the last forward."""
        self.own.values, self.own.packed = {}, None

    def describe(self, kind: Kind, entries: Sequence[Tensor], given: Mapping[str, Any]) -> list[tuple[Described, ...]]:
        """What the encoder's last run said about the tokens of each entry, in the language model's order.

        An entry is an image or a clip as ``get_image_features`` and ``get_video_features`` return them; it has several parts
        where its tokens are not one image: frames of a clip, tiles of a batch row. `given` are the encoder's arguments.
        """
        names = list(self.own.values)
        if kind == "image" and self.own.packed is not None:
            return [(described,) for described in self._describe_packed(names)]
        counts = [len(entry) for entry in entries]
        shapes = self.family.shapes(self.inner, given, counts)
        values = self._in_order(kind, given)
        entry_parts, start = [], 0
        for entry, shape in zip(entries, shapes, strict=True):
            parts = []
            for count, separators, grid in self._parts(kind, len(entry), shape):
                scores = {name: nn.functional.pad(values[name][start : start + count], (0, separators)) for name in names}
                parts.append(_described(entry, count, separators, scores, grid))
                start += count
            entry_parts.append(tuple(parts))
        return entry_parts

    def unobserved(self, kind: Kind, entry: Tensor) -> tuple[Described, ...]:
        """Parts of one entry [n,D] that came encoded from elsewhere: separators in images are told by their value.

        Raises:
            ValueError: a score was asked for that is read inside the encoder.
        """
        names = [*(["cls_attention"] if self.wanted.cls_attention else []), *self.wanted.projector]
        if names:
            pixels = "pixel_values" if kind == "image" else "pixel_values_videos"
            raise ValueError(f"{pixels} must be given: {names[0]} is read inside the encoder, which did not run")
        newline = getattr(self.inner, "image_newline", None)
        if kind == "image" and newline is not None:
            token = (entry != newline.to(entry)).any(dim=1)
            return (Described(token, torch.where(token, 0, -1), {}, None),)
        return tuple(_described(entry, n, extra, {}, None) for n, extra, _ in self._parts(kind, len(entry), None))

    def _parts(self, kind: Kind, n: int, shape: Shape | None) -> list[tuple[int, int, tuple[int, int] | None]]:
        """Tokens, separators behind them and grid of every part of an entry of `n` tokens."""
        if kind == "video" and hasattr(self.inner, "apply_pooling"):
            vision = self.inner.config.vision_config
            side = -(-(vision.image_size // vision.patch_size) // 2)
            frames = (n - 1) // side**2
            return [(side**2, int(frame == frames - 1), (side, side)) for frame in range(frames)]
        if self.family.entries == "row":
            each = self.inner.image_seq_len
            return [(each, 0, (isqrt(each), isqrt(each)))] * (n // each)
        if shape is None:
            return [(n, 0, None)]
        frames, rows, columns = shape
        return [(rows * columns, 0, (rows, columns))] * frames

    @torch.no_grad()
    def _at_projector(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
        if self.own.probing:
            return
        self.own.probing = True
        try:
            if self.wanted.projector:
                projector, x = self.family.reader(self.inner, module, args, kwargs)
                for name, score in self.wanted.projector.items():
                    self.own.values[name] = score(projector, x).float()
        finally:
            self.own.probing = False
        if self.row is not None:
            self.own.values["cls_attention"] = self.row.attention.mean(dim=1)

    def _in_order(self, kind: Kind, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """Scores [n] of all tokens in the language model's order."""
        values = self.own.values
        if kind == "video" and hasattr(self.inner, "apply_pooling"):
            values = {name: self.inner.apply_pooling(value.unsqueeze(-1)) for name, value in values.items()}
        flat = {name: value.reshape(-1) for name, value in values.items()}
        if self.family.order is not None and flat:
            grids = next(value for name, value in given.items() if name.endswith("_grid_thw") and value is not None)
            order = self.family.order(self.inner, grids)
            flat = {name: value[order.to(value.device)] for name, value in flat.items()}
        return flat

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


def _described(
    entry: Tensor, count: int, separators: int, scores: Mapping[str, Tensor], grid: tuple[int, int] | None
) -> Described:
    """`count` tokens and the separators behind them; with separators they are no grid."""
    token = torch.arange(count + separators, device=entry.device) < count
    return Described(token, torch.where(token, 0, -1), scores, None if separators else grid)
