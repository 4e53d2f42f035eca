"""Pruners of visual tokens before the language model: which tokens form a unit with one budget, and how they are recorded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_choice
from tokenry.core.selection import top_k
from tokenry.hosts.vlm import BlockView, DecoderStage, Positions, Signals, VisualTokens, prune_prompt
from tokenry.hosts.wrappers import unwrapped
from tokenry.pruning.base import RECORDING, Kept, Pruner, PruningTrace, check_tokens

Scope = Literal["image", "prompt", "crop"]
VideoBudget = Literal["method", "frame", "clip"]
VIDEO_BUDGETS: tuple[VideoBudget, ...] = ("method", "frame", "clip")


@dataclass(frozen=True)
class BudgetUnit:
    """Tokens that share one budget: parts (image number, token indices) of one prompt."""

    parts: tuple[tuple[int, Tensor], ...]

    def __len__(self) -> int:
        return sum(len(index) for _, index in self.parts)


@dataclass(frozen=True)
class VisualPruner(Pruner):
    """Base of the pruners that shorten the prompt before the language model.

    A subclass gives `select`, and where it needs them `_importance` (per unit), `_signals` (what the host must read off) and
    `_stage` (removal inside the decoder).
    """

    @classmethod
    def at_budget(cls, keep: float | int, seed: int) -> Self:
        """The method as it is compared with others; `seed` matters where something is drawn."""
        return cls(keep)

    @contextmanager
    def attach(
        self, model: nn.Module, *, positions: Positions = "reindex", video_budget: VideoBudget = "method"
    ) -> Iterator[PruningTrace]:
        """Prune the prompts of `model` until the block ends; yields the trace, with an entry per image, tile and frame.

        Args:
            model: a vision-language model of transformers, of a class in `tokenry.hosts.vlm.SUPPORTED`.
            positions: ``"reindex"`` counts kept tokens 0, 1, ... (as LLaVA-based papers do), ``"gather"`` keeps their original
                positions; models with 3-D positions (Qwen) always keep them.
            video_budget: what shares one budget in a clip: ``"frame"`` = each frame (of Qwen: each pair that it merges) has its
                own, ``"clip"`` = all frames of a clip; ``"method"`` = what the method does with several images.

        Raises:
            UnsupportedModelError: another model class, or removal inside a decoder with sliding-window layers.
            RuntimeError: a pruner is attached to this model already.
        """
        check_choice("video_budget", video_budget, self._video_budgets())
        model = unwrapped(model)
        run = _Run(self, PruningTrace(), video_budget)
        stage = self._stage(model, run)
        with prune_prompt(
            model,
            type(self).__name__,
            run.choose,
            signals=self._signals(model),
            positions=positions,
            stage=stage,
            once=not self._batched(),
        ):
            yield run.trace

    def _scope(self) -> Scope:
        return "image"

    def _video_budgets(self) -> tuple[VideoBudget, ...]:
        """What `attach` takes as `video_budget`."""
        return VIDEO_BUDGETS

    def _signals(self, model: nn.Module) -> Signals:
        return Signals()

    def _importance(self, features: Tensor, tokens: Sequence[tuple[VisualTokens, Tensor]], number: int) -> Tensor | None:
        """Importance [n] of a unit whose tokens have `features` [n,D]; `number` counts units over the attachment."""
        return None

    def _select_unit(self, features: Tensor, importance: Tensor | None, grid: tuple[int, int] | None, number: int) -> Tensor:
        """Indices [B,K] for units of one size, `features` [B,n,D]."""
        return self.select(features, importance=importance)

    def _batched(self) -> bool:
        """Whether units of one size may be selected in one call (not where the result depends on the unit's number)."""
        return True

    def _budgets(self, units: Sequence[BudgetUnit]) -> list[int]:
        return [self.plan(len(unit)) for unit in units]

    def _stage(self, model: nn.Module, run: _Run) -> DecoderStage | None:
        return None


class _Chosen(threading.local):
    """What was chosen in the forward in flight, for the stage that follows in it."""

    images: Sequence[VisualTokens] = ()
    kept: Sequence[Tensor] = ()
    first_image = 0


@dataclass
class _Run:
    """One attachment: turns the host's images into units, lets the pruner select, writes the trace."""

    pruner: VisualPruner
    trace: PruningTrace
    video_budget: VideoBudget = "method"
    chosen: _Chosen = field(default_factory=_Chosen)
    units_seen: int = 0

    def choose(self, images: Sequence[VisualTokens]) -> list[Tensor]:
        """Ascending kept indices per image."""
        pruner = self.pruner
        kept = [(~image.prunable).nonzero().squeeze(1) for image in images]
        scores: list[Tensor | None] = [None] * len(images)
        units = _units(images, pruner._scope(), self.video_budget)
        for unit, chosen, importance in self._select(images, units):
            start = 0
            for number, index in unit.parts:
                here = chosen[(chosen >= start) & (chosen < start + len(index))] - start
                kept[number] = torch.cat([kept[number], index[here]])
                if importance is not None:
                    scores[number] = _merge(scores[number], images[number], index, importance[start : start + len(index)])
                start += len(index)
        ordered = [k.sort().values for k in kept]
        with RECORDING:
            start = self.trace.next_image()
            for i, (image, own) in enumerate(zip(images, ordered, strict=True)):
                self.trace.kept.append(Kept(start + i, None, own.cpu(), len(image.features), scores[i], image.grid))
        self.chosen.images, self.chosen.kept, self.chosen.first_image = images, ordered, start
        return ordered

    def _select(
        self, images: Sequence[VisualTokens], units: Sequence[BudgetUnit]
    ) -> Iterator[tuple[BudgetUnit, Tensor, Tensor | None]]:
        pruner = self.pruner
        prepared = []
        for unit, budget in zip(units, pruner._budgets(units), strict=True):
            tokens = [(images[number], index) for number, index in unit.parts]
            features = torch.cat([image.features[index] for image, index in tokens])
            with RECORDING:
                number, self.units_seen = self.units_seen, self.units_seen + 1
            if budget >= len(unit):
                yield unit, torch.arange(len(unit), device=features.device), None
                continue
            grid = tokens[0][0].grid if len(tokens) == 1 and bool(tokens[0][0].prunable.all()) else None
            prepared.append((unit, number, features, pruner._importance(features, tokens, number), grid))
        for group in _groups(prepared, pruner._batched()):
            features = torch.stack([item[2] for item in group])
            given = None if group[0][3] is None else torch.stack([item[3] for item in group])
            chosen = pruner._select_unit(features, given, group[0][4], group[0][1])
            for item, row in zip(group, chosen, strict=True):
                yield item[0], row, item[3]

    def record_stage(self, layer: int, keep: Tensor, view: BlockView) -> None:
        """Trace a decision inside the decoder: `keep` [B,T] over the slots of the view."""
        images, all_kept, start = self.chosen.images, self.chosen.kept, self.chosen.first_image
        for i, (image, kept) in enumerate(zip(images, all_kept, strict=True)):
            before = sum(len(k) for m, k in zip(images[:i], all_kept[:i], strict=True) if m.row == image.row)
            slots = view.visual[image.row].nonzero().squeeze(1)[before : before + len(kept)]
            left = kept[keep[image.row, slots]]
            if len(left) < len(kept):
                self.trace.kept.append(Kept(start + i, layer, left.cpu(), len(kept), None, image.grid))


def _merge(earlier: Tensor | None, image: VisualTokens, index: Tensor, values: Tensor) -> Tensor:
    scores = torch.zeros(len(image.features)) if earlier is None else earlier
    scores[index.cpu()] = values.detach().float().cpu()
    return scores


def _units(images: Sequence[VisualTokens], scope: Scope, video: VideoBudget) -> list[BudgetUnit]:
    tokens = [image.prunable.nonzero().squeeze(1) for image in images]

    def together(numbers: Sequence[int]) -> BudgetUnit:
        return BudgetUnit(tuple((i, tokens[i]) for i in numbers))

    units, rest = [], list(range(len(images)))
    if video != "method":
        frames = [i for i in rest if images[i].clip is not None]
        rest = [i for i in rest if images[i].clip is None]
        groups = _grouped(frames, lambda i: images[i].clip if video == "clip" else i)
        units = [together(group) for group in groups]
    if scope == "prompt":
        return units + [together(group) for group in _grouped(rest, lambda i: images[i].row)]
    if scope == "image":
        return units + [together([i]) for i in rest]
    return units + [
        BudgetUnit(((i, (images[i].crop == crop).nonzero().squeeze(1)),))
        for i in rest
        for crop in images[i].crop[images[i].crop >= 0].unique().tolist()
    ]


def _grouped(numbers: Sequence[int], key: Callable[[int], Any]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.values())


def _groups(prepared: list[Any], batched: bool) -> list[list[Any]]:
    """Units of equal size, presence of importance and grid go together."""
    groups: dict[Any, list[Any]] = {}
    for position, item in enumerate(prepared):
        key = (len(item[0]), item[3] is None, item[4]) if batched else position
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def identity(features: Tensor) -> Tensor:
    """All indices in order, [B,N]: what every pruner returns when its budget is everything."""
    return torch.arange(features.shape[1], device=features.device).expand(features.shape[0], -1)


def rank_by(features: Tensor, importance: Tensor | None, k: int, mask: Tensor | None) -> Tensor:
    """Top-k by importance with the messages of a pruner."""
    if importance is None:
        raise ValueError("importance must be given, got None")
    _, n = check_tokens(features, importance)
    if k == n and mask is None:
        return identity(features)
    return top_k(importance, k, mask=mask)
