"""Hash codes of EET: target codes solved from the labels (step 1), and codes as signs, bytes and back."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_float, check_int, check_range, check_shape, check_tensor

Mode = Literal["item", "class", "class_average"]


def solve_hash_codes(
    onehot: Any,
    bits: int,
    *,
    iterations: int = 15,
    sigma: float = 1.0,
    delta: float = 1e-4,
    init: tuple[Any, Any] | None = None,
    generator: torch.Generator | None = None,
    seed: int = 0,
    mode: Mode = "item",
) -> Tensor:
    """Target codes [n,bits] in {-1,+1} (float32) for items with labels `onehot` [n,c], by alternating closed forms (float64).

    With Y the labels [c,n], real codes V [bits,n], binary codes B [bits,n], and R = U1 U2 from svd(B V^T), each iteration does

    1. ``B = sign(R V)`` with sign(0) = +1
    2. ``U = sigma Y V^T pinv(sigma V V^T)``
    3. ``V = pinv(sigma U^T U + delta R^T R) (sigma U^T Y + delta R^T B)``
    4. R from svd(B V^T)

    and the last B is returned. When bits <= c every class gets one code. When bits > c, the directions that the labels do not
    explain keep their random start, so items of one class differ; `mode` makes one code per class explicit.

    Args:
        onehot: [n,c] of zeros with a single one per row (tensor or array).
        bits: code length K.
        iterations: rounds of the four steps.
        sigma: weight of the label term.
        delta: weight of the rotation term.
        init: start arrays (V, B), both [bits,n]; B is taken by its sign. Default: V normal, B signs of normal draws.
        generator: source of the default start arrays; None makes one from `seed`.
        seed: of the default start arrays.
        mode: ``"item"`` as in the paper; ``"class"`` solves on the c x c identity and gives each item its class's code;
            ``"class_average"`` solves per item and takes the sign of each class's mean.

    Raises:
        ValueError, TypeError: labels that are not one-hot, sizes or options out of range.
    """
    labels = _onehot(onehot)
    check_int("bits", bits, 1)
    check_int("iterations", iterations, 1)
    check_range("sigma", sigma, 0.0, low_open=True)
    check_range("delta", delta, 0.0, low_open=True)
    check_choice("mode", mode, ("item", "class", "class_average"))
    solved = np.eye(labels.shape[1]) if mode == "class" else labels
    v, b = _start(bits, solved.shape[0], init, generator, seed)
    b = _alternate(solved.T, v, b, iterations, sigma, delta)
    codes = b.T
    if mode == "class":
        codes = codes[labels.argmax(axis=1)]
    elif mode == "class_average":
        codes = np.where(labels.T @ codes >= 0, 1.0, -1.0)[labels.argmax(axis=1)]
    return torch.from_numpy(np.ascontiguousarray(codes)).float()


def _alternate(y: np.ndarray, v: np.ndarray, b: np.ndarray, iterations: int, sigma: float, delta: float) -> np.ndarray:
    rotation = _procrustes(b, v)
    for _ in range(iterations):
        b = np.where(rotation @ v >= 0, 1.0, -1.0)
        u = sigma * y @ v.T @ np.linalg.pinv(sigma * v @ v.T)
        system = sigma * u.T @ u + delta * rotation.T @ rotation
        v = np.linalg.pinv(system) @ (sigma * u.T @ y + delta * rotation.T @ b)
        rotation = _procrustes(b, v)
    return b


def _procrustes(b: np.ndarray, v: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(b @ v.T)
    return left @ right


def _onehot(onehot: Any) -> np.ndarray:
    labels = onehot.detach().cpu().numpy() if isinstance(onehot, Tensor) else np.asarray(onehot)
    labels = labels.astype(np.float64)
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"onehot must have shape [n, c], got {list(labels.shape)}")
    if not (np.isin(labels, (0.0, 1.0)).all() and (labels.sum(axis=1) == 1.0).all()):
        raise ValueError("onehot must hold a single 1 and otherwise 0 in every row")
    return labels


def _start(
    bits: int, n: int, init: tuple[Any, Any] | None, generator: torch.Generator | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    if init is not None:
        v, b = (np.array(x, dtype=np.float64) for x in init)
        for name, x in (("V", v), ("B", b)):
            if x.shape != (bits, n):
                raise ValueError(f"init {name} must have shape [bits, n] = [{bits}, {n}], got {list(x.shape)}")
            if not np.isfinite(x).all():
                raise ValueError(f"init {name} must be finite")
    else:
        if generator is None:
            generator = torch.Generator().manual_seed(check_int("seed", seed, 0))
        v, b = torch.randn(2, bits, n, generator=generator, dtype=torch.float64).numpy()
    return v, np.where(b >= 0, 1.0, -1.0)


def binary_codes(embedding: Tensor) -> Tensor:
    """Signs of `embedding` [...,K] as int8 in {-1,+1}; sign(0) is +1.

    Raises:
        ValueError: non-finite values (a NaN has no sign).
    """
    check_float("embedding", embedding)
    if not bool(torch.isfinite(embedding).all()):
        raise ValueError("embedding must be finite to have signs")
    return torch.where(embedding >= 0, 1, -1).to(torch.int8)


def pack_codes(codes: Tensor) -> Tensor:
    """Codes [n,K] in {-1,+1} packed into uint8 [n, ceil(K/8)], first bit highest; missing bits are 0.

    Raises:
        ValueError: other values than -1 and +1.
    """
    bits = (check_codes("codes", codes) > 0).cpu().numpy()
    return torch.from_numpy(np.packbits(bits, axis=1))


def unpack_codes(packed: Tensor, bits: int) -> Tensor:
    """Packed codes uint8 [n, ceil(bits/8)] back to int8 [n,bits] in {-1,+1}.

    Raises:
        ValueError, TypeError: not uint8, or a width that does not fit `bits`.
    """
    check_int("bits", bits, 1)
    check_tensor("packed", packed)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}")
    if packed.dim() != 2 or packed.shape[1] != -(-bits // 8):
        raise ValueError(f"packed must have shape [n, {-(-bits // 8)}] for {bits} bits, got {list(packed.shape)}")
    unpacked = np.unpackbits(packed.cpu().numpy(), axis=1, count=bits)
    return torch.from_numpy(unpacked.astype(np.int8) * 2 - 1)


def check_codes(name: str, codes: Any) -> Tensor:
    """Return `codes` if it is a tensor [n,K] of -1 and +1, else raise."""
    check_shape(name, codes, "n K")
    if not bool((codes.abs() == 1).all()):
        raise ValueError(f"{name} must hold only -1 and +1")
    return codes
