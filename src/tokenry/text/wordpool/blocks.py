"""Causal pre-norm blocks, with a cache: the language model over words, the in-word decoder, the flat baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class BlockCache:
    """Keys and values [B,H,S,D/H] of every block so far."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Positions held."""
        return self.keys[0].shape[2] if self.keys else 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of one block and return all of them."""
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
        else:
            self.keys[layer] = torch.cat([self.keys[layer], key], dim=2)
            self.values[layer] = torch.cat([self.values[layer], value], dim=2)
        return self.keys[layer], self.values[layer]


def causal_allowed(rows: int, columns: int, device: torch.device) -> Tensor:
    """[rows, columns] bool: the last `rows` of `columns` positions, each seeing itself and what is before."""
    ones = torch.ones(rows, columns, dtype=torch.bool, device=device)
    return ones.tril(diagonal=columns - rows)


class CausalBlock(nn.Module):
    """Pre-norm block: attention, then a GELU network of width 4d."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, allowed: Tensor | None = None, cache: BlockCache | None = None, layer: int = 0) -> Tensor:
        """X [B,S,d] -> [B,S,d]. `allowed`: [B or 1,1,S,past+S] bool; None = causal over x alone."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.extend(layer, key, value)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=allowed is None, dropout_p=self.dropout if self.training else 0.0
        )
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm_2(x)))))


class CausalBlocks(nn.Module):
    """A stack of causal blocks; `norm` adds the final layer norm."""

    def __init__(self, layers: int, width: int, heads: int, dropout: float, *, norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CausalBlock(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor, valid: Tensor | None = None, cache: BlockCache | None = None) -> Tensor:
        """X [B,S,d] -> [B,S,d]; `valid` [B, past+S] bool marks what may be seen (a position always sees itself)."""
        past = 0 if cache is None else cache.length
        allowed = None
        if valid is not None or past:
            allowed = causal_allowed(x.shape[1], past + x.shape[1], x.device)[None, None]
            if valid is not None:
                # every row keeps its diagonal, so that a padded row is no softmax over nothing
                itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
                allowed = allowed & (valid[:, None, None, :] | F.pad(itself, (past, 0))[None, None])
        for number, block in enumerate(self.layers):
            x = block(x, allowed, cache, number)
        return self.norm(x)
