"""The pruning wing: keep the tokens that matter. One file per system, baselines under the same interface."""

from __future__ import annotations

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "Pruner": "tokenry.pruning.base",
    "PruningTrace": "tokenry.pruning.base",
    "Kept": "tokenry.pruning.base",
    "IDPruner": "tokenry.pruning.idpruner",
    "ImportanceScorer": "tokenry.pruning.idpruner",
    "ZOOPrune": "tokenry.pruning.zooprune",
    "ToDRE": "tokenry.pruning.todre",
    "D2O": "tokenry.pruning.d2o",
    "GLSim": "tokenry.pruning.glsim",
    "GLSimClassifier": "tokenry.pruning.glsim",
    "EET": "tokenry.pruning.eet",
    "NoPruning": "tokenry.pruning.baselines",
    "RandomPruner": "tokenry.pruning.baselines",
    "UniformGrid": "tokenry.pruning.baselines",
    "TopK": "tokenry.pruning.baselines",
    "DivPrune": "tokenry.pruning.baselines",
    "FastV": "tokenry.pruning.baselines",
    "Compose": "tokenry.pruning.baselines",
    "FullCache": "tokenry.pruning.kv_baselines",
    "StreamingLLM": "tokenry.pruning.kv_baselines",
    "H2O": "tokenry.pruning.kv_baselines",
    "SnapKV": "tokenry.pruning.kv_baselines",
    "ClsRow": "tokenry.pruning.vit_baselines",
    "ToMe": "tokenry.pruning.vit_baselines",
    "RandomPatches": "tokenry.pruning.vit_baselines",
    "idpruner": "tokenry.pruning.idpruner",
    "zooprune": "tokenry.pruning.zooprune",
    "todre": "tokenry.pruning.todre",
    "d2o": "tokenry.pruning.d2o",
    "glsim": "tokenry.pruning.glsim",
    "eet": "tokenry.pruning.eet",
    "baselines": "tokenry.pruning.baselines",
    "kv_baselines": "tokenry.pruning.kv_baselines",
    "vit_baselines": "tokenry.pruning.vit_baselines",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)
