"""Scores several token sequences that share beginnings in one run of a causal LM, and keeps the keys and values they share."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from tokenry.errors import UnsupportedModelError
from tokenry.hosts.release import as_argument, release

_CHUNK = 256


class PathScorer:
    """One model with the keys and values of the paths it ran last.

    A path is a sequence of ids from the first token on. Rows of one run may differ in length: each is aligned to the right, and
    rows that share more with the cache give some of it back, so that no row has a hole. One run is one call of the model.

    Attributes:
        runs: calls of the model so far.
    """

    def __init__(self, model: Any, size: int) -> None:
        """`size`: number of ids that count; logits beyond it (padded embeddings) are left out before the softmax."""
        self.model = model
        self.size = size
        self.runs = 0
        self.caches = not getattr(model, "_is_stateful", False)
        self._rows: list[list[int]] = []
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @torch.inference_mode()
    def token_log_probs(self, path: Sequence[int]) -> Tensor:
        """Log-probability of every token of `path` given those before it, float64 on the CPU [len(path) - 1].

        Long paths go through the model in pieces of 256 tokens, so that logits never exist for all positions at once.
        """
        found = []
        for first in range(1, len(path), _CHUNK):
            stop = min(first + _CHUNK, len(path))
            after = self._forward([list(path[:stop])], [stop - first + 1])[0]
            targets = torch.tensor(path[first:stop], device=after.device)
            found.append(after[:-1].gather(1, targets[:, None])[:, 0].double().cpu())
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    @torch.inference_mode()
    def run(self, paths: Sequence[Sequence[int]], last: Sequence[int]) -> list[Tensor]:
        """Log-probabilities after the last ``last[r]`` tokens of every path, float32 on the CPU, each [last[r], V]."""
        return [x.cpu() for x in self._forward([list(path) for path in paths], list(last))]

    def _forward(self, paths: list[list[int]], last: list[int]) -> list[Tensor]:
        for path in paths:
            if self._limit and len(path) > self._limit:
                raise ValueError(f"prompt must fit the model's window of {self._limit} tokens, got {len(path)}")
        source = [self._best_row(path, len(path) - n) for path, n in zip(paths, last, strict=True)]
        new = max(len(path) - shared for path, (_, shared) in zip(paths, source, strict=True))
        keep = [max(len(path) - new, 0) for path in paths]
        width, device = max(keep), self.model.device
        ids = torch.zeros(len(paths), new, dtype=torch.long)
        mask = torch.zeros(len(paths), width + new, dtype=torch.long)
        position = torch.zeros(len(paths), new, dtype=torch.long)
        for r, path in enumerate(paths):
            fresh = len(path) - keep[r]
            ids[r, new - fresh :] = torch.tensor(path[keep[r] :])
            position[r, new - fresh :] = torch.arange(keep[r], len(path))
            mask[r, width - keep[r] : width] = 1
            mask[r, width + new - fresh :] = 1
        options: dict[str, Any] = {"logits_to_keep": max(last)} if self._keeps_logits else {}
        if len(paths) > 1 or int(mask.sum()) < mask.numel():
            options |= {"attention_mask": mask.to(device), "position_ids": position.to(device)}
        cache = self._cache([row for row, _ in source], keep) if self.caches else None
        self.runs += 1
        output = self.model(ids.to(device), use_cache=self.caches, **as_argument(cache), **options)
        if cache is not None:
            if not cache.get_seq_length():
                raise UnsupportedModelError(f"{type(self.model).__name__} left its cache empty; this is {release()}")
            self._layers = [(cast(Any, layer).keys, cast(Any, layer).values) for layer in cache.layers]
            self._rows = paths
        return [torch.log_softmax(output.logits[r, -n:, : self.size].float(), dim=-1) for r, n in enumerate(last)]

    def _best_row(self, path: list[int], most: int) -> tuple[int, int]:
        """Row of the cache that shares the longest beginning with `path`, and how much of it may be used."""
        best = (0, 0)
        for row, known in enumerate(self._rows if self.caches else []):
            shared = _common(known, path)
            if shared > best[1]:
                best = (row, shared)
        return best[0], min(best[1], most)

    def _cache(self, rows: list[int], keep: list[int]) -> DynamicCache:
        """A cache with the first ``keep[r]`` positions of the chosen rows, aligned to the right."""
        cache = DynamicCache()
        width = max(keep)
        if not width:
            return cache
        for index, (keys, values) in enumerate(self._layers):
            cache.update(self._aligned(keys, rows, keep, width), self._aligned(values, rows, keep, width), index)
        return cache

    def _aligned(self, x: Tensor, rows: list[int], keep: list[int], width: int) -> Tensor:
        pads = [x.shape[2] - len(self._rows[row]) for row in rows]
        if len(rows) == 1:
            return x[rows[0] : rows[0] + 1, :, pads[0] : pads[0] + width]
        found = x.new_zeros(len(rows), x.shape[1], width, x.shape[3])
        for r, (row, pad) in enumerate(zip(rows, pads, strict=True)):
            found[r, :, width - keep[r] :] = x[row, :, pad : pad + keep[r]]
        return found


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle
    return low
