"""One hook manager: attach, capture, always detach."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch._dynamo  # transformers imports it too
from torch import nn
from transformers import PreTrainedModel

from tokenry.errors import NotInForceWarning
from tokenry.hosts.release import release, warn_if_newer

_OWNERS = "_tokenry_attached_by"
_MISSING = object()
Undo = Callable[[], Any]


def opaque(function: Any) -> Any:
    """`function`, which ``torch.compile`` runs as it is and does not look into."""
    return torch._dynamo.disable(function)


class Hooks:
    """Hooks and attribute patches that belong to one attachment; `attached` undoes all of them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ran = self._hooked_inside = self._reached = False
        self._actions: list[Callable[[], Undo]] = []
        self._undos: list[Undo] = []

    def do(self, action: Callable[[], Undo]) -> None:
        """Run `action`, which returns what undoes it. It is run again after a pause."""
        self._actions.append(action)
        self._undos.append(action())

    def forward(self, module: nn.Module, hook: Callable[..., Any], *, prepend: bool = False) -> None:
        """Call ``hook(module, args, kwargs, output)`` after `module`; a result that is not None replaces the output."""
        noting = self._noting(module, hook)
        self.do(lambda: module.register_forward_hook(noting, with_kwargs=True, prepend=prepend).remove)

    def forward_pre(self, module: nn.Module, hook: Callable[..., Any], *, prepend: bool = False) -> None:
        """Call ``hook(module, args, kwargs)`` before `module`; a result ``(args, kwargs)`` replaces the input."""
        noting = self._noting(module, hook)
        self.do(lambda: module.register_forward_pre_hook(noting, with_kwargs=True, prepend=prepend).remove)

    def patch(self, target: Any, attribute: str, value: Any) -> None:
        """Set an attribute on the instance `target`; on exit the earlier state returns (an absent one is deleted)."""
        if callable(value):
            value = opaque(value)
        self.do(lambda: _patched(target, attribute, value))

    def watch(self) -> None:
        """Note whether the model itself runs, so that `missed` can tell."""

        def ran(*_: Any) -> None:
            self._ran = True

        noting = opaque(ran)
        self.do(lambda: self._model.register_forward_pre_hook(noting).remove)

    @property
    def missed(self) -> bool:
        """True if the model ran and none of the hooks on modules inside it was called."""
        return self._ran and self._hooked_inside and not self._reached

    def _noting(self, module: nn.Module, hook: Callable[..., Any]) -> Callable[..., Any]:
        """The hook as it is registered: it notes that it was reached, and ``torch.compile`` does not look into it."""
        inside = module is not self._model
        self._hooked_inside |= inside

        def call(*args: Any) -> Any:
            self._reached |= inside
            return hook(*args)

        return opaque(call)

    def restore(self) -> None:
        """Undo everything, latest first."""
        while self._undos:
            self._undos.pop()()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block finds the model as it was before the attachment."""
        self.restore()
        try:
            yield
        finally:
            self._undos = [action() for action in self._actions]

    def copies_are_plain(self) -> None:
        """Let ``copy.deepcopy`` and ``torch.save`` of the model, or of a model inside it, give it without this attachment."""
        for part in self._model.modules():
            if part is self._model or isinstance(part, PreTrainedModel):
                self._copies_plain(part)

    def _copies_plain(self, model: nn.Module) -> None:
        def copied(memo: dict[int, Any]) -> nn.Module:
            with self.paused():
                return deepcopy(model, memo)

        def reduced(protocol: int) -> Any:
            shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
            return copied(shared).__reduce_ex__(protocol)

        self.patch(model, "__deepcopy__", copied)
        self.patch(model, "__reduce_ex__", reduced)


def _patched(target: Any, attribute: str, value: Any) -> Undo:
    earlier = vars(target).get(attribute, _MISSING) if hasattr(target, "__dict__") else getattr(target, attribute)
    setattr(target, attribute, value)
    if earlier is _MISSING:
        return lambda: delattr(target, attribute)
    return lambda: setattr(target, attribute, earlier)


def _owned(model: nn.Module, kind: str, owner: str) -> Undo:
    owners: dict[str, str] = vars(model).get(_OWNERS, {})
    object.__setattr__(model, _OWNERS, {**owners, kind: owner})

    def undo() -> None:
        left = {k: v for k, v in vars(model)[_OWNERS].items() if k != kind}
        if left:
            object.__setattr__(model, _OWNERS, left)
        else:
            object.__delattr__(model, _OWNERS)

    return undo


def forget_compiled() -> None:
    """Drop what ``torch.compile`` has compiled: its guards do not look at hooks, so it would run past (or go on with) them."""
    torch._dynamo.reset()


@contextmanager
def attached(model: nn.Module, owner: str, *, kind: str = "tokens", core: nn.Module | None = None) -> Iterator[Hooks]:
    """Give a `Hooks` for `model` and restore everything on exit, also after an exception.

    Warns `UntestedReleaseWarning` once on a transformers newer than the tested ones, and
    `NotInForceWarning` at exit if the model ran past all hooks. Compiled models are compiled again.

    Args:
        model: the model itself, not a wrapper (see `unwrapped`).
        owner: name used in messages.
        kind: what is attached; two attachments of different kinds live on one model.
        core: the part of `model` that is worked on, which another attachment may reach through another model.

    Raises:
        RuntimeError: `model`, or `core`, has an attachment of this kind already (two would prune what the other has pruned).
    """
    held = [model] if core is None or core is model else [model, core]
    earlier = next((vars(m)[_OWNERS][kind] for m in held if kind in vars(m).get(_OWNERS, {})), None)
    if earlier is not None:
        raise RuntimeError(
            f"{earlier} is already attached to this {type(model).__name__}; leave its `with` block before attaching {owner}"
        )
    warn_if_newer()
    hooks = Hooks(model)
    forget_compiled()
    try:
        for module in held:
            hooks.do(partial(_owned, module, kind, owner))
        hooks.copies_are_plain()
        hooks.watch()
        yield hooks
    finally:
        hooks.restore()
        forget_compiled()
    if hooks.missed:
        warnings.warn(
            f"{type(model).__name__} ran while {owner} was attached, and none of its hooks was reached: nothing was changed. "
            f"This is {release()}",
            NotInForceWarning,
            stacklevel=4,
        )
