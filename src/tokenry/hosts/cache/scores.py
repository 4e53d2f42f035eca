"""Attention scores of a cache layer that grows: the queries that vote, and what a step adds."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.attention import column_sums, decode_row
from tokenry.hosts.attention import LogitRule
from tokenry.hosts.cache.layer import TrackedLayer, padding_first


def latest_queries(layer: TrackedLayer, queries: Tensor) -> Tensor:
    """The layer's tail and the new queries [B,H,q,d] behind it, padding between real ones moved to the front of its row."""
    earlier = 0 if layer.tail is None else layer.tail.shape[2]
    joined = queries if layer.tail is None else torch.cat((layer.tail, queries), dim=2)
    if layer.real is None:
        return joined
    new = layer.real[:, -queries.shape[2] :]
    before = (layer.real.sum(dim=1) - new.sum(dim=1)).clamp(max=earlier)  # the tail itself is in this order already
    real = torch.cat((torch.arange(earlier, device=new.device) >= earlier - before[:, None], new), dim=1)
    order = padding_first(real)
    return joined if order is None else joined.gather(2, order[:, None, :, None].expand_as(joined))


def step_scores(queries: Tensor, layer: TrackedLayer, rule: LogitRule) -> Tensor:
    """[B,Hkv,T]: what the newest queries add to every slot, averaged over the query heads of a key head."""
    keys = layer.stored[0]
    if queries.shape[2] == 1:
        row = decode_row(queries, keys, mask=layer.real, **vars(rule)).mean(dim=2)
        return row if layer.real is None else row * layer.real[:, None, -1:]  # a padding query gives nothing
    return column_sums(queries, keys, mask=layer.real, reduce="mean", **vars(rule))


def add_scores(layer: TrackedLayer, sums: Tensor) -> None:
    """Add `sums` over all slots to the layer's scores over the earlier ones; a new slot enters with its own attention."""
    if layer.scores is not None:
        sums[..., : layer.scores.shape[-1]] += layer.scores
    layer.scores = sums
