"""SimVQ, a remedy for collapse: the book is a frozen random one behind a learned linear map, so that all codes move together.

C = C_0 W^T with C_0 [K, D_0] ~ N(0, 1/D_0) frozen; loss mse(sg z, q) + 0.25 mse(z, sg q).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.codecs.vq.base import Choice, Quantizer, spread
from tokenry.core.checks import check_choice, check_int, check_range
from tokenry.core.codebooks.codebooks import nearest_codes
from tokenry.core.codebooks.estimators import chosen_rows, rotation_trick
from tokenry.core.codebooks.terms import pull_terms
from tokenry.core.seeding import seeded_linear


class SimVQ(Quantizer):
    """One frozen codebook behind a linear map: x [..., D] -> codes [..., D], indices [...].

    `codebook` is the frozen C_0 [K, D_0]; `effective_codebook()` is C [K, D], the rows that are compared and given out.

    Args:
        dim: width D.
        codebook_size: K, at least 2.
        frozen_dim: width D_0 of the frozen book, `dim` by default.
        commitment: weight of mse(z, sg q) beside mse(sg z, q).
        estimator: "straight_through" or "rotation".
        seed: of the frozen book and the map.
        channels_first: inputs are [B, D, ...].

    Source: section 3.10 of the survey's methods; defaults of vector-quantize-pytorch, but straight-through.
    """

    codebook: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        frozen_dim: int | None = None,
        commitment: float = 0.25,
        estimator: Literal["straight_through", "rotation"] = "straight_through",
        seed: int = 0,
        channels_first: bool = False,
    ) -> None:
        check_int("codebook_size", codebook_size, 2)
        super().__init__(dim, dim, None, codebook_size, channels_first=channels_first, seed=seed)
        self.commitment = check_range("commitment", commitment, 0)
        self.estimator = check_choice("estimator", estimator, ("straight_through", "rotation"))
        width = check_int("frozen_dim", dim if frozen_dim is None else frozen_dim, 1)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("codebook", torch.randn(codebook_size, width, generator=generator) * width**-0.5)
        self.transform: nn.Linear = seeded_linear(width, dim, generator, bias=False)

    def effective_codebook(self) -> Tensor:
        """C = C_0 W^T [K, D], with a gradient to W."""
        return self.transform(self.codebook)

    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        real = z if keep is None else z[keep]
        book = self.effective_codebook()
        indices = nearest_codes(real, book)
        codes, loss = chosen_rows(real, book, indices, self.commitment, 1.0)
        if self.estimator == "rotation":
            codes = rotation_trick(real, codes.detach())
        return Choice(spread(codes, keep), spread(indices, keep, -1), loss, terms=pull_terms(loss, self.commitment))

    def _encode(self, z: Tensor) -> Tensor:
        return nearest_codes(z, self.effective_codebook())

    def _lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices.clamp(min=0), self.effective_codebook()).masked_fill((indices < 0)[..., None], 0.0)
