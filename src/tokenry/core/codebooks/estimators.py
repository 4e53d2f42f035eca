"""Gradients through the choice of a code: straight-through, rotation trick, DiVeQ, Gumbel-softmax, index back-propagation.

z [N, D] is the encoder's output, q [N, D] its code; each estimator has the value of the code and differs in the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ESTIMATORS = ("straight_through", "rotation", "gumbel", "index_backprop", "diveq")

# Estimators that choose by a softmax over the book and so need the logits of all codes.
SOFT_ESTIMATORS = ("gumbel", "index_backprop")


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor) -> Tensor:
        return q.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """Q in the forward pass, identity to z in the backward pass; exactly q, not z + (q - z)."""
    if torch.compiler.is_compiling():
        return q.detach() + (z - z.detach())
    if not (torch.is_grad_enabled() and z.requires_grad):
        return q.detach()
    return _Passed.apply(z, q.detach())  # type: ignore[return-value]


class _Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, q: Tensor, to_z: float, to_q: float) -> Tensor:
        ctx.save_for_backward(z, q)
        ctx.weights = to_z, to_q
        return F.mse_loss(q, z) * (to_z + to_q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, q = ctx.saved_tensors
        (to_z, to_q), scale = ctx.weights, grads[0] * (2 / z.numel())
        wants_z, wants_q = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # a second derivative is wanted: each term moves one side alone
            return (z - q.detach()) * (to_z * scale), (q - z.detach()) * (to_q * scale), None, None
        gap = q - z
        pull_z = gap * (-to_z * scale) if wants_z else None
        return pull_z, gap.mul_(to_q * scale) if wants_q else None, None, None


def pull_together(z: Tensor, q: Tensor, to_z: float, to_q: float) -> Tensor:
    """to_z mse(z, sg q) + to_q mse(sg z, q), the commitment and the codebook term, in one pass over the difference."""
    if torch.compiler.is_compiling():
        return to_z * F.mse_loss(z, q.detach()) + to_q * F.mse_loss(q, z.detach())
    return _Pull.apply(z, q, to_z, to_q)  # type: ignore[return-value]


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, codebook: Tensor, indices: Tensor, to_z: float, to_q: float) -> tuple[Tensor, Tensor]:
        rows = F.embedding(indices, codebook)
        gap = rows - z
        flat = gap.flatten()
        ctx.save_for_backward(z, codebook, indices, gap)
        ctx.weights = to_z, to_q
        return rows, torch.dot(flat, flat) * ((to_z + to_q) / z.numel())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, codebook, indices, gap = ctx.saved_tensors
        (to_z, to_q), scale = ctx.weights, grads[1] * (2 / z.numel())
        if torch.is_grad_enabled():  # a second derivative is wanted: each term moves one side alone
            rows = F.embedding(indices, codebook)
            to_rows = (rows - z.detach()) * (to_q * scale)
            moved = torch.zeros_like(codebook).index_add(0, indices, to_rows)
            return grads[0] + (z - rows.detach()) * (to_z * scale), moved, None, None, None
        wants_z, wants_book = ctx.needs_input_grad[:2]
        moved = torch.ops.aten.embedding_dense_backward(gap, indices, len(codebook), -1, False) if wants_book else None
        return (
            torch.addcmul(grads[0], gap, -to_z * scale) if wants_z else None,
            None if moved is None else moved.mul_(to_q * scale),
            *[None] * 3,
        )


def chosen_rows(z: Tensor, codebook: Tensor, indices: Tensor, to_z: float, to_q: float) -> tuple[Tensor, Tensor]:
    """Rows q of `codebook` [K, D] at `indices` [N], straight through to z [N, D]; to_z mse(z, sg q) + to_q mse(sg z, q).

    One node with one difference: as nodes of their own the parts move the same numbers through memory several times.
    """
    if torch.compiler.is_compiling():
        rows = F.embedding(indices, codebook)
        return straight_through(z, rows), pull_together(z, rows, to_z, to_q)
    return _Chosen.apply(z, codebook, indices, to_z, to_q)  # type: ignore[return-value]


class _RoundedTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, shift: Tensor, half: Tensor, lift: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        bent = torch.tanh(z + shift)
        rounded = torch.addcmul(lift, bent, half).round_()
        ctx.save_for_backward(z, shift, half, unit, bent)
        ctx.mark_non_differentiable(rounded)
        return rounded / unit, rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, shift, half, unit, bent = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            bent = torch.tanh(z + shift)
        return torch.ops.aten.tanh_backward(grads[0] * (half / unit), bent), None, None, None, None


def rounded_tanh(z: Tensor, shift: Tensor, half: Tensor, lift: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """(r / unit with the gradient of what was rounded, r) for r = round(tanh(z + shift) half + lift); z [..., C], others [C].

    One node of the graph: for a few channels those of its parts would cost more than the numbers.
    """
    return _RoundedTanh.apply(z, shift, half, lift, unit)  # type: ignore[return-value]


def rotation_trick(z: Tensor, q: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Q in the forward pass; the gradient to z is rotated and scaled as the rotation that takes z to q.

    (||q|| / ||z||) [z - 2 (z.w) w + 2 (z.e) q^] with e = z/||z||, q^ = q/||q||, w = (e + q^)/||e + q^||, all but z constant.
    Straight-through where ||z||, ||q|| or ||e + q^|| is at most `eps`: there the rotation is undefined or its scale explodes.
    """
    with torch.no_grad():
        z_norm, q_norm = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (z, q))
        e, q_unit = z / z_norm.clamp(min=eps), q / q_norm.clamp(min=eps)
        w = e + q_unit
        w_norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        safe = (z_norm > eps) & (q_norm > eps) & (w_norm > eps)
        w = w / w_norm.clamp(min=eps)
        scale = q_norm / z_norm.clamp(min=eps)
    along_w, along_e = ((z * v).sum(dim=-1, keepdim=True) for v in (w, e))
    rotated = scale * (z - 2 * along_w * w + 2 * along_e * q_unit)
    return straight_through(torch.where(safe, rotated, z), q)


def directional(z: Tensor, q: Tensor, variance: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Z + ||q - z|| sg(u), u the direction of q - z + v, v ~ N(0, variance I): as far from z as q, nearly in its direction.

    The length has a gradient to z and to the code. Without a generator or variance the value is exactly q.

    Source: equations of DiVeQ and its variant without noise (Vali et al., 2025, arXiv 2509.26469).
    """
    error = q - z
    length = torch.linalg.vector_norm(error, dim=-1, keepdim=True)
    towards = error.detach()
    if generator is not None and variance:
        noise = torch.randn(towards.shape, dtype=towards.dtype, device=towards.device, generator=generator)
        towards = towards + variance**0.5 * noise
    moved = z + length * F.normalize(towards, dim=-1)
    return moved if generator is not None and variance else q.detach() + (moved - moved.detach())


def gumbel_softmax(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """(weights [N, K], index [N]): y = softmax((logits + G) / temperature), one-hot of its largest entry + y - sg(y).

    G = -log(-log U); without a generator there is no noise.
    """
    if generator is not None:
        tiny = torch.finfo(logits.dtype).tiny
        uniform = torch.rand(logits.shape, dtype=logits.dtype, device=logits.device, generator=generator).clamp(min=tiny)
        # U can round to 1 and -log U to 0
        logits = logits - (-uniform.log()).clamp(min=tiny).log()
    return _hard_weights((logits / temperature).softmax(dim=-1))


def index_backprop(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(weights [N, K], index [N]): one-hot of the largest logit + y - sg(y), y = softmax(logits / temperature); all learn."""
    return _hard_weights((logits / temperature).softmax(dim=-1))


def _hard_weights(soft: Tensor) -> tuple[Tensor, Tensor]:
    index = soft.argmax(dim=-1)
    hard = F.one_hot(index, soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach()), index


def annealed_temperature(step: int, *, start: float = 2.0, end: float = 0.5, factor: float = 0.999995) -> float:
    """max(start * factor^step, end): the schedule of Gumbel quantizers (defaults of wav2vec 2.0)."""
    return max(start * factor**step, end)
