"""What the tests of the vision systems share: the schedule for ``tiny("vit")`` and the draws."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

FAST = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10_000)
KEEP = {0: 0.5, 2: 0.5}


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(batch: int = 3) -> torch.Tensor:
    return draw(1, batch, 3, 24, 24)


def signals(seed: int, heads: int = 4, patches: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    row = draw(seed, 2, heads, 1 + patches).softmax(-1)[..., 1:]
    return row, draw(seed + 1, 2, heads, patches, 5)
