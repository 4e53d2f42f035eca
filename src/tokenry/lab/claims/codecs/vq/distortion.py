"""Distortion and utilisation of the quantizers at equal bits on banks of vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenry.codecs import AdditiveVQ, ProductVQ, ResidualVQ
from tokenry.core.descent import Plan, descend
from tokenry.lab.beds.signals.feature_banks import FeatureBank
from tokenry.lab.beds.signals.named_quantizers import build_quantizer

FITTED = ("vq", "rvq", "pq", "aq")
TRAINED = ("simvq", "fsq", "lfq", "bsq")
# bits of a vector -> codes of one book, codes of each of two books, FSQ levels (none below 5)
RATES: dict[int, tuple[int, int, tuple[int, ...]]] = {6: (64, 8, (8, 8)), 8: (256, 16, (8, 6, 5)), 10: (1024, 32, (8, 5, 5, 5))}


def explained(quantizer: Any, bank: FeatureBank) -> Tensor:
    """1 - squared error / variance of each test vector, the variance being the mean one around the training mean."""
    with torch.no_grad():
        error = (quantizer.decode(quantizer.encode(bank.test)) - bank.test).square().sum(dim=1)
    return 1.0 - error / (bank.test - bank.train.mean(dim=0)).square().sum(dim=1).mean()


def grouped(values: Tensor, items: int) -> list[float]:
    """Means of `items` groups of consecutive values."""
    size = len(values) // items
    return values[: items * size].view(items, size).mean(dim=1).tolist()


def compare_books(
    bank: FeatureBank, books: int, codes: int, *, seed: int, iterations: int, aq: dict[str, Any], rotation: bool = True
) -> dict[str, Tensor]:
    """Explained variance of each test vector by PQ, OPQ, RVQ and AQ with the same books."""
    dim, options = bank.dim, {"seed": seed}
    quantizers: dict[str, Any] = {
        "pq": ProductVQ(dim, books, codes, **options),
        "rvq": ResidualVQ(dim, books, codes, **options),
        "aq": AdditiveVQ(dim, books, codes, **options, **aq),
    }
    if rotation:
        quantizers["opq"] = ProductVQ(dim, books, codes, rotation=True, **options)
    return {name: explained(q.fit(bank.train, iterations=iterations), bank) for name, q in quantizers.items()}


def at_rate(bank: FeatureBank, bits: int, *, seed: int, steps: int, iterations: int) -> dict[str, float | str]:
    """Explained variance and utilisation of the eight at `bits` bits a vector.

    VQ, RVQ, PQ and AQ are fitted by k-means and least squares; the others, whose books are not fitted, are trained with a
    linear map before and after. Utilisation is that of all index tuples, so that the numbers are comparable.
    """
    centre, scale = bank.train.mean(dim=0), bank.train.std()
    scaled = FeatureBank(bank.name, (bank.train - centre) / scale, (bank.test - centre) / scale)
    one, two, levels = RATES[bits]
    facts: dict[str, float | str] = {}
    for name in (*FITTED, *TRAINED):
        quantizer = _build(name, bank.dim, one, two, levels, seed)
        if name in FITTED:
            quantizer.fit(scaled.train, iterations=iterations)
        else:
            _train(quantizer, scaled.train, steps, seed)
        quantizer.eval()
        label = f"{bank.name}_{bits}bit_{name}"
        facts[f"{label}_explained"] = float(explained(quantizer, scaled).mean())
        facts[f"{label}_usage"], facts[f"{label}_perplexity"] = _joint(quantizer, scaled.test)
    return facts


def _build(name: str, dim: int, one: int, two: int, levels: tuple[int, ...], seed: int) -> Any:
    options: dict[str, Any] = {"seed": seed}
    if name == "fsq":
        return build_quantizer(name, dim, one, options | {"levels": list(levels)})
    if name == "pq":
        return build_quantizer(name, dim, two, options | {"groups": 2})
    if name == "aq":
        return build_quantizer(name, dim, two, options | {"encoder": "exhaustive"})
    return build_quantizer(name, dim, two if name == "rvq" else one, options)


def _train(quantizer: nn.Module, x: Tensor, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def loss_of(step: int) -> Tensor:
        batch = x[torch.randint(len(x), (512,), generator=generator)]
        made = quantizer(batch)
        return (made.codes - batch).square().mean() + made.loss

    descend(quantizer, loss_of, Plan(steps=steps, learning_rate=3e-3, clip=None, warmup=0.0, decay="none"))


def _joint(quantizer: Any, x: Tensor) -> tuple[float, float]:
    """(share of all index tuples that occur, perplexity of the tuples) on x."""
    indices = quantizer.encode(x)
    if indices.dim() > 1:
        indices = (indices * torch.tensor([quantizer.codebook_size**m for m in range(indices.shape[1])])).sum(dim=1)
    total = torch.tensor(quantizer.codebook_sizes).prod()
    counts = torch.bincount(indices, minlength=int(total)).double()
    shares = counts / counts.sum()
    return float((counts > 0).double().mean()), float(torch.special.xlogy(shares, shares).sum().neg().exp())
