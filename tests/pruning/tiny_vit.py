"""A tiny ViT with random weights, and the draws that the tests of the vision systems share."""

import torch
import transformers as tf
from hypothesis import settings
from hypothesis import strategies as st

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 24,
    "patch_size": 4,
}
SHALLOW = {**SIZES, "num_hidden_layers": 2}
FAST = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10_000)
KEEP = {0: 0.5, 2: 0.5}


def vit(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return tf.ViTModel(tf.ViTConfig(**{**SIZES, **changes}), add_pooling_layer=False).eval()


def shallow_vit() -> torch.nn.Module:
    return vit(**SHALLOW)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(batch: int = 3) -> torch.Tensor:
    return draw(1, batch, 3, 24, 24)


def signals(seed: int, heads: int = 4, patches: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    row = draw(seed, 2, heads, 1 + patches).softmax(-1)[..., 1:]
    return row, draw(seed + 1, 2, heads, patches, 5)
