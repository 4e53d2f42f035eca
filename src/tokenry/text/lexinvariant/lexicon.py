"""Random embeddings of one batch: drawn once per sequence, used for the input and for the read-out (section 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenry.core.checks import check_finite, check_float, check_int, check_range


@dataclass(frozen=True, eq=False)
class Lexicon:
    """The embeddings G of a batch: row of token v in sequence b is ``rows[b, v]``, or ``rows[index[b, v]]`` of a shared pool.

    Attributes:
        rows: [B,V,d] float, or the pool [V,d] that the batch shares.
        index: [B,V] long, row of the pool for each token; None when `rows` holds a table per sequence.
        replaced: [B,V] bool, True where a token type is random and not learnt; None = all of them.

    A blank lexicon, of a model that uses its learnt embeddings alone, has rows [B,0,d].
    """

    rows: Tensor
    index: Tensor | None = None
    replaced: Tensor | None = None

    @property
    def batch(self) -> int:
        """Sequences B."""
        return int((self.rows if self.index is None else self.index).shape[0])

    @property
    def blank(self) -> bool:
        """Whether no token is random."""
        return self.index is None and self.rows.shape[1] == 0

    @property
    def vocab_size(self) -> int:
        """Tokens V."""
        known = next(x for x in (self.index, self.replaced, self.rows) if x is not None)
        return int(known.shape[1])

    def same_as(self, other: Lexicon) -> bool:
        """Whether both give every token of every sequence the same embedding."""
        return self is other or all(_equal(getattr(self, n), getattr(other, n)) for n in ("rows", "index", "replaced"))

    def table(self) -> Tensor:
        """The random embeddings written out: [B,V,d]."""
        return self.rows if self.index is None else self.rows[self.index]

    def embed(self, ids: Tensor) -> Tensor:
        """Random embeddings of ids [B,T]: [B,T,d]."""
        if self.index is not None:
            return self.rows[self.index.gather(1, ids)]
        return self.rows.gather(1, ids[..., None].expand(-1, -1, self.rows.shape[-1]))

    def products(self, states: Tensor) -> Tensor:
        """Inner products of states [B,T,d] with the embedding of every token: [B,T,V]."""
        rows = self.rows.to(states.dtype)
        if self.index is None:
            return states @ rows.transpose(1, 2)
        scores = states @ rows.T
        return scores.gather(-1, self.index[:, None, :].expand(-1, scores.shape[1], -1))

    def relabelled(self, key: Tensor) -> Lexicon:
        """The lexicon in which token ``key[b, v]`` has the embedding that v has here; `key` is [V] or [B,V]."""
        inverse = torch.argsort(key, dim=-1).expand(self.batch, -1)

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.gather(1, inverse)

        if self.index is not None:
            return Lexicon(self.rows, move(self.index), move(self.replaced))
        rows = self.rows if self.blank else self.rows.gather(1, inverse[..., None].expand(-1, -1, self.rows.shape[-1]))
        return Lexicon(rows, None, move(self.replaced))


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and a.shape == b.shape and torch.equal(a, b))


def draw_lexicon(
    batch: int,
    vocab_size: int,
    width: int,
    *,
    table: str = "sequence",
    rate: float = 1.0,
    fixed_tokens: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Lexicon:
    """Draw G ~ N(0, 1) for `batch` sequences, in float32, and cast.

    Args:
        batch: sequences B; each gets embeddings of its own.
        vocab_size: tokens V.
        width: d.
        table: ``"sequence"`` (independent tables) or ``"pool"`` (one table, its rows permuted for every sequence).
        rate: probability that a token type is random in a sequence; decided once per sequence and type.
        fixed_tokens: types that are never random.
        generator: source of the draws; it must live on `device`.
        device: of the result.
        dtype: of the rows.

    Raises:
        TypeError, ValueError: sizes or rate out of range.
    """
    check_int("batch", batch, 1)
    check_int("vocab_size", vocab_size, 1)
    check_int("width", width, 1)
    check_range("rate", rate, 0.0, 1.0)
    index = None
    if rate == 0.0:  # nothing is random: a table would be drawn for nothing
        rows = torch.empty(batch, 0, width, device=device)
    elif table == "pool":
        rows = torch.randn(vocab_size, width, generator=generator, device=device)
        index = torch.stack([torch.randperm(vocab_size, generator=generator, device=device) for _ in range(batch)])
    else:
        rows = torch.randn(batch, vocab_size, width, generator=generator, device=device)
    replaced = None
    if rate < 1.0 or fixed_tokens:
        replaced = torch.rand(batch, vocab_size, generator=generator, device=device) < rate
        replaced[:, list(fixed_tokens)] = False
    return Lexicon(rows.to(dtype), index, replaced)


def lexicon_of(given: Lexicon | Tensor, batch: int, vocab_size: int, width: int, fixed_tokens: tuple[int, ...]) -> Lexicon:
    """A lexicon from what a caller brought: a lexicon as it is, a tensor G [B,V,d], or one G [V,d] for all sequences.

    Raises:
        TypeError, ValueError: not a float tensor, not finite, or of other sizes.
    """
    if not isinstance(given, Lexicon):
        rows = check_finite("lexicon", check_float("lexicon", given))
        rows = rows.expand(batch, -1, -1) if rows.dim() == 2 else rows
        replaced = None
        if fixed_tokens:
            replaced = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            replaced[:, list(fixed_tokens)] = False
        given = Lexicon(rows, None, replaced)
    found = (given.batch, given.vocab_size, int(given.rows.shape[-1]))
    if found != (batch, vocab_size, width):
        raise ValueError(
            f"lexicon must be for [batch, vocab_size, hidden_size] = {[batch, vocab_size, width]}, got {list(found)}"
        )
    return given
