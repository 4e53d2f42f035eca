"""GLSim: global-local similarity for fine-grained recognition with vision transformers (Rios et al., arXiv 2407.12891).

A patch is discriminative when its final feature points the way of the CLS feature. That costs one product per patch and needs
no attention maps. From it:

- `global_local_similarity`, `crop_boxes`, `crop_images`: similarity, box of the top patches, the zoomed crop;
- `GLSimClassifier` (two passes and an aggregator block) and `GLSimTrainer`;
- `saliency_map`, `overlay`: the picture;
- `GLSim`: the similarity as an importance source for any selector, beside the CLS row of attention.

Where the released code differs from the paper: its crop ends at the start of the last selected patch row and column, so they
are cut off unless the box is one patch thick. That is the default here too (all published numbers have it);
``inclusive=True`` keeps them.
"""

from __future__ import annotations

from typing import Any

from tokenry.lazy import lazy_exports

_EXPORTS = {
    "global_local_similarity": "tokenry.pruning.glsim.similarity",
    "crop_boxes": "tokenry.pruning.glsim.crops",
    "crop_images": "tokenry.pruning.glsim.crops",
    "GLSim": "tokenry.pruning.glsim.source",
    "GLSimClassifier": "tokenry.pruning.glsim.model",
    "GLSimOutput": "tokenry.pruning.glsim.model",
    "GLSimTrainer": "tokenry.pruning.glsim.training",
    "glsim_training_arguments": "tokenry.pruning.glsim.training",
    "saliency_map": "tokenry.pruning.glsim.picture",
    "overlay": "tokenry.pruning.glsim.picture",
}

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
__all__ = sorted(_EXPORTS)


def contract_instances() -> dict[str, Any]:
    """What the contract of the wing is checked on."""
    from tokenry.pruning.glsim.source import GLSim

    return {"GLSim": GLSim(0.25)}
