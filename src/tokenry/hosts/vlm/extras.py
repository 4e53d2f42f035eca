"""What some language models are told about visual tokens beside their embeddings, for the ones that are left.

Qwen3-VL adds features of earlier vision blocks to the visual tokens of its first layers (DeepStack); in Gemma 3 the tokens of
an image see each other both ways, which stands in prepared masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.hosts.release import as_argument, cache_in
from tokenry.hosts.vlm.kept_columns import KeptColumns
from tokenry.hosts.vlm.stage import StageHooks


def kept_rows(given: dict[str, Any], layout: KeptColumns) -> dict[str, Any]:
    """``visual_pos_masks`` [B,S] and ``deepstack_visual_embeds`` [V,D] of a language model that takes them, shortened."""
    visual, features = given.get("visual_pos_masks"), given.get("deepstack_visual_embeds")
    if visual is None or features is None:
        return {}
    left = layout.kept[visual]
    return {
        "visual_pos_masks": layout.take(visual) & layout.mask,
        "deepstack_visual_embeds": [feature[left.to(feature.device)] for feature in features],
    }


def shorten_deepstack(process: Callable[..., Tensor], stage: StageHooks) -> Callable[..., Tensor]:
    """The method that adds features to visual tokens, for hidden states that a `DecoderStage` has shortened before it."""

    def shortened(hidden: Tensor, visual: Tensor, feature: Tensor) -> Tensor:
        layout = stage.state.layout
        if layout is None or hidden.shape[1] == visual.shape[1]:
            return process(hidden, visual, feature)
        given = kept_rows({"visual_pos_masks": visual, "deepstack_visual_embeds": [feature]}, layout)
        return process(hidden, given["visual_pos_masks"], given["deepstack_visual_embeds"][0])

    return shortened


def block_masks(model: Any, given: dict[str, Any], types: Tensor | None, layout: KeptColumns | None) -> Any:
    """Attention masks in which the tokens of an image see each other, over what was fed so far and what is fed now.

    Args:
        model: the whole model, whose ``create_masks_for_generate`` makes them.
        given: arguments of the language model, with the 2-D mask of all columns.
        types: the caller's ``token_type_ids``, up to and including the new columns; None = no image among them.
        layout: which of the new columns are left; None = all.

    Returns:
        The 2-D mask as it is where no image is among the new columns: the language model then makes its own, causal masks.
    """
    mask, embeds = given["attention_mask"], given["inputs_embeds"]
    new = embeds.shape[1]
    if types is not None:
        types = types[:, -new:] if layout is None else layout.take(types[:, -layout.latest.shape[1] :]) * layout.mask
    if types is None or not bool(types.any()):
        return mask
    types = nn.functional.pad(types.to(torch.long), (mask.shape[1] - new, 0))
    return model.create_masks_for_generate(
        config=model.config,
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=given.get("position_ids"),
        token_type_ids=types,
        **as_argument(cache_in(given)),
    )
