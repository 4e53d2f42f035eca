"""Time and memory of a call: interleaved ratios in one process, the allocator's peak, and numbers moved."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def synchronise(device: str) -> None:
    """Wait for the device's queue, if it has one."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """Wall time of one call."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def time_ratio(call: Callable[[], Any], reference: Callable[[], Any], *, repeats: int = 5, device: str = "cpu") -> float:
    """Median over interleaved pairs of time(call) / time(reference), after one warm-up of each.

    Pairs are taken back to back, so that a machine that slows down slows both.
    """
    call()
    reference()
    pairs = [(seconds(call, device), seconds(reference, device)) for _ in range(repeats)]
    return statistics.median(ours / theirs for ours, theirs in pairs)


def peak_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """Most memory that tensors allocated during `call` held at one time, in bytes (what was there before does not count)."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write its life cycle to stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")  # pyright: ignore[reportAttributeAccessIssue]
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def numbers_moved(call: Callable[[], Any]) -> int:
    """Numbers that the operators of `call` read and write, without views: the same on every machine, however busy it is."""
    with _Traffic() as traffic:
        call()
    return traffic.numbers


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = ([t for t in tree_leaves(part) if isinstance(t, torch.Tensor)] for part in ((args, kwargs), out))
        places = {t.untyped_storage().data_ptr() for t in read}
        # Some views do not call themselves one (_unsafe_view); an operator that writes in place does move numbers.
        view = not func._schema.is_mutable and any(t.untyped_storage().data_ptr() in places for t in written)
        if not view:
            self.numbers += sum(t.numel() for t in (*read, *written))
        return out


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values in a transformers cache."""
    tensors: Sequence[Any] = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
