"""The pruning wing: keep the tokens that matter. One file per system, baselines under the same interface."""

from __future__ import annotations

from tokenry.catalog import wing_exports
from tokenry.lazy import lazy_exports

_SHARED = {
    "tokenry.pruning.base": ("Pruner", "PruningTrace", "Kept"),
    "tokenry.pruning.visual": ("VisualPruner",),
    "tokenry.pruning.kv_method": ("CacheMethod",),
    "tokenry.pruning.vit_schedule": ("PatchPruner",),
    "tokenry.pruning.baselines": ("NoPruning", "RandomPruner", "UniformGrid", "TopK", "DivPrune", "FastV", "Compose"),
    "tokenry.pruning.kv_baselines": ("FullCache", "StreamingLLM", "H2O", "SnapKV"),
    "tokenry.pruning.vit_baselines": ("ClsRow", "ToMe", "RandomPatches"),
}
_EXPORTS = wing_exports("pruning", _SHARED)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
