"""Search over packed binary codes: FAISS when it is installed, numpy otherwise, with the same answers."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_int, check_shape
from tokenry.errors import optional
from tokenry.pruning.eet.hashing import check_codes, pack_codes

_CHUNK_BYTES = 64 * 1024 * 1024


class HammingIndex:
    """Exact Hamming search over codes of `bits` bits, stored packed (bits / 8 bytes per item).

    Neighbours come by distance and, within a distance, in the order in which they were added; both engines agree on that.

    Args:
        bits: code length K.
        engine: ``"faiss"`` (IndexBinaryFlat), ``"numpy"`` (xor and popcount), or ``"auto"``: FAISS when installed.

    Raises:
        MissingDependencyError: ``engine="faiss"`` without FAISS.
    """

    def __init__(self, bits: int, *, engine: Literal["auto", "faiss", "numpy"] = "auto") -> None:
        check_int("bits", bits, 1)
        check_choice("engine", engine, ("auto", "faiss", "numpy"))
        if engine == "auto":
            engine = "faiss" if importlib.util.find_spec("faiss") else "numpy"
        self.bits, self.engine = bits, engine
        self._width = -(-bits // 8)
        self._packed = np.zeros((0, self._width), dtype=np.uint8)
        # Unused bits of the last byte are 0 on both sides, so they add nothing to a distance.
        self._faiss: Any = optional("faiss", "search").IndexBinaryFlat(8 * self._width) if engine == "faiss" else None

    def __len__(self) -> int:
        return self._faiss.ntotal if self._faiss is not None else len(self._packed)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored codes."""
        return len(self) * self._width

    def add(self, codes: Tensor) -> None:
        """Append codes [n,bits] in {-1,+1}; items are numbered in the order of arrival."""
        packed = self._pack("codes", codes)
        if self._faiss is not None:
            self._faiss.add(packed)
        else:
            self._packed = np.concatenate([self._packed, packed])

    def search(self, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The `k` nearest items of each query [Q,bits]: distances [Q,k] and item numbers [Q,k], both int64.

        Raises:
            ValueError: `k` above the number of items, or codes that do not fit.
        """
        query = self._pack("codes", codes)
        check_int("k", k, 1, max(len(self), 1))
        if not len(self):
            raise ValueError("the index is empty: add codes before searching")
        found = self._search_faiss(query, k) if self._faiss is not None else self._search_numpy(query, k)
        return torch.from_numpy(found[0].astype(np.int64)), torch.from_numpy(found[1].astype(np.int64))

    def _pack(self, name: str, codes: Tensor) -> np.ndarray:
        check_shape(name, check_codes(name, codes), "n K", K=self.bits)
        return pack_codes(codes).numpy()

    def _search_numpy(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = max(1, _CHUNK_BYTES // max(1, self._packed.size))
        distances, numbers = [], []
        for start in range(0, len(query), rows):
            differing = query[start : start + rows, None] ^ self._packed[None]
            distance = _popcount(differing).sum(axis=2, dtype=np.int32)
            order = np.argsort(distance, axis=1, kind="stable")[:, :k]
            distances.append(np.take_along_axis(distance, order, axis=1))
            numbers.append(order)
        empty = np.zeros((0, k), dtype=np.int64)
        return np.concatenate([empty, *distances]), np.concatenate([empty, *numbers])

    def _search_faiss(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distance, number = self._faiss.search(query, k)
        # FAISS breaks ties at the last place as it likes; a range search up to that distance sees all of them.
        last = distance[:, -1] if len(query) else np.zeros(0, dtype=np.int32)
        for radius in np.unique(last):
            rows = np.flatnonzero(last == radius)
            limits, d, i = self._faiss.range_search(query[rows], int(radius) + 1)
            for slot, row in enumerate(rows):
                within = slice(limits[slot], limits[slot + 1])
                best = np.lexsort((i[within], d[within]))[:k]
                distance[row], number[row] = d[within][best], i[within][best]
        return distance, number


def _popcount(x: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(x)
    return _BITS_OF_BYTE[x]


_BITS_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
