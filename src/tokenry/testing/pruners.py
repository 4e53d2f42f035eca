"""Contract of the pruning wing: ``check_pruner(MyPruner(keep=0.25))``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokenry.core.seeding import seeded
from tokenry.pruning.base import Pruner
from tokenry.testing.verdict import fail, refuses

_B, _N, _D = 3, 24, 16


def _data(seed: int = 0, n: int = _N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_B, n, _D, generator=generator), torch.rand(_B, n, generator=generator)


def _select(pruner: Pruner, features: Tensor, importance: Tensor | None, mask: Tensor | None = None) -> Tensor:
    return pruner.select(features, importance=importance, mask=mask)


def _everything(pruner: Pruner) -> None:
    features, importance = _data()
    if not torch.equal(_select(replace(pruner, keep=1.0), features, importance), torch.arange(_N).expand(_B, -1)):
        fail("keep=1.0 is the identity", pruner, "keep=1.0 must return 0..N-1 in order")


def _exact_count(pruner: Pruner) -> None:
    features, importance = _data()
    for keep in (1, 7, 0.25, 0.5, 23):
        chosen = _select(replace(pruner, keep=keep), features, importance)
        planned = replace(pruner, keep=keep).plan(_N)
        if chosen.shape != (_B, planned) or chosen.dtype != torch.long:
            fail("exact count", pruner, f"keep={keep}: planned {planned}, got {chosen.dtype} {tuple(chosen.shape)}")
        if any(len(set(row)) != planned or min(row) < 0 or max(row) >= _N for row in chosen.tolist()):
            fail("exact count", pruner, f"keep={keep}: indices must be distinct and in range")


def _deterministic(pruner: Pruner) -> None:
    features, importance = _data()
    before = features.clone(), importance.clone()
    first = _select(pruner, features, importance)
    with seeded(123):
        second = _select(pruner, features, importance)
    if not torch.equal(first, second):
        fail("determinism", pruner, "two calls differ")
    if not (torch.equal(before[0], features) and torch.equal(before[1], importance)):
        fail("input untouched", pruner, "select changed its input")


def _batch_is_loop(pruner: Pruner) -> None:
    features, importance = _data()
    together = _select(pruner, features, importance)
    alone = torch.cat([_select(pruner, features[i : i + 1], importance[i : i + 1]) for i in range(_B)])
    if not torch.equal(together, alone):
        fail("batch equals loop", pruner, "a row depends on the other rows")


def _padding(pruner: Pruner) -> None:
    """Padding in the place of the last tokens: the same selection as without those tokens, whatever the padding holds."""
    features, importance = _data()
    k = replace(pruner, keep=5)
    mask = torch.ones(_B, _N, dtype=torch.bool)
    mask[:, 18:] = False
    first = _select(k, features, importance, mask)
    if bool((first >= 18).any()):
        fail("padding", pruner, "a masked token was kept")
    noisy = features.clone()
    noisy[:, 18:] = 100.0
    louder = importance.clone()
    louder[:, 18:] = 9.0
    if not torch.equal(first, _select(k, noisy, louder, mask)):
        fail("padding", pruner, "the content of padding changes the selection")
    if pruner.order_free:
        short = _select(k, features[:, :18], importance[:, :18])
        if not torch.equal(first, short):
            fail("padding", pruner, "a padded row differs from the same row unpadded")


def _permutation(pruner: Pruner) -> None:
    if not pruner.order_free:
        return
    features, importance = _data()
    order = torch.randperm(_N, generator=torch.Generator().manual_seed(5))
    straight = _select(pruner, features, importance)
    mapped = order[_select(pruner, features[:, order], importance[:, order])]
    if not torch.equal(straight.sort().values, mapped.sort().values):
        fail("permutation", pruner, "permuting the tokens changes which are kept")


def _half(pruner: Pruner) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        features, importance = (x.to(dtype) for x in _data())
        if not torch.equal(_select(pruner, features, importance), _select(pruner, features.float(), importance.float())):
            fail("half precision", pruner, f"{dtype} differs from the same values in float32")


def _degenerate(pruner: Pruner) -> None:
    features, importance = _data()
    cases = {
        "one token": (features[:, :1], importance[:, :1], 1),
        "equal importances": (features, torch.ones_like(importance), 6),
        "zero-norm rows": (torch.cat([torch.zeros(_B, 4, _D), features[:, 4:]], dim=1), importance, 6),
        "identical tokens": (torch.ones_like(features), importance, 6),
        "everything equal": (torch.ones_like(features), torch.ones_like(importance), 6),
    }
    for name, (x, w, k) in cases.items():
        chosen = _select(replace(pruner, keep=k), x, w)
        if any(len(set(row)) != k for row in chosen.tolist()):
            fail("degenerate input", pruner, f"{name}: got {chosen.tolist()}")


def _bad_values(pruner: Pruner) -> None:
    features, importance = _data()
    broken = features.clone()
    broken[1, 3, 2] = float("nan")
    infinite = importance.clone()
    infinite[0, 1] = float("inf")
    refuses(pruner, "features", lambda: _select(pruner, broken, importance))
    refuses(pruner, "importance", lambda: _select(pruner, features, infinite))
    refuses(pruner, "importance", lambda: _select(pruner, features, importance[:, :-1]))
    refuses(pruner, "features", lambda: _select(pruner, features[0], importance[0]))
    refuses(pruner, "importance", lambda: _select(pruner, features, importance.to("meta")))
    refuses(pruner, "mask", lambda: _select(replace(pruner, keep=20), features, importance, torch.arange(_N) < 9))
    for keep in (0, 0.0, -1, -0.5, 1.5, 75.0, float("nan"), True, "0.5", None):
        refuses(pruner, "keep", lambda keep=keep: replace(pruner, keep=keep))


PRUNER_CHECKS = (
    _everything,
    _exact_count,
    _deterministic,
    _batch_is_loop,
    _padding,
    _permutation,
    _half,
    _degenerate,
    _bad_values,
)


def check_pruner(pruner: Pruner) -> None:
    """Run every contract check of the pruning wing on `pruner`; it must be a frozen dataclass with a `keep` field.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for check in PRUNER_CHECKS:
        check(pruner)
