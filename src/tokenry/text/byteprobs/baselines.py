"""What people do at a prompt that ends inside a word: nothing, or token healing. Same outputs as `ByteLM.next_byte`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenry.hosts.text import as_bytes
from tokenry.text.byteprobs.model import ByteLM


def naive_next_byte(lm: ByteLM, prompt: bytes | str) -> Tensor:
    """Next-byte distribution from the one cover ``encode(prompt)``, float64 [256 + specials]: biased (section 3.1)."""
    ids = tuple(lm.vocabulary.encode(prompt))
    (_, row), *_ = lm.score([(lm.begin_id, *ids)], 1)
    return _from_rows(lm, [(0.0, row, b"")])


def healed_next_byte(lm: ByteLM, prompt: bytes | str) -> Tensor:
    """Token healing, float64 [256 + specials]: the last token is dropped, the next ones must start with its bytes.

    Where the next token is exactly the dropped one, the byte after it comes from the token after it.
    """
    data = as_bytes("prompt", prompt)
    ids = tuple(lm.vocabulary.encode(data))
    if not ids:
        return naive_next_byte(lm, data)
    dropped = lm.vocabulary.pieces[ids[-1]] or b""
    path = (lm.begin_id, *ids)
    (_, before), (_, after) = lm.score([path[:-1], path], 1)
    return _from_rows(lm, [(0.0, before, dropped), (float(before[ids[-1]]), after, b"")])


def _from_rows(lm: ByteLM, rows: list[tuple[float, np.ndarray, bytes]]) -> Tensor:
    """Sum token distributions into bytes; a row counts only tokens that go on with its bytes."""
    trie = lm.vocabulary.trie
    total = np.zeros(256 + len(lm.specials))
    for log_weight, row, prefix in rows:
        low, high = trie.span(prefix)
        low = trie.index_after(prefix, low, high)
        weight = np.exp(log_weight + row[trie.ids[low:high]].astype(np.float64))
        total[:256] += np.bincount(trie.next_bytes(low, high, len(prefix)), weight, minlength=256)
        if not prefix:
            total[256:] += np.exp(log_weight + row[lm.special_array].astype(np.float64))
    return torch.from_numpy(total / total.sum())
