"""Quantizers side by side: a vector is cut into blocks, each with a quantizer of its own, or all with the same one.

Blocks of `Grouped` may hold anything: residual stacks (grouped residual VQ), FSQ or LFQ (several books of either), VQ (heads
with a book each). `SharedHeads` has one quantizer, and so one book, for all blocks: blocks are more vectors to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenry.codecs.vq.base import Choice
from tokenry.codecs.vq.stacks.base import Member, Stack, as_columns, as_quantizer, checked, describe
from tokenry.core.checks import check_int
from tokenry.core.codebooks.terms import joined


class Grouped(Stack):
    """Blocks with a quantizer each: x [..., D] -> codes [..., D], indices [..., M] with the columns of each block.

    The loss is the mean of the blocks' losses, weighed by their widths; `stats.losses` holds them.

    Args:
        groups: quantizers of the blocks, or their descriptions; the widths of all add up to d.
        dim: width D of inputs and codes, if not d; linear maps lead in and out of the whole.
        seed: of those maps.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: section 3.3 of the survey, for blocks of any kind; grouped residual VQ is HiFi-Codec's (arXiv 2305.02765).
    """

    def __init__(
        self, groups: Sequence[Member], *, dim: int | None = None, seed: int = 0, channels_first: bool = False
    ) -> None:
        made = checked("groups", groups)
        self.widths = tuple(group.dim for group in made)
        super().__init__("groups", made, sum(self.widths), dim, seed=seed, channels_first=channels_first)
        self.arguments["groups"] = [describe(group) for group in made]

    def _blocks(self, z: Tensor) -> list[Tensor]:
        return list(z.split(list(self.widths), dim=-1))

    def _quantize(self, z: Tensor, keep: Tensor | None, asked: bool | None = None) -> Choice:
        found = [group(block, keep, with_loss=asked) for group, block in zip(self.members, self._blocks(z), strict=True)]
        losses = torch.stack([out.loss for out in found])
        shares = [width / self.code_dim for width in self.widths]
        codes = torch.cat([out.codes for out in found], dim=-1)
        indices = torch.cat([as_columns(out.indices) for out in found], dim=-1)
        terms = joined([out.stats.terms for out in found], shares)
        return Choice(codes, indices, losses @ losses.new_tensor(shares), losses, terms)

    def _encode(self, z: Tensor) -> Tensor:
        pairs = zip(self.members, self._blocks(z), strict=True)
        return torch.cat([as_columns(group.encode(block)) for group, block in pairs], dim=-1)  # type: ignore[operator]

    def _lookup(self, indices: Tensor) -> Tensor:
        """The blocks' codes, joined: [..., d]."""
        pairs = zip(self.members, self._parts(indices), strict=True)
        return torch.cat([group.decode(k) for group, k in pairs], dim=-1)  # type: ignore[operator]


class SharedHeads(Stack):
    """One quantizer for all blocks: x [..., D] -> codes [..., D], indices [..., heads] (times its books).

    Args:
        quantizer: the quantizer of one block, of width d / heads, or its description.
        heads: number of blocks.
        dim: width D of inputs and codes, if not d; linear maps lead in and out of the whole.
        seed: of those maps.
        channels_first: inputs are [B, D, ...].

    Raises:
        ValueError, TypeError: an argument out of range, named.

    Source: multi-headed VQ with one book, as in vector-quantize-pytorch.
    """

    def __init__(
        self, quantizer: Member, heads: int, *, dim: int | None = None, seed: int = 0, channels_first: bool = False
    ) -> None:
        made = checked("quantizer", [as_quantizer("quantizer", quantizer)])
        self.heads = check_int("heads", heads, 1)
        super().__init__(
            "quantizer", made, made[0].dim * heads, dim, repeats=heads, seed=seed, channels_first=channels_first
        )  # fmt: skip
        self.arguments["quantizer"] = describe(made[0])

    def _heads(self, z: Tensor) -> Tensor:
        """Rows [N, heads d] as rows [N heads, d]."""
        return z.reshape(-1, z.shape[-1] // self.heads)

    def _columns(self, indices: Tensor) -> Tensor:
        """Indices [N heads] or [N heads, M] as [N, heads M]."""
        return as_columns(indices).reshape(-1, self.heads * self.columns[0])

    def _quantize(self, z: Tensor, keep: Tensor | None, asked: bool | None = None) -> Choice:
        kept = None if keep is None else keep.repeat_interleave(self.heads)
        out = self.members[0](self._heads(z), kept, with_loss=asked)
        return Choice(out.codes.reshape(z.shape), self._columns(out.indices), out.loss, terms=out.stats.terms)

    def _encode(self, z: Tensor) -> Tensor:
        return self._columns(self.members[0].encode(self._heads(z)))  # type: ignore[operator]

    def _lookup(self, indices: Tensor) -> Tensor:
        """The heads' codes, joined: [..., d]."""
        member = self.members[0]
        each = indices.unflatten(-1, (self.heads, self.columns[0]))
        codes: Tensor = member.decode(each if member.books is not None else each[..., 0])  # type: ignore[operator]
        return codes.flatten(-2)
