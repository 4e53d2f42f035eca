"""One hook manager: attach, capture, always detach."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from tokenry.errors import NotInForceWarning
from tokenry.hosts.release import release, warn_if_newer

_OWNER = "_tokenry_attached_by"
_MISSING = object()


class Hooks:
    """Hooks and attribute patches that belong to one attachment; `attached` undoes all of them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ran = self._hooked_inside = self._reached = False
        self._handles: list[RemovableHandle] = []
        self._patches: list[tuple[Any, str, Any]] = []

    def forward(self, module: nn.Module, hook: Callable[..., Any], *, prepend: bool = False) -> None:
        """Call ``hook(module, args, kwargs, output)`` after `module`; a result that is not None replaces the output."""
        self._handles.append(module.register_forward_hook(self._noting(module, hook), with_kwargs=True, prepend=prepend))

    def forward_pre(self, module: nn.Module, hook: Callable[..., Any], *, prepend: bool = False) -> None:
        """Call ``hook(module, args, kwargs)`` before `module`; a result ``(args, kwargs)`` replaces the input."""
        self._handles.append(module.register_forward_pre_hook(self._noting(module, hook), with_kwargs=True, prepend=prepend))

    def patch(self, target: Any, attribute: str, value: Any) -> None:
        """Set an attribute on the instance `target`; on exit the earlier state returns (an absent one is deleted)."""
        own = vars(target).get(attribute, _MISSING) if hasattr(target, "__dict__") else getattr(target, attribute)
        self._patches.append((target, attribute, own))
        setattr(target, attribute, value)

    def watch(self) -> None:
        """Note whether the model itself runs, so that `missed` can tell."""

        def ran(*_: Any) -> None:
            self._ran = True

        self._handles.append(self._model.register_forward_pre_hook(ran))

    @property
    def missed(self) -> bool:
        """True if the model ran and none of the hooks on modules inside it was called."""
        return self._ran and self._hooked_inside and not self._reached

    def _noting(self, module: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
        if module is self._model:
            return hook
        self._hooked_inside = True

        def call(*args: Any) -> Any:
            self._reached = True
            return hook(*args)

        return call

    def restore(self) -> None:
        """Remove the hooks and undo the patches, latest first."""
        while self._handles:
            self._handles.pop().remove()
        while self._patches:
            target, attribute, earlier = self._patches.pop()
            if earlier is _MISSING:
                delattr(target, attribute)
            else:
                setattr(target, attribute, earlier)


@contextmanager
def attached(model: nn.Module, owner: str) -> Iterator[Hooks]:
    """Give a `Hooks` for `model` and restore everything on exit, also after an exception.

    Warns `UntestedReleaseWarning` once on a transformers newer than the tested ones, and
    `NotInForceWarning` at exit if the model ran past all hooks.

    Raises:
        RuntimeError: `model` already has an attachment (two at once would prune what the other one has pruned).
    """
    earlier = vars(model).get(_OWNER)
    if earlier is not None:
        raise RuntimeError(
            f"{earlier} is already attached to this {type(model).__name__}; leave its `with` block before attaching {owner}"
        )
    warn_if_newer()
    hooks = Hooks(model)
    object.__setattr__(model, _OWNER, owner)
    try:
        hooks.watch()
        _forget_compiled()
        yield hooks
    finally:
        hooks.restore()
        object.__delattr__(model, _OWNER)
        _forget_compiled()
    if hooks.missed:
        warnings.warn(
            f"{type(model).__name__} ran while {owner} was attached, and none of its hooks was reached: nothing was changed. "
            f"This is {release()}",
            NotInForceWarning,
            stacklevel=4,
        )


def _forget_compiled() -> None:
    """Drop compiled code: it does not ask whether hooks came or went since it was made, and would run without them."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
