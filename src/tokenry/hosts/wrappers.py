"""The model inside what others put around it: a compiled module, data-parallel wrappers, PEFT."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and PEFT, however they are nested.

    Wrappers are known by their shape, so that none of their packages is imported: a compiled module holds ``_orig_mod``, a
    parallel one has a single child named ``module``, and PEFT answers ``get_base_model()``. Anything else comes back as it is.
    """
    while isinstance(model, nn.Module):
        inner = _inside(model)
        if not isinstance(inner, nn.Module) or inner is model:
            break
        model = inner
    return model


def uncompiled(model: nn.Module, name: str) -> Callable[[], None]:
    """Let the part of that dotted name run uncompiled, until the returned function is called.

    Blocks inside a compiled part share code, whatever hooks one of them has, so hooks on single blocks would be passed by.
    """
    parent, _, leaf = name.rpartition(".")
    holder = unwrapped(model.get_submodule(parent))._modules
    wrapped = holder[leaf]
    plain = wrapped._modules["_orig_mod"] if wrapped is not None and "_orig_mod" in wrapped._modules else wrapped
    assert plain is not None
    in_place = plain._compiled_call_impl
    if in_place is not None:
        plain._compiled_call_impl = None
    holder[leaf] = plain

    def undo() -> None:
        if in_place is not None:
            plain._compiled_call_impl = in_place
        holder[leaf] = wrapped

    return undo


def _inside(model: nn.Module) -> object:
    children = model._modules
    if "_orig_mod" in children:
        return children["_orig_mod"]
    if list(children) == ["module"]:
        return children["module"]
    if "base_model" in children and callable(base := getattr(model, "get_base_model", None)):
        return base()
    return None
