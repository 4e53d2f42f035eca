"""Models inside wrappers: the module that transformers built, whatever training or compilation put around it."""

from __future__ import annotations

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``torch.compile``, (Distributed)DataParallel and PEFT wrappers, any number of them; else `model` itself.

    Hooks and patches belong on the module whose ``generate`` and ``forward`` really run: on a wrapper they would be passed by.
    """
    while True:
        inner = _inside(model)
        if inner is None:
            return model
        model = inner


def _inside(model: nn.Module) -> nn.Module | None:
    if type(model).__name__ == "OptimizedModule":
        return model._orig_mod  # pyright: ignore[reportReturnType]
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return model.get_base_model()  # pyright: ignore[reportCallIssue, reportReturnType]
    return None
