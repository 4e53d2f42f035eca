"""What every quantizer has: one call, one return type, masks, layouts, float32 inside, save and load."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenry.core.checkpoint import CONFIG, WEIGHTS, write_checkpoint
from tokenry.core.checks import check_finite, check_float, check_int, check_mask, check_tensor
from tokenry.core.codebooks.ranks import sum_over_ranks, world_size
from tokenry.core.codebooks.stats import CodebookStats, check_indices
from tokenry.core.codebooks.terms import Terms, total
from tokenry.core.seeding import seeded, seeded_linear

Q = TypeVar("Q", bound="Quantizer")


class Quantized(NamedTuple):
    """What a quantizer returns.

    codes: [..., D] of the input's dtype and layout, with a gradient to the input.
    indices: int64 [...] for one book, [..., M] for several; -1 where masked or dropped.
    loss: 0-dim float32, to be added to the task's loss.
    stats: perplexity, usage, dead codes; computed when read.
    """

    codes: Tensor
    indices: Tensor
    loss: Tensor
    stats: CodebookStats


class Choice(NamedTuple):
    """What a variant decides on rows [N, d] of its code space: codes [N, d], indices [N] or [N, M], loss, loss of each book.

    A loss may come as its terms by name, and one that costs more than the codes as a function, called where it is wanted;
    `terms` names the parts of one that comes as a tensor.
    """

    codes: Tensor
    indices: Tensor
    loss: Tensor | Terms | Callable[[], Tensor | Terms]
    losses: Tensor | None = None
    terms: Terms | None = None


class Quantizer(nn.Module, ABC):
    """A map from vectors to integers and back.

    `forward` takes x [..., D] ([B, D, ...] with `channels_first`) of any floating type and an optional bool mask [...]
    (True = real), and works in float32 whatever the input, the module's dtype or autocast say. Masked positions touch
    neither losses, statistics nor codebooks; their codes are zero and their indices -1. Non-finite input is refused.

    Attributes:
        dim: width D of inputs and codes.
        code_dim: width d of the code space; linear maps lead in and out where it differs from `dim`.
        books: number of codebooks M, None for a single index.
        codebook_sizes: codes of each book.
        frozen: whether the books are held as they are, see `freeze`.
    """

    _registry: ClassVar[dict[str, type[Quantizer]]] = {}
    frozen: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Quantizer._registry[cls.__name__] = cls

    arguments: dict[str, Any]
    _squares = True  # whether codes or losses take squares of the rows
    _joins_ranks = False  # whether a training step sums over the ranks of `torch.distributed`

    def __new__(cls, *values: Any, **options: Any) -> Any:
        """Remember the constructor's arguments for `save_pretrained`; wrong ones are the constructor's to refuse."""
        made = super().__new__(cls)
        with suppress(TypeError):
            bound = inspect.signature(cls.__init__).bind(made, *values, **options)
            bound.apply_defaults()
            _, *given = bound.arguments.items()
            named = dict(given)
            extra = named.pop("options", {})
            object.__setattr__(made, "arguments", named | extra)
        return made

    def __init__(
        self, dim: int, code_dim: int, books: int | None, codebook_size: int, *, channels_first: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, 1)
        self.code_dim = check_int("code_dim", code_dim, 1)
        self.books = books
        self.codebook_size = codebook_size
        self.channels_first = channels_first
        self.seed = check_int("seed", seed, 0)
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if dim != code_dim:
            generator = torch.Generator().manual_seed(seed)
            self.project_in = seeded_linear(dim, code_dim, generator)
            self.project_out = seeded_linear(code_dim, dim, generator)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each book."""
        return (self.codebook_size,) * (self.books or 1)

    @property
    def bits(self) -> float:
        """Bits of one vector: the sum over books of log2 of their sizes."""
        return float(torch.tensor(self.codebook_sizes, dtype=torch.float64).log2().sum())

    def book_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the books alone, for an optimizer of their own: those of the maps in and out are not among them."""
        for name, parameter in self.named_parameters():
            if name.split(".")[0] not in ("project_in", "project_out"):
                yield parameter

    def freeze(self: Q, frozen: bool = True) -> Q:
        """Hold the books as they are in training too (or let them learn again); returns self.

        No gradient, moving average, start or replacement changes them; the input keeps its gradient, the maps in and out
        learn. An attribute of the object, not part of its state.
        """
        self.frozen = frozen
        for parameter in self.book_parameters():
            parameter.requires_grad_(not frozen)
        return self

    def update_books(self) -> None:
        """Take what the forward passes left for one update; nothing here, see `VectorQuantizer` with `statistics="manual"`."""

    # -- the four calls -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, mask: Tensor | None = None, *, with_loss: bool | None = None, **options: Any) -> Quantized:
        """Quantize x [..., D] -> `Quantized`.

        A loss that costs more than the codes (LFQ, BSQ) is left out in evaluation where no gradient is recorded, and is NaN
        there; `with_loss` asks for it, or leaves it out anywhere.

        Raises:
            TypeError: x is not a floating-point tensor, or the mask not bool.
            ValueError: wrong width, no vector at all, a wrong mask, NaN, Inf or entries whose squares overflow; nothing has
                been learned from it then.
        """
        z, keep, shape = self._enter(x, mask)
        with _island(x):
            choice = self._sealed(self._quantize(z, keep, **options), z)
            codes = self._leave(choice.codes, keep, shape).to(x.dtype)
            loss, terms = self._weigh(choice, z, with_loss)
        indices = choice.indices.reshape(shape + choice.indices.shape[1:])
        if keep is not None:
            indices = indices.masked_fill(~keep.view(*shape, *[1] * (indices.dim() - len(shape))), -1)
        stats = CodebookStats(indices, self.codebook_sizes, books=self.books is not None, losses=choice.losses, terms=terms)
        return Quantized(codes, indices, loss, stats)

    def _weigh(self, choice: Choice, z: Tensor, with_loss: bool | None) -> tuple[Tensor, Terms | None]:
        """The loss, and its terms where they have names."""
        loss, terms = choice.loss, choice.terms
        if not isinstance(loss, (Tensor, dict)):
            wanted = self.training or torch.is_grad_enabled() if with_loss is None else with_loss
            loss = loss() if wanted else z.new_full((), float("nan"))
        return (total(loss), loss) if isinstance(loss, dict) else (loss, terms)

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """Indices [...] or [..., M] of x [..., D]; never learns, draws no noise. -1 where masked."""
        z, _, shape = self._enter(x, mask)
        with _island(x):
            indices = self._encode(z, **options)
        indices = indices.reshape(shape + indices.shape[1:])
        return indices if mask is None else indices.masked_fill(~mask.view(*shape, *[1] * (indices.dim() - len(shape))), -1)

    def decode(self, indices: Tensor) -> Tensor:
        """Codes [..., D] float32 of indices [...] or [..., M], as `forward` returns them; zero where every index is -1.

        Raises:
            TypeError: indices are not integers. ValueError: an index out of range, or a wrong number of books.
        """
        codes = self._combine(self.codes_of(indices))
        flat = codes.flatten(0, -2) if codes.dim() > 1 else codes[None]
        with _island(codes):
            absent = (indices < 0) if self.books is None else (indices < 0).all(dim=-1)
            some = torch.compiler.is_compiling() or bool(absent.any())
            return self._leave(flat, ~absent.flatten() if some else None, codes.shape[:-1])

    def codes_of(self, indices: Tensor) -> Tensor:
        """Codes in the code space: [..., d] for one book, [..., M, d] of each book for several; zero where the index is -1."""
        check_tensor("indices", indices)
        if self.books is not None and (indices.dim() == 0 or not self._fits_books(indices.shape[-1])):
            raise ValueError(f"indices must have {self.books} books in their last axis, got shape {list(indices.shape)}")
        check_indices("indices", indices, self.codebook_sizes[: 1 if self.books is None else indices.shape[-1]])
        return self._lookup(indices.long())

    def _fits_books(self, count: int) -> bool:
        return count == self.books

    # -- what a variant implements ----------------------------------------------------------------------------------------

    @abstractmethod
    def _quantize(self, z: Tensor, keep: Tensor | None) -> Choice:
        """Quantize rows z [N, d]; rows where `keep` [N] is False are zero and must not count."""

    @abstractmethod
    def _encode(self, z: Tensor) -> Tensor:
        """Indices of rows z [N, d]."""

    @abstractmethod
    def _lookup(self, indices: Tensor) -> Tensor:
        """`codes_of` for checked int64 indices."""

    def _combine(self, codes: Tensor) -> Tensor:
        """Codes of the books -> code: [..., d] or [..., M, d] -> [..., d]."""
        return codes

    # -- layout ----------------------------------------------------------------------------------------------------------

    def _enter(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Rows of x in the code space [N, d] in float32 (float64 stays), mask [N], and the shape of the positions."""
        check_float("x", x)
        if x.dim() < 1 + self.channels_first:
            raise ValueError(f"x must have shape {self._wanted()}, got {list(x.shape)}")
        if x.shape[1 if self.channels_first else -1] != self.dim:
            raise ValueError(f"x must have width {self.dim}, shape {self._wanted()}, got {list(x.shape)}")
        x = x.movedim(1, -1) if self.channels_first else x
        shape = x.shape[:-1]
        rows = x.reshape(-1, self.dim)
        # an exported graph is one for every number of vectors
        if not torch.compiler.is_compiling() and not len(rows):
            raise ValueError(f"x must hold at least one vector, got shape {list(x.shape)}")
        keep = None
        if mask is not None:
            keep = check_mask("mask", mask, shape).reshape(-1)
            rows = rows.masked_fill(~keep[:, None], 0.0)
        with _island(x):
            z = self.project_in(rows.to(self._dtype(rows)))
        self._check_rows(rows, z, keep)
        return z, keep, shape

    def _dtype(self, x: Tensor) -> torch.dtype:
        """Type the work is done in: that of the weights, else float32 (float64 for float64 input)."""
        weight = next(self.parameters(), None)
        wide = x.dtype == torch.float64 if weight is None else weight.dtype == torch.float64
        return torch.float64 if wide else torch.float32

    def _check_rows(self, rows: Tensor, z: Tensor, keep: Tensor | None) -> None:
        """Refuse what must not reach a codebook (in eager mode: a compiled graph shows NaN in its codes instead).

        Where a training step sums over ranks, bad rows on one are refused on all, so that no rank waits for another.
        """
        if torch.compiler.is_compiling():
            return
        if not (self.training and self._joins_ranks and world_size() > 1):
            return self._check_values(rows, z, keep)
        problem = None
        try:
            self._check_values(rows, z, keep)
        except ValueError as error:
            problem = error
        refused = sum_over_ranks(torch.tensor(float(problem is not None), device=rows.device))
        if problem is not None:
            raise problem
        if bool(refused):
            raise ValueError("x must be finite on every rank: another rank refused its batch")

    def _check_values(self, rows: Tensor, z: Tensor, keep: Tensor | None) -> None:
        flat = z.detach().flatten()
        # a finite sum proves finite entries, one of squares (with room for a difference to codes) that losses are finite;
        # whatever is not finite in x is not finite after the map either, which is often much narrower
        total = 16 * torch.dot(flat, flat) if self._squares else flat.sum()
        if not math.isfinite(total.item()):
            check_finite("x", rows)
            if self._squares or not bool(torch.isfinite(flat).all()):
                peak = float(rows.detach().abs().max())
                kind = str(z.dtype).removeprefix("torch.")
                raise ValueError(f"x must have a sum of squares that {kind} holds, got entries up to {peak:.3g}; scale it down")
        if keep is not None and not bool(keep.any()):
            raise ValueError("mask must keep at least one vector, got all False")

    @staticmethod
    def _weighed(digits: Tensor, weights: Tensor) -> Tensor:
        """Mixed-radix integer sum_i digits_i weights_i [...]: a matrix product where that is exact, much the faster way."""
        if not weights.is_floating_point():
            return (digits.long() * weights).sum(dim=-1)
        return (digits.to(weights.dtype) @ weights).long()

    def _weights(self, weights: Tensor) -> Tensor:
        """Integer weights in the narrowest type whose products are exact; accelerators may round float32 products (TF32)."""
        device = weights.device.type
        if device == "cpu" and self.codebook_size <= 2**24:
            return weights.float()
        return weights.double() if device != "mps" and self.codebook_size <= 2**52 else weights

    @staticmethod
    def _sealed(choice: Choice, z: Tensor) -> Choice:
        """In a compiled graph, which cannot raise, a non-finite row has index -1 and its codes are NaN."""
        if not torch.compiler.is_compiling():
            return choice
        bad = ~torch.isfinite(z).all(dim=-1)
        indices = choice.indices.masked_fill(bad if choice.indices.dim() == 1 else bad[:, None], -1)
        return choice._replace(codes=choice.codes.masked_fill(bad[:, None], float("nan")), indices=indices)

    def _wanted(self) -> str:
        return f"[B, {self.dim}, ...]" if self.channels_first else f"[..., {self.dim}]"

    def _leave(self, codes: Tensor, keep: Tensor | None, shape: torch.Size) -> Tensor:
        out = self.project_out(codes)
        if keep is not None:
            out = out.masked_fill(~keep[:, None], 0.0)
        out = out.view(*shape, self.dim)
        return out.movedim(-1, 1) if self.channels_first else out

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move with the model but stay in float32: half-precision books and running counts drift."""

        def keep_float(x: Tensor) -> Tensor:
            moved = fn(x)
            half = moved.is_floating_point() and moved.dtype in (torch.float16, torch.bfloat16)
            return x.to(moved.device) if half else moved

        return super()._apply(keep_float, recurse)

    def _generator(self, step: int, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator for one training step: the same on every rank and after a resume."""
        return torch.Generator(device).manual_seed((self.seed * 0x9E3779B1 + step) & 0x7FFFFFFFFFFFFFFF)

    # -- save and load -----------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the constructor's arguments (``config.json``) and the whole state (``model.safetensors``) to `folder`."""
        write_checkpoint(folder, self, {"class": type(self).__name__, "arguments": self.arguments})

    @classmethod
    def from_pretrained(cls: type[Q], folder: str | Path) -> Q:
        """Load what `save_pretrained` wrote; `Quantizer.from_pretrained` loads any variant.

        Raises:
            FileNotFoundError: `folder` holds no quantizer. ValueError: it holds one of another class.
        """
        path = Path(folder)
        described = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        name = described.get("class", "")
        found = Quantizer._named(name)
        if found is None or not issubclass(found, cls):
            raise ValueError(f"folder={str(folder)!r} holds a {name!r}, not a {cls.__name__}")
        with seeded(0):  # the first weights, replaced at once
            module = found(**described["arguments"])
        module.load_state_dict(load_file(path / WEIGHTS))
        return module  # type: ignore[return-value]

    @staticmethod
    def _named(name: str) -> type[Quantizer] | None:
        """The quantizer class of this name, imported if it has to be."""
        return Quantizer._registry.get(name) or getattr(import_module("tokenry.codecs"), name, None)

    def extra_repr(self) -> str:
        """Arguments, as given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())


def _island(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off, where it is on (entering it costs as much as a small quantizer does)."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def spread(values: Tensor, keep: Tensor | None, fill: float = 0.0) -> Tensor:
    """Rows [n, ...] to the places where `keep` [N] is True, `fill` elsewhere: [N, ...]; unchanged without `keep`."""
    if keep is None:
        return values
    out = values.new_full((keep.shape[0], *values.shape[1:]), fill)
    return out.masked_scatter(keep.view(-1, *[1] * (values.dim() - 1)), values)
