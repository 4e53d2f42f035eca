"""What quantizers made of quantizers share: members, their columns of indices, their descriptions for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from tokenry.codecs.vq.asymmetric import DecodedSearch
from tokenry.codecs.vq.base import Quantized, Quantizer
from tokenry.core.checks import check_int

S = TypeVar("S", bound="Stack")
Member = Quantizer | Mapping[str, Any]
"""A quantizer, or its description as `describe` gives it."""


def describe(quantizer: Quantizer) -> dict[str, Any]:
    """Class and constructor's arguments of a quantizer, as JSON holds them; its weights belong to the checkpoint."""
    return {"class": type(quantizer).__name__} | quantizer.arguments


def as_quantizer(name: str, member: Member) -> Quantizer:
    """The quantizer that `member` is or describes.

    Raises:
        TypeError: it is neither. ValueError: a description of no known class.
    """
    if isinstance(member, Quantizer):
        return member
    if not isinstance(member, Mapping):
        raise TypeError(f"{name} must hold quantizers, got {type(member).__name__}")
    found = Quantizer._named(str(member.get("class")))
    if found is None:
        raise ValueError(f"{name} must describe quantizers by their class, got {member.get('class')!r}")
    return found(**{key: value for key, value in member.items() if key != "class"})


class Stack(DecodedSearch, Quantizer):
    """Shared by quantizers made of others; each member has its columns in indices [..., M]."""

    def __init__(
        self, name: str, members: Sequence[Member], code_dim: int, dim: int | None, *, repeats: int = 1, seed: int,
        channels_first: bool,
    ) -> None:  # fmt: skip
        made = [as_quantizer(name, member) for member in members]
        self._sizes = tuple(size for member in made for size in member.codebook_sizes) * repeats
        width = code_dim if dim is None else check_int("dim", dim, 1)
        super().__init__(width, code_dim, len(self._sizes), max(self._sizes), channels_first=channels_first, seed=seed)
        self.members = nn.ModuleList(made)
        self.columns = tuple(len(member.codebook_sizes) for member in made)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, with_loss: bool | None = None, **options: Any) -> Quantized:
        """Quantize x [..., D]; the members are asked for their losses as this one is."""
        return super().forward(x, mask, with_loss=with_loss, asked=with_loss, **options)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each book, member after member."""
        return self._sizes

    def book_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the members' books."""
        for member in self.members:
            yield from member.book_parameters()  # type: ignore[operator]

    def freeze(self: S, frozen: bool = True) -> S:
        """`freeze` of every member; returns self."""
        self.frozen = frozen
        for member in self.members:
            member.freeze(frozen)  # type: ignore[operator]
        return self

    @property
    def statistics(self) -> str:
        """Which is "manual" where a member's books wait for `update_books`, else "forward"."""
        return "manual" if any(getattr(member, "statistics", "") == "manual" for member in self.members) else "forward"

    def update_books(self) -> None:
        """`update_books` of every member that waits for it; once per optimizer step, on every rank."""
        if self.statistics != "manual":
            raise ValueError("update_books() is for members with statistics='manual', here is none: forward updates the books")
        for member in self.members:
            if getattr(member, "statistics", "") == "manual":
                member.update_books()  # type: ignore[operator]

    @property
    def _squares(self) -> bool:
        return any(member._squares for member in self.members)

    @property
    def _joins_ranks(self) -> bool:
        return any(member._joins_ranks for member in self.members)

    def _parts(self, indices: Tensor) -> list[Tensor]:
        """Indices [..., M] cut into those of each member, as that member takes them."""
        parts = indices.split(list(self.columns[: self._members_in(indices.shape[-1])]), dim=-1)
        return [part if member.books is not None else part[..., 0] for member, part in zip(self.members, parts, strict=False)]

    def _members_in(self, columns: int) -> int:
        """How many members have these first columns."""
        return next(n for n in range(len(self.columns) + 1) if sum(self.columns[:n]) >= columns)

    def extra_repr(self) -> str:
        """Arguments, as given; the members show themselves."""
        return ", ".join(f"{k}={v!r}" for k, v in self.arguments.items() if k not in ("levels", "groups", "quantizer"))


def checked(name: str, members: Sequence[Member]) -> list[Quantizer]:
    """The members as quantizers: at least one, all different, channels last.

    Raises:
        TypeError, ValueError: anything else.
    """
    made = [as_quantizer(name, member) for member in members]
    if not made:
        raise ValueError(f"{name} must hold at least one quantizer, got none")
    if len({id(member) for member in made}) < len(made):
        raise ValueError(
            f"{name} must be different objects, got one of them twice; a book for all levels or heads has its class"
        )
    for member in made:
        if member.channels_first:
            raise ValueError(f"{name} must take their channels last, got channels_first=True; the whole may have it")
    return made


def as_columns(indices: Tensor) -> Tensor:
    """Indices [N] or [N, M] of a member as columns [N, M]."""
    return indices[:, None] if indices.dim() == 1 else indices
