"""Quantizers of transformers and diffusers models as ours: take one out, train or inspect it, put it back."""

from __future__ import annotations

import torch
from torch import nn

from tokenry.codecs.vq.lookup import LookupQuantizer
from tokenry.codecs.vq.residual import ResidualVQ
from tokenry.codecs.vq.single import VectorQuantizer
from tokenry.hosts.quantizers import is_residual, read_books, write_books


def from_host(module: nn.Module) -> VectorQuantizer | ResidualVQ:
    """Our quantizer with the books of a host's, channels first as hosts call theirs; it gives the same indices.

    Takes EncodecResidualVectorQuantizer, MimiResidualVectorQuantizer, the quantizers of Chameleon, Emu3 and of
    diffusers' VQModel. The indices of residual levels are in the last axis (hosts put them first).

    Raises:
        UnsupportedModelError: another class.
    """
    books, into, out = read_books(module)
    count, size, width = books.shape
    dim = width if into is None else into.shape[1]
    if not is_residual(module):
        quantizer = VectorQuantizer(dim, size, ema=False, commitment=0.25, start="uniform", channels_first=True)
        quantizer.load_state_dict(quantizer.state_dict() | {"codebook": books[0]})
        return quantizer.eval()
    quantizer = ResidualVQ(dim, count, size, decay=0.99, channels_first=True, code_dim=None if into is None else width)
    state = quantizer.state_dict() | {"codebook": books}
    if into is not None and out is not None:
        state |= {"project_in.weight": into, "project_out.weight": out}
        state |= {"project_in.bias": torch.zeros(width), "project_out.bias": torch.zeros(dim)}
    quantizer.load_state_dict(state)
    return quantizer.eval()


def to_host(quantizer: LookupQuantizer, module: nn.Module) -> None:
    """Write the books of `quantizer` back into a host's quantizer; projections of the host stay as they are.

    Raises:
        UnsupportedModelError: the host's class is not supported. ValueError: the books have another shape.
    """
    books = quantizer.codebook.detach()
    write_books(module, books[None] if books.dim() == 2 else books)
