"""GLSim: discriminative patches from the final features alone.

What can be shown without a pre-trained backbone is the mechanism and its cost. Where patch features do carry the signal
(planted: patches inside a known box have a higher cosine to the global feature), GLS finds them, and it is far cheaper than
attention rollout. That well pre-trained transformers have such features is the paper's claim, at scale ``paper``. Small
transformers trained from scratch need not have them: the hit rates of the digit testbed are recorded as facts, and nothing is
concluded from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.progress import Progress, within
from tokenry.core.selection import top_k
from tokenry.lab.evidence.claim import Claim, Contrast, Measurement, Scale
from tokenry.lab.evidence.measure import numbers_moved, time_ratio

_GRID, _SPAN, _WIDTH = 14, 5, 768
_LAYERS, _HEADS = 12, 12


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020): heads averaged, identity added, rows normalised, blocks multiplied.

    Maps [B,H,1+N,1+N] of all blocks -> row of CLS over the patches [B,N].
    """
    total: Tensor | None = None
    for attention in maps:
        mixed = attention.mean(dim=1)
        mixed = mixed + torch.eye(mixed.shape[-1], device=mixed.device)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        total = mixed if total is None else mixed @ total
    assert total is not None
    return total[:, 0, 1:]


def planted_tokens(count: int, inside: float, outside: float, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens [count,1+196,768] of unit length, and which patches are in the planted 5 x 5 box, [count,196] bool.

    Patches in the box have cosine `inside` to the global token, the others `outside`, both with normal `noise`.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = F.normalize(torch.randn(count, 1, _WIDTH, generator=generator), dim=-1)
    other = torch.randn(count, _GRID * _GRID, _WIDTH, generator=generator)
    other = F.normalize(other - (other * whole).sum(-1, keepdim=True) * whole, dim=-1)
    place = torch.randint(0, _GRID - _SPAN + 1, (count, 2), generator=generator)
    row, column = torch.arange(_GRID**2) // _GRID, torch.arange(_GRID**2) % _GRID
    box = (row >= place[:, :1]) & (row < place[:, :1] + _SPAN) & (column >= place[:, 1:]) & (column < place[:, 1:] + _SPAN)
    level = torch.where(box, inside, outside) + noise * torch.randn(box.shape, generator=generator)
    level = level.clamp(-1.0, 1.0)[..., None]
    return torch.cat([whole, level * whole + (1.0 - level.square()).sqrt() * other], dim=1), box


class GLSimClaim(Claim):
    """Mechanism and cost at ViT-B size; hit rates on the digit testbed and on bird boxes (scale ``paper``)."""

    system = "glsim"
    statement = (
        "Patches that carry the object are found from their similarity to the global feature, without attention maps, "
        "with less than a tenth of the memory traffic of attention rollout"
    )
    metric = "share of the top 8 patches inside the object's box; -log10 of the numbers that a selection reads and writes"
    contrasts = (
        Contrast("similarity finds planted patches better than chance", "gls_hits", "random_hits", 0.5),
        Contrast("without planted signal it is at chance", "random_hits", "flat_hits", -0.1),
        Contrast("selection is over ten times cheaper than rollout", "gls_traffic", "rollout_traffic", 1.0),
    )

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Images, planted cosines and noise, and the epochs of the digit model whose hit rates are recorded."""
        images = {"smoke": 64, "small": 200, "paper": 500}[scale]
        epochs = {"smoke": 0, "small": 16, "paper": 32}[scale]
        return {"images": images, "inside": 0.35, "outside": 0.2, "noise": 0.04, "top": 8, "digit_epochs": epochs}

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """One draw of planted features, selection times, and the recorded hit rates."""
        from tokenry.pruning.glsim import global_local_similarity

        settings = self.settings(scale)
        count, top = settings["images"], settings["top"]
        arms: dict[str, list[float]] = {}
        for arm, inside in (("gls_hits", settings["inside"]), ("flat_hits", settings["outside"])):
            tokens, box = planted_tokens(count, inside, settings["outside"], settings["noise"], seed)
            arms[arm] = _hits(global_local_similarity(tokens.to(device)).cpu(), box, top)
        draws = torch.rand(count, _GRID**2, generator=torch.Generator().manual_seed(seed + 1))
        arms["random_hits"] = _hits(draws, box, top)
        progress("cost of a selection", 0.1)
        traffic, ratio = _costs(count, top, seed, device)
        arms |= traffic
        facts: dict[str, float | str] = {"chance": _SPAN**2 / _GRID**2, "rollout_over_gls_seconds": ratio}
        if settings["digit_epochs"]:
            facts |= _digit_facts(settings["digit_epochs"], seed, device, progress)
        if scale == "paper":
            from tokenry.lab.beds.pictures.birds import hit_rates

            facts |= hit_rates("facebook/dinov2-base", count, seed, device)
        progress("done", 1.0)
        return Measurement(arms, facts)


def _hits(scores: Tensor, box: Tensor, top: int) -> list[float]:
    return box.gather(1, top_k(scores, top)).float().mean(dim=1).tolist()


@torch.inference_mode()
def _costs(count: int, top: int, seed: int, device: str) -> tuple[dict[str, list[float]], float]:
    """-log10 of the numbers each selection moves, and how much longer rollout takes; ViT-B shapes, one image at a time.

    The traffic is judged, as it is the same on every machine; the time is only recorded.
    """
    from tokenry.pruning.glsim import global_local_similarity

    generator = torch.Generator().manual_seed(seed)
    n = 1 + _GRID**2
    tokens = torch.randn(1, n, _WIDTH, generator=generator).to(device)
    maps = [torch.rand(1, _HEADS, n, n, generator=generator).to(device) for _ in range(_LAYERS)]
    calls = {
        "gls_traffic": lambda: top_k(global_local_similarity(tokens), top),
        "rollout_traffic": lambda: top_k(rollout(maps), top),
    }
    moved = {arm: [-math.log10(numbers_moved(call))] * count for arm, call in calls.items()}
    return moved, time_ratio(calls["rollout_traffic"], calls["gls_traffic"], repeats=count, device=device)


def _digit_facts(epochs: int, seed: int, device: str, progress: Progress) -> dict[str, float | str]:
    from tokenry.lab.beds.pictures.digit_vit import class_hits, digit_canvases, train_digit_vit
    from tokenry.pruning.glsim import GLSim

    model = train_digit_vit(seed, epochs=epochs, device=device, progress=within(progress, 0.1, 0.9, "digit model"))
    test = digit_canvases(seed)[1].to(device)
    inside = test.patches_inside().cpu()
    facts: dict[str, float | str] = {"digit_accuracy": float(class_hits(model, test).mean()), "digit_chance": 0.25}
    for score in ("gls", "cls_attention"):
        importance = GLSim(keep=4, score=score).importance(model, test.images).cpu()
        facts[f"digit_hit_rate_{score}"] = sum(_hits(importance, inside, 4)) / len(test)
    return facts


CLAIM = GLSimClaim()
