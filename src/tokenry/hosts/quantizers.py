"""Codebooks of the quantizers inside transformers and diffusers models: read them, write trained ones back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_shape
from tokenry.errors import UnsupportedModelError

SUPPORTED = (
    "EncodecResidualVectorQuantizer", "MimiResidualVectorQuantizer", "ChameleonVQVAEVectorQuantizer",
    "Emu3VQVAEVectorQuantizer", "VectorQuantizer (diffusers)",
)  # fmt: skip

_RESIDUAL = ("EncodecResidualVectorQuantizer", "MimiResidualVectorQuantizer")
_SINGLE = ("ChameleonVQVAEVectorQuantizer", "Emu3VQVAEVectorQuantizer", "VectorQuantizer")
_WHY_NOT = {
    "MimiSplitResidualVectorQuantizer": "two stacks in parallel: convert its semantic_ and acoustic_residual_vector_quantizer",
    "DacResidualVectorQuantizer": "each level has projections of its own",
    "JanusVQVAEVectorQuantizer": "it normalises rows and gives out normalised ones at encoding only",
}


class HostBooks(NamedTuple):
    """Codebooks [M, K, d] float32, and the linear maps in [d, D] and out [D, d] where the host has them."""

    books: Tensor
    project_in: Tensor | None
    project_out: Tensor | None

    @property
    def dim(self) -> int:
        """Width D of what the host gives to its quantizer."""
        return self.books.shape[2] if self.project_in is None else self.project_in.shape[1]


def _kind(module: nn.Module) -> str:
    names = [cls.__name__ for cls in type(module).__mro__]
    for name in (*_RESIDUAL, *_SINGLE):
        if name in names and (name != "VectorQuantizer" or isinstance(getattr(module, "embedding", None), nn.Embedding)):
            return name
    raise UnsupportedModelError.of(module, SUPPORTED, reason=_WHY_NOT.get(type(module).__name__, ""))


def is_residual(module: nn.Module) -> bool:
    """True for a stack of residual levels, False for a single book.

    Raises:
        UnsupportedModelError: neither.
    """
    return _kind(module) in _RESIDUAL


@torch.no_grad()
def read_books(module: nn.Module) -> HostBooks:
    """Copies of the codebooks and projections of a host's quantizer.

    Raises:
        UnsupportedModelError: the class is not one of `SUPPORTED`.
    """
    host: Any = module
    if not is_residual(module):
        return HostBooks(host.embedding.weight.detach().float().clone()[None], None, None)
    books = torch.stack([layer.codebook.embed.detach().float().clone() for layer in host.layers])
    maps = [getattr(host, name, None) for name in ("input_proj", "output_proj")]
    given = [None if conv is None else conv.weight.detach().float().squeeze(-1).clone() for conv in maps]
    return HostBooks(books, given[0], given[1])


@torch.no_grad()
def write_books(module: nn.Module, books: Tensor) -> None:
    """Replace the codebooks of a host's quantizer by books [M, K, d]; its projections stay.

    Raises:
        UnsupportedModelError: the class is not one of `SUPPORTED`. ValueError: the shape is not that of the host's books.
    """
    old = read_books(module).books
    check_shape("books", books, "M K D", M=old.shape[0], K=old.shape[1], D=old.shape[2])
    host: Any = module
    if not is_residual(module):
        host.embedding.weight.copy_(books[0])
        return
    for layer, book in zip(host.layers, books, strict=True):
        _write_layer(layer.codebook, book)


def _write_layer(codebook: Any, book: Tensor) -> None:
    if hasattr(codebook, "embed_sum"):  # Mimi holds sums and counts, and caches their quotient
        codebook.cluster_usage.fill_(1.0)
        codebook.embed_sum.copy_(book)
        codebook._embed = None
    else:
        codebook.embed.copy_(book)
        codebook.embed_avg.copy_(book)
        codebook.cluster_size.fill_(1.0)
