"""EET: efficient vision transformers for fine-grained image retrieval (Jiang et al., arXiv 2504.16691, IEEE TMM 2025).

Three parts and a hashing step, each usable alone:

- CTP, content-based token pruning: `EET`, `content_importance`;
- DKT, discriminative knowledge transfer, and DRG, discriminative region guidance: `EETTrainer`, `region_mask`;
- two-step hash codes: `solve_hash_codes`, then `EETHashModel` learns to hit them; `HammingIndex`,
  `mean_average_precision` and `evaluate_retrieval` search and score.

Where the released code differs from the paper: it hides the transposed patches in DRG (``transposed=True`` reproduces that, the
default hides the intended ones); it hard-codes the kept counts 98, 49 and 12, which the default schedule gives for 196 patches;
its teacher has the size of the student, where the paper speaks of a larger one (any size works here).
"""

from __future__ import annotations

from typing import Any

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "EET": "tokenry.pruning.eet.prune",
    "content_importance": "tokenry.pruning.eet.importance",
    "region_mask": "tokenry.pruning.eet.guidance",
    "hide_regions": "tokenry.pruning.eet.guidance",
    "solve_hash_codes": "tokenry.pruning.eet.hashing",
    "binary_codes": "tokenry.pruning.eet.hashing",
    "pack_codes": "tokenry.pruning.eet.hashing",
    "unpack_codes": "tokenry.pruning.eet.hashing",
    "mean_average_precision": "tokenry.pruning.eet.retrieval",
    "average_precision": "tokenry.pruning.eet.retrieval",
    "hamming_distances": "tokenry.pruning.eet.retrieval",
    "HammingIndex": "tokenry.pruning.eet.index",
    "EETHashModel": "tokenry.pruning.eet.model",
    "HashOutput": "tokenry.pruning.eet.model",
    "EETLosses": "tokenry.pruning.eet.training",
    "EETTrainer": "tokenry.pruning.eet.training",
    "EETTrainingConfig": "tokenry.pruning.eet.training",
    "eet_training_arguments": "tokenry.pruning.eet.training",
    "hash_distillation": "tokenry.pruning.eet.training",
    "RetrievalResult": "tokenry.pruning.eet.evaluation",
    "evaluate_retrieval": "tokenry.pruning.eet.evaluation",
    "scaled_schedule": "tokenry.pruning.vit_schedule",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of pruners inside a vision transformer is checked on."""
    from tokenry.pruning.eet.prune import EET

    return {"EET": EET()}
