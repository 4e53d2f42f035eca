"""The model inside what others put around it: a compiled module, data-parallel wrappers, PEFT."""

from __future__ import annotations

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


def _inside(model: nn.Module) -> object:
    children = model._modules
    if "_orig_mod" in children:
        return children["_orig_mod"]
    if list(children) == ["module"]:
        return children["module"]
    if "base_model" in children and callable(base := getattr(model, "get_base_model", None)):
        return base()
    return None
