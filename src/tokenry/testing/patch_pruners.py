"""Contract of pruners of patches inside a vision transformer: ``check_patch_pruner(MyPruner(keep={0: 0.5}))``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.pruning.vit_schedule import PatchPruner
from tokenry.testing.clients import LikePeft, one_way
from tokenry.testing.verdict import fail, refuses
from tokenry.testing.zoo import tiny

_PATCHES, _KEEP = 36, {0: 0.5, 1: 7}
_NEAR = 0.03
"""What bfloat16 inside the model may move a score by, as a share of the largest score of the image."""


def _images() -> Tensor:
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def _run(pruner: PatchPruner, model: nn.Module, pixels: Tensor) -> tuple[Tensor, Any]:
    with pruner.attach(model) as trace:
        return model(pixels).last_hidden_state, trace


@torch.no_grad()
def _counts(pruner: PatchPruner) -> None:
    model, pruned = tiny("vit"), replace(pruner, keep=_KEEP)
    states, trace = _run(pruned, model, _images())
    if states.shape[1] != 1 + pruned.plan(_PATCHES):
        fail("exact count", pruner, f"planned {pruned.plan(_PATCHES)} patches, got {states.shape[1] - 1}")
    found = [(row["image"], row["layer"], row["kept"]) for row in trace.to_rows()]
    wanted = [(image, block, count) for block, count in pruned.stages(_PATCHES).items() for image in range(3)]
    if found != wanted:
        fail("trace", pruner, f"recorded {found}, wanted (image, block, kept) {wanted}")


@torch.no_grad()
def _everything(pruner: PatchPruner) -> None:
    model = tiny("vit")
    plain = model(_images()).last_hidden_state
    if not torch.equal(_run(replace(pruner, keep={0: 1.0, 2: 1.0}), model, _images())[0], plain):
        fail("keep=1.0 is the identity", pruner, "the states differ from those of the plain model")
    _run(replace(pruner, keep=_KEEP), model, _images())
    if not torch.equal(model(_images()).last_hidden_state, plain):
        fail("no trace", pruner, "the model gives other states after the block than before it")


def _deterministic(pruner: PatchPruner) -> None:
    model, pruned = tiny("vit"), replace(pruner, keep=_KEEP)
    state = torch.random.get_rng_state()
    first, second = (_run(pruned, model, _images())[0] for _ in range(2))
    if not torch.equal(first, second):
        fail("determinism", pruner, "two attachments differ")
    if not torch.equal(state, torch.random.get_rng_state()):
        fail("determinism", pruner, "the global random state was changed")


def _batch_is_loop(pruner: PatchPruner) -> None:
    model, pruned = tiny("vit"), replace(pruner, keep=_KEEP)
    together, trace = _run(pruned, model, _images())
    with pruned.attach(model) as alone, torch.no_grad():  # one attachment, image after image
        states = torch.cat([model(image[None]).last_hidden_state for image in _images()])
    if hasattr(pruner, "seed"):
        return  # draws go on from image to image
    if not torch.allclose(together, states, atol=1e-5) or trace.counts() != alone.counts():
        fail("batch equals loop", pruner, "an image depends on the others of its batch")


def _half(pruner: PatchPruner) -> None:
    states, _ = _run(replace(pruner, keep=_KEEP), tiny("vit").to(torch.bfloat16), _images().bfloat16())
    if not bool(torch.isfinite(states).all()):
        fail("half precision", pruner, "states in bfloat16 are not finite")


@torch.no_grad()
def _autocast(pruner: PatchPruner) -> None:
    pruned, model = replace(pruner, keep={0: 0.5}), tiny("vit", initializer_range=0.3)  # attention is far from even there
    _, plain = _run(pruned, model, _images())
    with torch.autocast("cpu", torch.bfloat16):
        states, trace = _run(pruned, model, _images())
    if not bool(torch.isfinite(states).all()):
        fail("autocast", pruner, "the states are not finite")
    for wide, narrow in zip(plain.kept, trace.kept, strict=True):
        if wide.scores is None or narrow.scores is None:
            continue
        if narrow.scores.dtype != torch.float32:
            fail("autocast", pruner, f"scores must be float32, got {narrow.scores.dtype}")
        near = _NEAR * float(wide.scores.abs().max())
        changed = torch.ones(_PATCHES).scatter_add_(0, wide.indices, -torch.ones(_PATCHES))
        changed = (changed.scatter_add_(0, narrow.indices, torch.ones(_PATCHES)) != 1).nonzero()[:, 0]
        edge = wide.scores[wide.indices].min()
        if bool(((wide.scores[changed] - edge).abs() > near).any()):
            fail("autocast", pruner, "autocast changes which patches stay, and not only where scores are nearly equal")


@torch.no_grad()
def _compiled(pruner: PatchPruner) -> None:
    pruned = replace(pruner, keep={0: 7})
    whole = _run(pruned, tiny("vit", num_hidden_layers=1), _images())[0]
    how, compile_ = one_way(pruner)
    model = compile_(tiny("vit", num_hidden_layers=1))
    before = model(_images()).last_hidden_state
    if not torch.allclose(_run(pruned, model, _images())[0], whole, atol=1e-5):
        fail("compiled before", pruner, f"{how}, run once and then attached to, the model is not pruned")
    if not torch.allclose(model(_images()).last_hidden_state, before, atol=1e-5):
        fail("compiled before", pruner, f"{how}, the model is not plain after the block")


def _wrapped(pruner: PatchPruner) -> None:
    model, pruned = tiny("vit"), replace(pruner, keep=_KEEP)
    states = _run(pruned, model, _images())[0]
    for wrapper in (nn.DataParallel(model), LikePeft(model), nn.DataParallel(LikePeft(model))):
        if not torch.equal(_run(pruned, wrapper, _images())[0], states):
            fail("wrappers", pruner, f"attached to {type(wrapper).__name__} around the model, it gives other states")


def _count_is_a_cap(pruner: PatchPruner) -> None:
    model = tiny("vit")
    states, trace = _run(replace(pruner, keep={0: 192, 1: 7, 2: 18}), model, _images())
    if not torch.equal(states, _run(replace(pruner, keep={1: 7}), model, _images())[0]):
        fail("a count is a cap", pruner, f"of {_PATCHES} patches, keep=192 does not leave all")
    if [row["kept"] for row in trace.to_rows()[::3]] != [_PATCHES, 7, 7]:
        fail("a count is a cap", pruner, f"recorded {trace.to_rows()}, wanted {_PATCHES}, 7 and 7 patches")


def _bad_values(pruner: PatchPruner) -> None:
    for keep in ({}, {0: 0.0}, {0: 1.5}, {-1: 0.5}, {0: 0}, {9: 0.5}, 0.5, "half"):
        bad = partial(replace, pruner, keep=keep)  # some are refused at once, some by a model of that depth
        refuses(pruner, "keep", lambda bad=bad: _run(bad(), tiny("vit"), _images()), given=f"keep={keep!r}")


PATCH_PRUNER_CHECKS = (
    _counts, _everything, _deterministic, _batch_is_loop, _half, _autocast, _compiled, _wrapped, _count_is_a_cap, _bad_values,
)  # fmt: skip


def check_patch_pruner(pruner: PatchPruner) -> None:
    """Run every contract check on a pruner that acts inside a vision transformer.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
    """
    for check in PATCH_PRUNER_CHECKS:
        check(pruner)
