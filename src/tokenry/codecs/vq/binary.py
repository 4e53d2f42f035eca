"""LFQ and BSQ: the signs of the channels are the code; no codebook is stored.

LFQ (MAGVIT-v2): q_i = +s where z_i > 0, else -s. BSQ: u = z/||z||, q_i = +-1/sqrt(d) by the sign of u_i, so that
||u - q||^2 <= 2 - 2/sqrt(d). The index is sum_i [z_i > 0] 2^(d-1-i): feature 0 is the most significant bit (FSQ is the
other way round). The softmax over codes, p(c|z) = softmax_c(2 tau z.c), is a product of sigmoid(4 tau s z_i), so that
entropies need no 2^d matrix: exact for one sample at any d, exact for the batch up to 18 bits a group.

    LFQ  weight (E[H(p(.|z))] - diversity H(E[p(.|z)])) + commitment mse(z, sg q)
    BSQ  commitment mse(u, sg q) + weight (sample_weight Hs - diversity Hc) / tau,  Hc summed over groups of bits
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.codecs.vq.base import Choice, Quantizer
from tokenry.core.checks import check_int, check_range
from tokenry.core.codebooks.entropy import MAX_JOINT_BITS, batch_entropy, sample_entropy, weighted_mean
from tokenry.core.codebooks.estimators import straight_through
from tokenry.core.codebooks.ranks import world_size
from tokenry.core.codebooks.terms import Terms


class BinaryQuantizer(Quantizer):
    """Shared by LFQ and BSQ: signs, their index, and the entropies of the bits."""

    powers: Tensor

    def __init__(
        self, bits: int, groups: int, *, temperature: float, entropy_weight: float, diversity: float, commitment: float,
        dim: int | None, seed: int, channels_first: bool,
    ) -> None:  # fmt: skip
        bits = check_int("bits", bits, 1, 62)
        super().__init__(dim or bits, bits, None, 2**bits, channels_first=channels_first, seed=seed)
        self.temperature = check_range("temperature", temperature, 0, low_open=True)
        self.entropy_weight = check_range("entropy_weight", entropy_weight, 0)
        self.diversity = check_range("diversity", diversity, 0)
        self.commitment = check_range("commitment", commitment, 0)
        size = math.ceil(bits / check_int("groups", groups, 1, bits))
        if size > MAX_JOINT_BITS:
            raise ValueError(
                f"groups must split {bits} bits into groups of at most {MAX_JOINT_BITS}, got {groups} of {size} bits"
            )
        # groups as even as can be: sizes differ by at most one
        self.groups = tuple(len(part) for part in torch.arange(bits).tensor_split(groups))
        self.register_buffer("powers", 2 ** torch.arange(bits - 1, -1, -1), persistent=False)

    @property
    @abstractmethod
    def _size(self) -> float:
        """Absolute value of a code's entries."""

    @abstractmethod
    def _entropy_scales(self) -> tuple[float, float]:
        """Weights of the sample entropy and of the batch entropy in the loss."""

    def _terms(self, points: Tensor, q: Tensor, weights: Tensor | None) -> Terms:
        """Loss terms of points and their codes; rows of weight 0 do not count."""
        terms: Terms = {}
        if self.commitment or not self.entropy_weight:
            terms["commitment"] = self._commitment_term(points, q, weights)
        if self.entropy_weight:
            logits, (sample, batch) = self._logits(points), self._entropy_scales()
            terms["sample_entropy"] = sample * sample_entropy(logits, weights, joined=self._joined)
            terms["batch_entropy"] = batch * batch_entropy(logits, self.groups, weights, joined=self._joined)
        return terms

    def _points(self, z: Tensor) -> Tensor:
        """What is compared with the codes."""
        return z

    def _logits(self, points: Tensor) -> Tensor:
        """Logits of the bits, log p(bit = 1) - log p(bit = 0) = 4 tau s z."""
        return points * (4 * self._size / self.temperature)

    def _commitment_term(self, points: Tensor, q: Tensor, weights: Tensor | None) -> Tensor:
        if not self.commitment:
            return points.new_zeros(())
        distances = (points - q.detach()).square().mean(dim=-1)
        return self.commitment * weighted_mean(distances, weights, joined=self._joined)

    _joins_ranks = True

    @property
    def _joined(self) -> bool:
        """Whether the loss is that of the batch joined over ranks: in training; one rank may evaluate alone."""
        return self.training and world_size() > 1

    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        points = self._points(z)
        positive = points.detach() > 0
        q = torch.where(positive, self._size, -self._size).to(points.dtype)
        weights = None if keep is None else keep.to(points.dtype)
        indices = self._weighed(positive, self._weights(self.powers))
        return Choice(straight_through(points, q), indices, lambda: self._terms(points, q, weights))

    def _encode(self, z: Tensor) -> Tensor:
        return self._weighed(self._points(z) > 0, self._weights(self.powers))

    def _lookup(self, indices: Tensor) -> Tensor:
        positive = (indices.clamp(min=0)[..., None] & self.powers) > 0
        values = torch.where(positive, self._size, -self._size).to(torch.get_default_dtype())
        return values.masked_fill((indices < 0)[..., None], 0.0)

    def group_indices(self, indices: Tensor) -> Tensor:
        """Index of each group of bits, [...] -> [..., groups]: what a language model consumes; -1 stays.

        The first group holds the most significant bits.
        """
        left, parts = indices, []
        for size in reversed(self.groups):
            parts.append(left % 2**size)
            left = left.div(2**size, rounding_mode="floor")
        return torch.stack(parts[::-1], dim=-1).masked_fill((indices < 0)[..., None], -1)


class LFQ(BinaryQuantizer):
    """Look-up-free quantization: x [..., bits] -> codes +-scale, indices [...] below 2^bits.

    Args:
        bits: number of channels d, at most 62.
        scale: absolute value s of a code's entries.
        temperature: 1/tau of the softmax over codes.
        entropy_weight: weight of the entropy loss.
        diversity: gamma, weight of the batch entropy in it.
        commitment: weight of mse(z, sg q).
        groups: groups of bits for the batch entropy: 1 is the exact joint entropy (up to 18 bits), more sum over groups.
        dim: width of inputs and codes, if not `bits`; linear maps lead in and out.
        seed: of those maps.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError: an argument out of range, or more than 18 bits a group.

    Source: section 3.6 of the survey; defaults of vector-quantize-pytorch.
    """

    def __init__(
        self,
        bits: int,
        scale: float = 1.0,
        temperature: float = 0.01,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        *,
        commitment: float = 0.0,
        groups: int = 1,
        dim: int | None = None,
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        super().__init__(
            bits, groups, temperature=temperature, entropy_weight=entropy_weight, diversity=diversity,
            commitment=commitment, dim=dim, seed=seed, channels_first=channels_first,
        )  # fmt: skip
        self.scale = check_range("scale", scale, 0, low_open=True)
        self._squares = self.commitment > 0

    @property
    def _size(self) -> float:
        return self.scale

    def _entropy_scales(self) -> tuple[float, float]:
        return self.entropy_weight, -self.entropy_weight * self.diversity


class BSQ(BinaryQuantizer):
    """Binary spherical quantization: x [..., bits] -> unit codes +-1/sqrt(bits), indices [...] below 2^bits.

    Inputs are normalised here (a zero vector gets the code of all minuses); the error is bounded, so that commitment is
    optional.

    Args:
        bits: number of channels d, at most 62.
        groups: groups of bits for the batch entropy; by default as many as give at most 9 bits each.
        temperature: 1/tau of the softmax over codes.
        entropy_weight: zeta.
        sample_weight: gamma_0, weight of the sample entropy.
        diversity: gamma, weight of the batch entropy.
        commitment: beta, weight of mse(u, sg q).
        dim: width of inputs and codes, if not `bits`; linear maps lead in and out.
        seed: of those maps.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError: an argument out of range, or more than 18 bits a group.

    Source: section 3.7 of the survey; the weights' defaults are our choice, the released code has none.
    """

    def __init__(
        self,
        bits: int,
        groups: int | None = None,
        *,
        temperature: float = 1.0,
        entropy_weight: float = 0.1,
        sample_weight: float = 1.0,
        diversity: float = 1.0,
        commitment: float = 0.0,
        dim: int | None = None,
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        check_int("bits", bits, 1, 62)
        super().__init__(
            bits, math.ceil(bits / 9) if groups is None else groups, temperature=temperature, entropy_weight=entropy_weight,
            diversity=diversity, commitment=commitment, dim=dim, seed=seed, channels_first=channels_first,
        )  # fmt: skip
        self.sample_weight = check_range("sample_weight", sample_weight, 0)

    @property
    def _size(self) -> float:
        return self.code_dim**-0.5

    def _points(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)

    def _entropy_scales(self) -> tuple[float, float]:
        scale = self.entropy_weight * self.temperature
        return scale * self.sample_weight, -scale * self.diversity
