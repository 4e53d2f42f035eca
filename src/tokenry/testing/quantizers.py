"""The contract of the codecs wing's quantizers, as a check anybody can run on theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from tokenry.codecs.vq.base import Quantized, Quantizer


def check_quantizer(make: Callable[[], Quantizer], *, batch: int = 3, length: int = 40, seed: int = 0) -> None:
    """Assert the contract for the quantizers that `make()` returns (each call a fresh, equal one).

    Return type and shapes, decode(encode(x)), determinism, masks (a padded batch equals the unpadded one), half precision,
    layouts, evaluation that changes nothing, gradient to the input, refused input, save and load.

    Raises:
        AssertionError: with what does not hold.
    """
    x = torch.randn(batch, length, make().dim, generator=torch.Generator().manual_seed(seed))
    for check in (_shapes, _round_trip, _deterministic, _masked, _half, _evaluation, _gradient, _refusals, _saved):
        check(make, x)


def _trained(make: Callable[[], Quantizer], x: Tensor) -> Quantizer:
    """After one training step, in evaluation mode."""
    quantizer = make().train()
    quantizer(x)
    return quantizer.eval()


def _shapes(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = make()
    out = quantizer(x)
    _require(isinstance(out, Quantized), f"forward returns {type(out).__name__}, not Quantized")
    _require(out.codes.shape == x.shape and out.codes.dtype == x.dtype, "codes differ from x in shape or type")
    books = () if quantizer.books is None else (quantizer.books,)
    _require(out.indices.shape == x.shape[:-1] + books and out.indices.dtype == torch.long, "indices are not int64 [..., M]")
    _require(out.loss.dim() == 0 and bool(torch.isfinite(out.loss)), "loss is not a finite scalar")
    _require(bool((out.indices < quantizer.codebook_size).all()), "an index is not below codebook_size")
    perplexity, usage, dead = out.stats
    vectors = x.shape[0] * x.shape[1]
    _require(bool((perplexity[~perplexity.isnan()] >= 1 - 1e-4).all()), "perplexity below 1")
    _require(
        bool((perplexity[~perplexity.isnan()] <= min(quantizer.codebook_size, vectors) * 1.001).all()), "perplexity too high"
    )
    _require(bool((usage <= 1).all()) and bool((dead >= 0).all()), "usage above 1 or dead codes below 0")
    _require(quantizer.bits > 0 and len(quantizer.codebook_sizes) == (quantizer.books or 1), "bits or codebook_sizes are wrong")


def _round_trip(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = _trained(make, x)
    out = quantizer(x)
    _require(torch.equal(quantizer.encode(x), out.indices), "encode differs from forward's indices")
    torch.testing.assert_close(quantizer.decode(out.indices), out.codes, rtol=1e-4, atol=1e-5)
    _require(torch.equal(quantizer.encode(x.flip(1)), out.indices.flip(1)), "a permutation of positions changes indices")


def _deterministic(make: Callable[[], Quantizer], x: Tensor) -> None:
    one, two = make().train(), make().train()
    for _ in range(3):
        a, b = one(x), two(x)
        _require(torch.equal(a.codes, b.codes) and torch.equal(a.indices, b.indices), "two equal quantizers differ")
    for name, value in one.state_dict().items():
        _require(torch.equal(value, two.state_dict()[name]), f"state {name} differs between two equal quantizers")


def _masked(make: Callable[[], Quantizer], x: Tensor) -> None:
    padded = torch.cat([x, torch.full_like(x[:, :7], float("nan"))], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    mask[:, x.shape[1] :] = False
    plain, masked = make().train(), make().train()
    a, b = plain(x), masked(padded, mask)
    _require(torch.equal(a.indices, b.indices[:, : x.shape[1]]), "padding changes indices")
    torch.testing.assert_close(a.codes, b.codes[:, : x.shape[1]])
    torch.testing.assert_close(a.loss, b.loss)
    _require(bool((b.codes[:, x.shape[1] :] == 0).all()), "codes of masked positions are not zero")
    _require(bool((b.indices[:, x.shape[1] :] == -1).all()), "indices of masked positions are not -1")
    _require(torch.equal(a.stats.vectors, b.stats.vectors), "masked positions count in stats")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, masked.state_dict()[name], msg=f"padding changes state {name}")


def _half(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = _trained(make, x)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = x.to(dtype)
        expected = quantizer.encode(rounded.float())
        out = quantizer(rounded)
        _require(out.codes.dtype == dtype, f"codes of {dtype} input are {out.codes.dtype}")
        _require(
            torch.equal(out.indices, expected), f"indices of {dtype} input differ from those of the same values in float32"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            _require(torch.equal(quantizer(rounded).indices, expected), "autocast changes indices")
    _require(
        torch.equal(make().train().to(torch.bfloat16)(x).indices, make().train()(x).indices), "a model in bf16 flips indices"
    )


def _evaluation(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = _trained(make, x)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(x * 3)
    quantizer.encode(x * 3)
    for name, value in quantizer.state_dict().items():
        _require(torch.equal(value, before[name]), f"evaluation changes {name}")


def _gradient(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = make().train()
    leaf = x.clone().requires_grad_()
    out = quantizer(leaf)
    (out.codes.square().sum() + out.loss).backward()
    _require(leaf.grad is not None and bool(torch.isfinite(leaf.grad).all()), "no finite gradient reaches the input")
    _require(bool((leaf.grad != 0).any()), "the gradient of the input is zero")


def _refusals(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = make().train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    bad = x.clone()
    bad[0, 1, 0] = float("nan")
    infinite = x.clone()
    infinite[-1, -1, -1] = float("inf")
    for value, error, words in (
        (bad, ValueError, "finite"),
        (infinite, ValueError, "finite"),
        (x[..., :-1], ValueError, "width"),
        (x[:, :0], ValueError, "at least one"),
        (x.long(), TypeError, "floating"),
    ):
        _raises(error, words, quantizer, value)
    _raises(ValueError, "mask", quantizer, x, torch.zeros(x.shape[:2], dtype=torch.bool))
    _raises(ValueError, "mask", quantizer, x, torch.ones(x.shape[0], x.shape[1] + 1, dtype=torch.bool))
    for name, value in quantizer.state_dict().items():
        _require(torch.equal(value, before[name]), f"refused input changed {name}")
    indices = quantizer.eval().encode(x)
    _raises(ValueError, "indices", quantizer.decode, torch.full_like(indices, quantizer.codebook_size))
    _raises(ValueError, "indices", quantizer.decode, torch.full_like(indices, -2))
    _raises(TypeError, "indices", quantizer.decode, indices.float())


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise AssertionError(problem)


def _raises(error: type[Exception], words: str, call: Callable[..., object], *arguments: object) -> None:
    message = None
    try:
        call(*arguments)
    except error as found:
        message = str(found)
    _require(message is not None, f"{error.__name__} about {words!r} was not raised")
    _require(words in str(message), f"the error does not speak of {words!r}: {message}")


def _saved(make: Callable[[], Quantizer], x: Tensor) -> None:
    quantizer = make().train()
    quantizer(x)
    with tempfile.TemporaryDirectory() as folder:
        quantizer.save_pretrained(folder)
        loaded = type(quantizer).from_pretrained(folder)
    for _ in range(2):  # training goes on from where it was
        a, b = quantizer.train()(x), loaded.train()(x)
        _require(torch.equal(a.indices, b.indices) and torch.equal(a.codes, b.codes), "a loaded quantizer differs")
