"""Numbers and books for the tests of quantizers."""

import torch


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_book(quantizer, book):
    quantizer.load_state_dict(quantizer.state_dict() | {"codebook": book})
    return quantizer
