"""Code indices as tokens of a language model: one added token per code, one offset per book."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenry.codecs.vq.base import Quantizer
from tokenry.core.checks import check_int
from tokenry.core.codebooks.stats import check_indices


@dataclass(frozen=True)
class CodeTokens:
    """The map between indices of a quantizer and ids of a tokenizer.

    Attributes:
        first: id of code 0 of book 0; code k of book m is `first` + K_0 + ... + K_{m-1} + k.
        sizes: codes of each book.
        books: whether indices have an axis of books.
    """

    first: int
    sizes: tuple[int, ...]
    books: bool

    @classmethod
    def add(cls, tokenizer: Any, quantizer: Quantizer, name: str = "code") -> CodeTokens:
        """Add ``<name_k>`` (or ``<name_m_k>`` for several books) to a transformers tokenizer, once.

        A model's embeddings must then be resized to ``len(tokenizer)``.

        Raises:
            ValueError: some of these tokens exist already, or the book is too large to be laid out (2^20 codes).
        """
        if not name.isidentifier():
            raise ValueError(f"name must be letters, digits and _, got {name!r}")
        sizes, several = quantizer.codebook_sizes, quantizer.books is not None
        check_int("the number of codes", sum(sizes), 1, 2**20)
        tokens = [f"<{name}_{m}_{k}>" if several else f"<{name}_{k}>" for m, size in enumerate(sizes) for k in range(size)]
        vocabulary = tokenizer.get_vocab()
        taken = [token for token in tokens if token in vocabulary]
        if taken:
            raise ValueError(f"the tokenizer has {len(taken)} of these tokens already, such as {taken[0]}; choose another name")
        tokenizer.add_tokens(tokens, special_tokens=True)
        ids = tokenizer.convert_tokens_to_ids(tokens)
        if ids != list(range(ids[0], ids[0] + len(ids))):
            raise ValueError("the tokenizer did not give consecutive ids to the added tokens")
        return cls(ids[0], sizes, several)

    def _offsets(self, device: torch.device) -> Tensor:
        starts = torch.tensor((0, *self.sizes[:-1]), device=device).cumsum(0) + self.first
        return starts if self.books else starts[0]

    def ids(self, indices: Tensor) -> Tensor:
        """Token ids of indices [...] or [..., M]; -1 stays -1.

        Raises:
            TypeError, ValueError: indices are no integers, out of range, or have another number of books.
        """
        check_indices("indices", indices, max(self.sizes))
        if self.books and indices.shape[-1] != len(self.sizes):
            raise ValueError(f"indices must have {len(self.sizes)} books in their last axis, got shape {list(indices.shape)}")
        return (indices + self._offsets(indices.device)).masked_fill(indices < 0, -1)

    def indices(self, ids: Tensor) -> Tensor:
        """Indices of token ids as `ids` made them, the inverse; -1 stays -1.

        Raises:
            ValueError: an id is not one of the added tokens of its book.
        """
        codes = ids - self._offsets(ids.device)
        sizes = torch.tensor(self.sizes if self.books else self.sizes[0], device=ids.device)
        wrong = (ids >= 0) & ((codes < 0) | (codes >= sizes))
        if bool(wrong.any()):
            raise ValueError(f"ids must be those of added code tokens, got {int(ids[wrong][0])}")
        return codes.masked_fill(ids < 0, -1)
