"""One call for every kind of system: ``check_contract(instance)``; and the instances that a system of the catalogue offers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from tokenry.catalog import System
from tokenry.core.seeding import seeded


def contract_instances(row: System) -> dict[str, Any]:
    """Name -> instance, from ``contract_instances()`` of the module that the row names; the same weights every time.

    Raises:
        ValueError: the system is planned, or its module declares no instances.
    """
    if not row.exports:
        raise ValueError(f"{row.slug} is {row.status}: it has no instances to check yet")
    declared = getattr(import_module(row.module), "contract_instances", None)
    if declared is None:
        raise ValueError(
            f"{row.slug}: {row.module} must declare contract_instances(), a function that returns {{name: instance}} for "
            "tokenry.testing.check_contract"
        )
    with seeded(0):
        found = declared()
    if not found:
        raise ValueError(f"{row.slug}: contract_instances() of {row.module} must return at least one instance, got {found!r}")
    return found


def check_contract(instance: Any) -> None:
    """Run the contract of the wing that `instance` belongs to.

    A language model comes as the arguments of `tokenry.testing.check_language_model` by name, with ``model`` and
    ``batch`` in place of what makes them.

    Raises:
        AssertionError: a check fails; the message names the check and what was found.
        TypeError: there is no contract for the type of `instance`.
    """
    kinds = _kinds()
    for kind, check in kinds.items():
        if isinstance(instance, kind):
            check(instance)
            return
    known = ", ".join(kind.__name__ for kind in kinds)
    raise TypeError(f"there is a contract for {known}, none for {type(instance).__name__}")


def _kinds() -> dict[type, Callable[[Any], None]]:
    from tokenizers import Tokenizer

    from tokenry.codecs import AudioCodec, Quantizer
    from tokenry.pruning import Pruner
    from tokenry.pruning.kv_method import CacheMethod
    from tokenry.pruning.visual import VisualPruner
    from tokenry.pruning.vit_schedule import PatchPruner
    from tokenry.testing.audio_codecs import check_audio_codec
    from tokenry.testing.byte_models import check_byte_model
    from tokenry.testing.cache_methods import check_cache_method
    from tokenry.testing.patch_pruners import check_patch_pruner
    from tokenry.testing.probes import check_probe
    from tokenry.testing.pruners import check_pruner
    from tokenry.text import ByteEnsemble, ByteLM, ConsistencyProbe

    return {
        VisualPruner: _visual_pruner,
        Pruner: check_pruner,
        PatchPruner: check_patch_pruner,
        CacheMethod: check_cache_method,
        Quantizer: _quantizer,
        AudioCodec: check_audio_codec,
        ByteLM: check_byte_model,
        ByteEnsemble: check_byte_model,
        ConsistencyProbe: check_probe,
        Tokenizer: _tokenizer,
        Mapping: _language_model,
    }


def _visual_pruner(pruner: Any) -> None:
    from tokenry.testing.pruners import check_pruner
    from tokenry.testing.visual_pruners import check_visual_pruner

    check_pruner(pruner)
    check_visual_pruner(pruner)


def _quantizer(quantizer: Any) -> None:
    from tokenry.testing.quantizers import check_quantizer

    check_quantizer(lambda: copy.deepcopy(quantizer))


def _tokenizer(tokenizer: Any) -> None:
    from tokenry.testing.tokenizers import check_tokenizer

    check_tokenizer(tokenizer, normalizer=tokenizer.normalizer and tokenizer.normalizer.normalize_str)


def _language_model(case: Mapping[str, Any]) -> None:
    from tokenry.testing.language_models import check_language_model

    model, batch = case["model"], case["batch"]
    options = {name: value for name, value in case.items() if name not in ("model", "batch")}
    check_language_model(lambda: copy.deepcopy(model), lambda: copy.deepcopy(batch), **options)
