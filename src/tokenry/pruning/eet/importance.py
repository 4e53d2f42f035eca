"""Content-based token importance (EET, the CTP part)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenry.core.checks import check_device, check_finite, check_float, check_shape

_HEAD_EPS = 1e-8


def content_importance(cls_attention: Tensor, content: Tensor) -> Tensor:
    """Importance M [B,N] of each patch: its CLS attention, heads weighted by the strength of the patch's own content.

    With a the CLS row and O the attention output per head, before the output projection:
    ``S[h,i] = ||O[h,i]||_2``, ``W[h,i] = S[h,i] / (sum_h S[h,i] + 1e-8)``, ``M[i] = sum_h W[h,i] a[h,i]``.
    With one head M is a. M does not sum to 1. The epsilon is the released code's. A patch without content in every head gets 0.

    Args:
        cls_attention: a [B,H,N], the CLS row over the patches.
        content: O [B,H,N,d] of the same patches.

    Returns:
        [B,N] float32 (float64 for float64 input).

    Raises:
        ValueError: shapes or devices that do not agree, or non-finite values.
    """
    sizes = check_shape("cls_attention", check_float("cls_attention", cls_attention), "B H N")
    check_shape("content", check_float("content", content), "B H N d", **sizes)
    check_device("content", content, "cls_attention", cls_attention)
    # Half precision overflows when squared, so the norm is taken in float32.
    wide = torch.float64 if torch.float64 in (content.dtype, cls_attention.dtype) else torch.float32
    strength = torch.linalg.vector_norm(content.to(wide), dim=-1)
    check_finite("cls_attention", cls_attention)
    check_finite("content strength", strength)
    weight = strength / (strength.sum(dim=1, keepdim=True) + _HEAD_EPS)
    return (weight * cls_attention.to(wide)).sum(dim=1)
