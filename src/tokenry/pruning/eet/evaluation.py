"""Retrieval evaluation of a hashing model, under two protocols that must not be mixed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tokenry.core.checks import check_choice, check_int, check_shape
from tokenry.pruning.eet.model import EETHashModel
from tokenry.pruning.eet.retrieval import Ties, average_precision

Protocol = Literal["target_codes", "encoded"]


@dataclass(frozen=True)
class RetrievalResult:
    """Outcome of `evaluate_retrieval`; `per_query` holds the average precision of each query."""

    mean_average_precision: float
    per_query: tuple[float, ...]
    protocol: Protocol
    ties: Ties
    bits: int
    queries: int
    database: int

    def __str__(self) -> str:
        source = {"target_codes": "target codes of the training images", "encoded": "codes computed by the network"}
        return (
            f"mAP {self.mean_average_precision:.4f} ({self.bits} bits, {self.queries} queries, database of {self.database} "
            f"{source[self.protocol]}, ties {self.ties})"
        )


def encode_images(model: EETHashModel, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Codes [n,bits] int8 of `images` [n,C,H,W], in batches, on the model's device; returned on the CPU."""
    check_int("batch_size", batch_size, 1)
    check_shape("images", images, "n C H W")
    device = next(model.parameters()).device
    parts = [model.encode(batch.to(device)).cpu() for batch in images.split(batch_size)]
    return torch.cat(parts) if parts else torch.zeros(0, model.bits, dtype=torch.int8)


def evaluate_retrieval(
    model: EETHashModel,
    queries: Tensor,
    query_labels: Any,
    database_labels: Any,
    *,
    protocol: Protocol,
    target_codes: Tensor | None = None,
    database: Tensor | None = None,
    top: int | None = None,
    ties: Ties = "stable",
    batch_size: int = 64,
) -> RetrievalResult:
    """Mean average precision of the model's query codes against a database.

    ``protocol="target_codes"`` is the released protocol: the database is the training set, represented by the *solved* target
    codes (`target_codes` [n,bits]), which no network computed. ``"encoded"`` is what a deployed system does: `database` images
    [n,C,H,W] are encoded by the same model. Numbers of the two protocols are not comparable; the result says which one it is.

    Raises:
        ValueError: the database that the protocol needs is missing, or the other one is given; or as
            `average_precision`.
    """
    check_choice("protocol", protocol, ("target_codes", "encoded"))
    needed, unused = ("target_codes", "database") if protocol == "target_codes" else ("database", "target_codes")
    given = {"target_codes": target_codes, "database": database}
    if given[needed] is None or given[unused] is not None:
        raise ValueError(f"protocol {protocol!r} needs {needed} and no {unused}")
    codes = target_codes if database is None else encode_images(model, database, batch_size=batch_size)
    assert codes is not None
    scores = average_precision(
        encode_images(model, queries, batch_size=batch_size),
        query_labels,
        codes.cpu(),
        database_labels,
        top,
        ties=ties,
    )
    if not len(scores):
        raise ValueError("queries must hold at least one image, got 0")
    return RetrievalResult(float(scores.mean()), tuple(scores.tolist()), protocol, ties, model.bits, len(scores), len(codes))
