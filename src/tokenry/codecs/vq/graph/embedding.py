"""Vectors from node hashes: embeddings of anchors, distances and relations, and three ways to join them (NodePiece)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenry.codecs.vq.graph.anchors import GraphAnchorTokenizer, NodeHash
from tokenry.codecs.vq.graph.distance import MISSING
from tokenry.core.checks import check_choice, check_int

ENCODERS = ("concat", "deepsets", "transformer")


class NodeHashEmbedding(nn.Module):
    """Node vectors [..., d] from hashes: anchor + distance embeddings and relation embeddings, then an encoder.

    Args:
        tokenizer: gives the sizes of the vocabulary; it is not kept.
        dim: d, width of the embeddings and of the result.
        encoder: ``"concat"``: Linear(2 d), ReLU, Linear(d) on the joined k + m vectors; ``"deepsets"``: an MLP on each
            token, sum, an MLP; ``"transformer"``: one layer over the tokens, then their mean.
        hidden: width between the layers, 2 d unless given.
        heads: attention heads of the transformer.
        dropout: after the first layer (concat, deepsets) and in the transformer.

    Raises:
        ValueError, TypeError: an unknown encoder, sizes out of range.
    """

    def __init__(
        self,
        tokenizer: GraphAnchorTokenizer,
        dim: int,
        *,
        encoder: str = "concat",
        hidden: int | None = None,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = check_int("dim", dim, 1)
        self.encoder = check_choice("encoder", encoder, ENCODERS)
        self.nearest, self.relations = tokenizer.nearest, tokenizer.relations
        # the last row of each table stands for what is missing: NOTHING (learned), and PAD (zero, never trained)
        self.anchor = nn.Embedding(tokenizer.num_anchors + 1, dim)
        self.distance = nn.Embedding(tokenizer.num_distances + 1, dim)
        self.relation = nn.Embedding(tokenizer.relation_types + 1, dim, padding_idx=tokenizer.relation_types)
        for table in (self.anchor, self.distance, self.relation):
            nn.init.normal_(table.weight, std=dim**-0.5)
        with torch.no_grad():
            self.relation.weight[-1].zero_()
        middle = 2 * dim if hidden is None else check_int("hidden", hidden, 1)
        if encoder == "concat":
            width = (self.nearest + self.relations) * dim
            self.join = nn.Sequential(nn.Linear(width, middle), nn.Dropout(dropout), nn.ReLU(), nn.Linear(middle, dim))
        elif encoder == "deepsets":
            self.each = nn.Sequential(nn.Linear(dim, middle), nn.Dropout(dropout), nn.ReLU(), nn.Linear(middle, dim))
            self.join = nn.Sequential(nn.Linear(dim, middle), nn.ReLU(), nn.Linear(middle, dim))
        else:
            check_int("heads", heads, 1)
            if dim % heads:
                raise ValueError(f"heads must divide dim={dim}, got {heads}")
            self.join = nn.TransformerEncoderLayer(dim, heads, middle, dropout, batch_first=True)

    def forward(self, hashes: NodeHash) -> Tensor:
        """Hashes [..., k], [..., k], [..., m] -> vectors [..., d]."""
        shape = hashes.anchors.shape[:-1]
        if hashes.anchors.shape[-1] != self.nearest or hashes.relations.shape[-1] != self.relations:
            raise ValueError(
                f"hashes must hold {self.nearest} anchors and {self.relations} relations, got "
                f"{hashes.anchors.shape[-1]} and {hashes.relations.shape[-1]}"
            )
        anchors, distances, relations = (part.reshape(-1, part.shape[-1]) for part in hashes)
        tokens = torch.cat(
            [
                _look_up(self.anchor, anchors) + _look_up(self.distance, distances),
                _look_up(self.relation, relations),
            ],
            dim=1,
        )
        absent = torch.cat([torch.zeros_like(anchors, dtype=torch.bool), relations == MISSING], dim=1)
        return self._joined(tokens, absent).reshape(*shape, self.dim)

    def _joined(self, tokens: Tensor, absent: Tensor) -> Tensor:
        if self.encoder == "concat":
            return self.join(tokens.flatten(1))
        present = (~absent)[..., None].to(tokens.dtype)
        if self.encoder == "deepsets":
            return self.join((self.each(tokens) * present).sum(dim=1))
        return (self.join(tokens, src_key_padding_mask=absent) * present).sum(dim=1) / present.sum(dim=1)


def _look_up(table: nn.Embedding, ids: Tensor) -> Tensor:
    return table(torch.where(ids == MISSING, table.num_embeddings - 1, ids))
