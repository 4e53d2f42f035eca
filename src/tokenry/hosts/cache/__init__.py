"""Decoders whose KV cache is shortened: sessions, layers, policies."""

from tokenry.hosts.cache.layer import TrackedLayer
from tokenry.hosts.cache.policy import Budget, Compressed, Prompt, Signal, Slots
from tokenry.hosts.cache.prompt import Observe, fork_cache
from tokenry.hosts.cache.session import compress_cache

__all__ = ["Budget", "Compressed", "Observe", "Prompt", "Signal", "Slots", "TrackedLayer", "compress_cache", "fork_cache"]
