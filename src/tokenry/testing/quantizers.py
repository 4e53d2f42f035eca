"""The contract of the codecs wing's quantizers, as a check anybody can run on theirs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tokenry.codecs.vq.base import Quantized, Quantizer


def check_quantizer(make: Callable[[], Quantizer], *, batch: int = 3, length: int = 40, seed: int = 0) -> None:
    """Assert the contract for the quantizers that `make()` returns (each call a fresh, equal one).

    Return type and shapes, decode(encode(x)), determinism, masks (a padded batch equals the unpadded one), half precision,
    layouts, evaluation that changes nothing, gradient to the input, refused input, save and load; `check_training`, one
    exported program for every size, activation checkpointing, a single vector, entries too large to be squared,
    frozen books.

    Raises:
        AssertionError: with what does not hold.
    """
    x = torch.randn(batch, length, make().dim, generator=torch.Generator().manual_seed(seed))
    for check in (_shapes, _round_trip, _deterministic, _masked, _half, _evaluation, _gradient, _refusals, _saved):
        check(make, x)
    for check in (_exported, _checkpointed, _single_vector, _large_entries, _frozen):
        check(make, x)
    check_training(make, steps=6, seed=seed)


def check_training(make: Callable[[], Quantizer], *, steps: int = 30, batch: int = 2, length: int = 20, seed: int = 0) -> None:
    """Assert that `make()` trains: `steps` steps of gradient descent, each with two forward passes before one backward pass.

    Everything stays finite, a book that was meant to learn has moved, and a gradient taken after later forward passes is
    that taken at once: what autograd saved is never written.

    Raises:
        AssertionError: with what does not hold.
    """
    quantizer = make().train()
    first = {name: value.clone() for name, value in quantizer.state_dict().items()}
    parameters = [parameter for parameter in quantizer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05) if parameters else None
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        # the scale moves, so that codes fall out of use
        one, two = (torch.randn(batch, length, quantizer.dim, generator=generator) * (1 + step % 3) for _ in range(2))
        expected = _input_gradient(copy.deepcopy(quantizer), one) if step % 10 == 0 else None
        one.requires_grad_()
        terms = [quantizer(one), quantizer(two)]
        total = torch.stack([out.loss + out.codes.square().mean() for out in terms]).sum()
        if expected is not None:
            (found,) = torch.autograd.grad(_total(terms[0]), one, retain_graph=True)
            torch.testing.assert_close(found, expected, msg=f"step {step}: a later forward pass changes an earlier gradient")
        if optimizer is not None:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        if getattr(quantizer, "statistics", "forward") == "manual":
            quantizer.update_books()  # type: ignore[operator]
        _require(bool(torch.isfinite(total)), f"step {step}: the loss is {total.item()}")
    for name, value in quantizer.state_dict().items():
        _require(bool(torch.isfinite(value).all()), f"after {steps} steps {name} is not finite")
    learned = [name for name, value in quantizer.state_dict().items() if not torch.equal(value, first[name])]
    _require(not parameters or bool(learned), "nothing was learned")


def _total(out: Quantized) -> Tensor:
    return out.loss + out.codes.square().mean()


def _input_gradient(quantizer: Quantizer, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(_total(quantizer(leaf)), leaf)[0]


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
    losses = out.stats.losses
    _require(losses is None or not losses.requires_grad, "stats.losses holds the graph")
    terms = out.stats.terms
    if terms is not None:
        _require(not any(term.requires_grad for term in terms.values()), "stats.terms holds the graph")
        torch.testing.assert_close(
            torch.stack(list(terms.values())).sum(), out.loss.detach(), msg="terms do not add up to loss"
        )
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


def _exported(make: Callable[[], Quantizer], x: Tensor) -> None:
    """One exported program answers for sizes it was not exported with."""
    quantizer = _trained(make, x)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    several = {"x": sizes, "mask": None} | ({"levels": None} if "levels" in _options(quantizer) else {})
    given = (x[:2], None) if len(several) == 2 else (x[:2], None, None)
    program = torch.export.export(quantizer, given, dynamic_shapes=several).module()
    for part in (x[:2], x[:, :7]):
        expected, found = quantizer(part), program(part, *given[1:])
        _require(torch.equal(found.indices, expected.indices), f"the exported indices of shape {list(part.shape)} differ")
        torch.testing.assert_close(found.codes, expected.codes)
        torch.testing.assert_close(found.stats.perplexity, expected.stats.perplexity)


def _options(quantizer: Quantizer) -> tuple[str, ...]:
    code = type(quantizer).forward.__code__
    return code.co_varnames[: code.co_argcount]


def _checkpointed(make: Callable[[], Quantizer], x: Tensor) -> None:
    """Activation checkpointing gives the same step, or is refused by name."""
    plain, repeated = make().train(), make().train()
    expected = _input_gradient_through(lambda part: _scored(plain, part), x)
    try:
        found = _input_gradient_through(
            lambda part: checkpoint(lambda inner: _scored(repeated, inner), part, use_reentrant=False), x
        )
    except RuntimeError as error:
        named = any(type(part).__name__ in str(error) for part in repeated.modules())
        _require("activation checkpointing" in str(error) and named, f"refused by: {error}")
        return
    torch.testing.assert_close(found, expected, msg="activation checkpointing changes the gradient")
    for name, value in plain.state_dict().items():
        _require(torch.equal(value, repeated.state_dict()[name]), f"activation checkpointing changes {name}")


def _scored(quantizer: Quantizer, x: Tensor) -> Tensor:
    # products need their factors in the backward pass, so that the repeated pass is really run
    out = quantizer(x.tanh())
    return (out.codes.tanh() * x).square().mean() + out.loss


def _input_gradient_through(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    score(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def _single_vector(make: Callable[[], Quantizer], x: Tensor) -> None:
    """A vector [D] is a batch of one without its axis."""
    quantizer = _trained(make, x)
    alone, batch = quantizer(x[0, 0]), quantizer(x[0, :1])
    for found, expected in ((alone.codes, batch.codes), (alone.indices, batch.indices)):
        _require(torch.equal(found, expected[0]), "a vector alone differs from a batch of one")
    _require(torch.equal(quantizer.encode(x[0, 0]), alone.indices), "encode of one vector differs from forward's")
    torch.testing.assert_close(quantizer.decode(alone.indices), alone.codes)


def _large_entries(make: Callable[[], Quantizer], x: Tensor) -> None:
    """Finite entries are coded with a finite loss, or refused before anything is learned."""
    quantizer = make().train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    try:
        out = quantizer(x * 1e19)
    except ValueError as error:
        _require("sum of squares" in str(error), f"refused by: {error}")
        for name, value in quantizer.state_dict().items():
            _require(torch.equal(value, before[name]), f"refused input changed {name}")
        return
    _require(bool(torch.isfinite(out.loss)) and bool(torch.isfinite(out.codes).all()), "large entries give no finite answer")


def _frozen(make: Callable[[], Quantizer], x: Tensor) -> None:
    """In training frozen books stay; the input keeps its gradient, and the maps in and out learn."""
    quantizer = make().train().freeze()
    kept = {n: v.clone() for n, v in quantizer.state_dict().items() if "project_" not in n and n.split(".")[-1] != "steps"}
    leaf = x.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf, *(p for p in quantizer.parameters() if p.requires_grad)], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        _total(quantizer(leaf)).backward()
        optimizer.step()
        if getattr(quantizer, "statistics", "forward") == "manual":
            quantizer.update_books()  # type: ignore[operator]
    for name, value in kept.items():
        _require(torch.equal(value, quantizer.state_dict()[name]), f"{name} of a frozen quantizer has changed")
    _require(not torch.equal(leaf.detach(), x), "the input of a frozen quantizer has no gradient")


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
