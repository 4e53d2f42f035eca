"""Sensitivity of a projector's output to its input, token by token: two-sided differences, forward mode, closed form.

S(i) = mean over directions u of ``||J_M(x_i) u||`` (ZOO-Prune, eq. 3-4 and its proposition). All directions are shared by all
tokens. The probe runs in float32 (float64 stays): in half precision a step of 0.01 along a unit direction is below the spacing
of values near 1 and the difference would measure rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.core.checks import check_device, check_finite, check_float, check_int, check_shape
from tokenry.core.precision import outside_autocast

Map = Callable[[Tensor], Tensor]
_CHUNK = 8
_TWO_LAYER = ("LlavaMultiModalProjector", "LlavaNextMultiModalProjector", "LlavaOnevisionMultiModalProjector")
_STOCHASTIC = (nn.Dropout, nn.modules.batchnorm._BatchNorm)


def unit_directions(count: int, width: int, *, generator: torch.Generator | None = None) -> Tensor:
    """`count` random directions [m,d] float32: normal draws divided by (norm + 1e-12)."""
    check_int("directions", count, 1)
    draws = torch.randn(count, width, generator=generator, device=generator.device if generator else None)
    return normalised(draws)


def normalised(directions: Tensor) -> Tensor:
    """Rows divided by (norm + 1e-12)."""
    return directions / (torch.linalg.vector_norm(directions, dim=-1, keepdim=True) + 1e-12)


@torch.no_grad()
@outside_autocast
def two_sided_sensitivity(projector: Map, x: Tensor, directions: Tensor, *, step: float = 0.01, chunk: int = _CHUNK) -> Tensor:
    """``mean_j ||M(x + h u_j) - M(x - h u_j)|| / 2h`` [B,N] (eq. 3-4); `chunk` directions at a time.

    Memory O(chunk x B x N x D); 2 m projector passes.
    """
    project, x, directions = _prepared(projector, x, directions)
    total = x.new_zeros(x.shape[:2])
    for block in directions.split(chunk):
        shift = step * block[:, None, None, :]
        forward, backward = project(x + shift), project(x - shift)
        total += torch.linalg.vector_norm(forward.sub_(backward), dim=-1).sum(dim=0)
    return total / (2.0 * step * len(directions))


@torch.no_grad()
@outside_autocast
def exact_sensitivity(projector: Map, x: Tensor, directions: Tensor, *, chunk: int = _CHUNK) -> Tensor:
    """``mean_j ||J_M(x) u_j||`` [B,N] without a step: closed form for linear-activation-linear, else forward mode."""
    layers = two_layer(projector)
    if layers is not None:
        _checked(projector, x, directions)
        return _closed_form(layers, _widened(x), directions.to(_widened(x).dtype))
    project, x, directions = _prepared(projector, x, directions)
    total = x.new_zeros(x.shape[:2])
    for direction in directions:
        tangent: Any = torch.func.jvp(project, (x,), (direction.expand_as(x),))[1]
        total += torch.linalg.vector_norm(tangent, dim=-1)
    return total / len(directions)


def _closed_form(layers: tuple[nn.Linear, Map, nn.Linear], x: Tensor, directions: Tensor) -> Tensor:
    """J u = W2 diag(act'(W1 x + b1)) W1 u; W1 u is shared by all tokens, so one product with W2 is left per direction."""
    first, activation, second = layers
    weight = first.weight.to(x.dtype)
    before = nn.functional.linear(x, weight, None if first.bias is None else first.bias.to(x.dtype))
    slope = torch.func.jvp(activation, (before,), (torch.ones_like(before),))[1].flatten(0, 1)
    reach = directions @ weight.T
    blocks = _triangle(second.weight.to(x.dtype))
    total = x.new_zeros(slope.shape[0])
    for direction in reach:
        tangent = slope * direction
        square = torch.zeros_like(total)
        for start, rows in blocks:
            square += (tangent[:, start:] @ rows).square_().sum(dim=1)
        total += square.sqrt_()
    return (total / len(directions)).view(x.shape[:2])


def _triangle(weight: Tensor, count: int = 8) -> list[tuple[int, Tensor]]:
    """Row blocks, transposed, of the triangular factor R of ``W2 = Q R``: ``||W2 y|| = ||R y||`` at about half the work."""
    hidden = weight.shape[1]
    if min(weight.shape) < 64 * count:
        return [(0, weight.T.contiguous())]
    factor = torch.linalg.qr(weight, mode="r").R
    size = -(-factor.shape[0] // count)
    return [(start, factor[start : start + size, start:hidden].T.contiguous()) for start in range(0, factor.shape[0], size)]


def two_layer(projector: Any) -> tuple[nn.Linear, Map, nn.Linear] | None:
    """The parts of a linear-activation-linear projector (LLaVA's, or an ``nn.Sequential`` of three), else None."""
    projector = getattr(projector, "module", projector) if getattr(projector, "patch_width", None) is None else None
    if isinstance(projector, nn.Sequential) and len(projector) == 3:
        first, activation, second = projector[0], projector[1], projector[2]
    elif type(projector).__name__ in _TWO_LAYER:
        first, activation, second = projector.linear_1, projector.act, projector.linear_2
    else:
        return None
    linear = isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    return (first, activation, second) if linear and callable(activation) else None  # pyright: ignore


def low_rank(projector: nn.Module, rank: int) -> nn.Module:
    """A copy of a linear-activation-linear projector whose linear maps are truncated to `rank` singular values.

    Each becomes two thin products; biases stay (the probe of the released LLaVA-NeXT path, rank 128).

    Raises:
        ValueError: another kind of projector, or a rank above the smallest side of a layer.
    """
    layers = two_layer(projector)
    if layers is None:
        raise ValueError(f"projector must be linear-activation-linear for a low-rank probe, got {type(projector).__name__}")
    first, activation, second = layers
    check_int("rank", rank, 1, min(*first.weight.shape, *second.weight.shape))
    act = activation if isinstance(activation, nn.Module) else nn.GELU()
    return nn.Sequential(*_truncated(first, rank), act, *_truncated(second, rank))


@torch.no_grad()
def _truncated(linear: nn.Linear, rank: int) -> tuple[nn.Linear, nn.Linear]:
    left, values, right = torch.linalg.svd(linear.weight.float(), full_matrices=False)
    down = nn.Linear(linear.in_features, rank, bias=False, device=linear.weight.device)
    up = nn.Linear(rank, linear.out_features, bias=linear.bias is not None, device=linear.weight.device)
    down.weight.copy_(right[:rank])
    up.weight.copy_(left[:, :rank] * values[:rank])
    if linear.bias is not None:
        up.bias.copy_(linear.bias)
    return down, up


def _prepared(projector: Map, x: Tensor, directions: Tensor) -> tuple[Map, Tensor, Tensor]:
    _checked(projector, x, directions)
    wide = _widened(x)
    project = _float32(projector, wide.dtype)
    _require_tokenwise(project, wide)
    return project, wide, directions.to(wide.dtype)


def _checked(projector: Map, x: Tensor, directions: Tensor) -> None:
    sizes = check_shape("x", check_float("x", x), "B N d")
    check_finite("x", x)
    check_shape("directions", check_float("directions", directions), "m d", d=sizes["d"])
    check_device("directions", directions, "x", x)
    check_finite("directions", directions)
    if isinstance(projector, nn.Module):
        noisy = [n for n, m in projector.named_modules() if isinstance(m, _STOCHASTIC) and m.training]
        if noisy:
            raise ValueError(f"projector must be in eval mode: {noisy[0] or type(projector).__name__} is in training mode")


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _float32(projector: Map, dtype: torch.dtype) -> Map:
    if not isinstance(projector, nn.Module) or all(p.dtype == dtype for p in projector.parameters()):
        return projector
    state = {name: value.to(dtype) for name, value in [*projector.named_parameters(), *projector.named_buffers()]}
    return lambda tokens: torch.func.functional_call(projector, state, (tokens,))


def _require_tokenwise(project: Map, x: Tensor) -> None:
    """A token's output must not depend on the others: compare the first token alone with the first of all."""
    if x.shape[1] == 1:
        return
    alone, among = project(x[:, :1]), project(x)
    if alone.shape[1] != 1 or among.shape[1] != x.shape[1]:
        raise ValueError(f"projector must map N tokens to N tokens, got {list(x.shape)} -> {list(among.shape)}")
    spread = among.abs().amax().clamp(min=1e-6)
    if float((alone[:, 0] - among[:, 0]).abs().amax() / spread) > 1e-3:
        raise ValueError("projector must act on every token by itself; this one mixes tokens")
