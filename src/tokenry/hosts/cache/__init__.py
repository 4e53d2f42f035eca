"""Decoders whose KV cache is shortened: sessions, layers, policies."""

from tokenry.hosts.cache.layer import ShortenedPast, TrackedLayer, TrackedSlidingLayer, tracked
from tokenry.hosts.cache.masks import as_layer_mask, of_layer_mask, slot_mask
from tokenry.hosts.cache.policy import Budget, Compressed, Prompt, Signal, Slots
from tokenry.hosts.cache.prompt import Observe, fork_cache
from tokenry.hosts.cache.session import compress_cache

__all__ = [
    "Budget",
    "Compressed",
    "Observe",
    "Prompt",
    "ShortenedPast",
    "Signal",
    "Slots",
    "TrackedLayer",
    "TrackedSlidingLayer",
    "as_layer_mask",
    "compress_cache",
    "fork_cache",
    "of_layer_mask",
    "slot_mask",
    "tracked",
]
