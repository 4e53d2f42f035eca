"""Entropies of independent bits: exact for one sample, exact or per group for a batch; never an N x 2^bits matrix.

With logits l_i = log p(bit_i = 1) - log p(bit_i = 0), the softmax over all 2^d sign vectors is the product over bits of
sigmoid(+-l_i), so that everything below needs d numbers a sample. Natural logarithms.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.codebooks.ranks import joined_mean

# A joint distribution over 2^bits codes is laid out up to here (one float32 each).
MAX_JOINT_BITS = 18


def bernoulli_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a bit with these logits, elementwise, exact in both tails."""
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def sample_entropy(logits: Tensor, weights: Tensor | None = None, *, joined: bool = False) -> Tensor:
    """Mean over samples of the joint entropy of the bits, [N, d] -> 0-dim: exact, the sum over bits. Eq.: E_z[H(p(.|z))].

    `joined` takes the samples of all ranks.
    """
    return weighted_mean(bernoulli_entropy(logits).sum(dim=-1), weights, joined=joined)


def batch_entropy(logits: Tensor, groups: Sequence[int], weights: Tensor | None = None, *, joined: bool = False) -> Tensor:
    """Sum over groups of bits of the entropy of the batch-mean distribution, [N, d] -> 0-dim. Eq.: H(E_z[p(.|z)]).

    `groups` holds the number of bits of each group, in order. One group gives the joint entropy exactly; several give an
    upper bound of it (subadditivity). `joined` takes the samples of all ranks.
    """
    parts = [entropy(joint_mean(part, weights, joined=joined)) for part in logits.split(list(groups), dim=-1)]
    return torch.stack(parts).sum()


def entropy(probabilities: Tensor) -> Tensor:
    """-sum p ln p with 0 ln 0 = 0 over the last axis; its gradient is finite at p = 0."""
    return -(probabilities * probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()).sum(dim=-1)


def joint_mean(logits: Tensor, weights: Tensor | None = None, *, joined: bool = False) -> Tensor:
    """Batch-mean distribution over the 2^g values of g bits, [N, g] -> [2^g]; the first bit is the most significant.

    The product over bits splits into two halves, so that the mean over samples of their outer product is one matrix
    product: memory O(N 2^(g/2) + 2^g).
    """
    ones = torch.sigmoid(logits)
    both = torch.stack([torch.sigmoid(-logits), ones], dim=-1)
    half = logits.shape[-1] // 2
    high, low = _products(both[:, :half]), _products(both[:, half:])
    count = logits.shape[0] if weights is None else weights.sum()
    if joined:
        return joined_mean(((high if weights is None else high * weights[:, None]).t() @ low).flatten(), count)
    share = (high / count) if weights is None else high * (weights / count)[:, None]
    return (share.t() @ low).flatten()


def _products(both: Tensor) -> Tensor:
    """Distribution over the values of g independent bits, [N, g, 2] -> [N, 2^g]."""
    values = both.new_ones(both.shape[0], 1)
    for bit in range(both.shape[1]):
        values = (values[:, :, None] * both[:, bit, None, :]).flatten(1)
    return values


def weighted_mean(values: Tensor, weights: Tensor | None, *, joined: bool = False) -> Tensor:
    """Mean over the first axis of values [N, ...], each row counted `weights` [N] times; `joined` over all ranks."""
    if weights is None:
        return joined_mean(values.sum(dim=0), float(len(values))) if joined else values.mean(dim=0)
    total, count = torch.tensordot(weights, values, dims=1), weights.sum()
    return joined_mean(total, count) if joined else total / count
