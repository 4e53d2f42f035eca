"""The same language model over a flat sequence of characters, bytes, subwords or words: what pooling is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput  # pyright: ignore[reportPrivateImportUsage]

from tokenry.core.checks import check_int, check_range, check_shape
from tokenry.text.wordpool.blocks import BlockCache, CausalBlocks


class FlatLMConfig(PreTrainedConfig):
    """Sizes of a flat baseline.

    Args:
        vocab_size: V.
        hidden_size: d.
        num_hidden_layers: blocks.
        num_attention_heads: heads.
        block_size: longest window in units.
        dropout: everywhere.
        initializer_range: standard deviation of linear and embedding weights.
        released_quirks: no position code, as in the released baseline.
    """

    model_type = "wordpool_flat"

    def __init__(
        self,
        vocab_size: int = 257,
        hidden_size: int = 512,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        block_size: int = 192,
        dropout: float = 0.1,
        initializer_range: float = 0.02,
        released_quirks: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("tie_word_embeddings", None)
        super().__init__(**kwargs)
        self.tie_word_embeddings = False
        self.vocab_size = check_int("vocab_size", vocab_size, 1)
        self.hidden_size = check_int("hidden_size", hidden_size, 1)
        self.num_hidden_layers = check_int("num_hidden_layers", num_hidden_layers, 1)
        self.num_attention_heads = check_int("num_attention_heads", num_attention_heads, 1)
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads ({num_attention_heads}), got {hidden_size}"
            )
        self.block_size = check_int("block_size", block_size, 1)
        self.dropout = check_range("dropout", dropout, 0.0, 1.0, high_open=True)
        self.initializer_range = check_range("initializer_range", initializer_range, 0.0)
        self.released_quirks = bool(released_quirks)


@dataclass
class FlatLMOutput(ModelOutput):
    """loss scalar; logits [B,T,V]."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class FlatLM(PreTrainedModel):
    """Causal language model over one sequence of ids, of the blocks that word pooling uses (p = 0)."""

    config_class = FlatLMConfig
    config: FlatLMConfig
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config: FlatLMConfig) -> None:
        super().__init__(config)
        d = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, d)
        self.position_code = None if config.released_quirks else nn.Parameter(torch.zeros(1, config.block_size, d))
        self.blocks = CausalBlocks(config.num_hidden_layers, d, config.num_attention_heads, config.dropout, norm=True)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.drop = nn.Dropout(config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self and self.position_code is not None:
            init.zeros_(self.position_code)
        super()._init_weights(module)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is tied."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: BlockCache | None = None,
        **kwargs: Any,
    ) -> FlatLMOutput:
        """Ids [B,T] -> next-id logits [B,T,V]; `labels` are shifted inside, -100 does not count.

        Args:
            input_ids: [B,T] long.
            attention_mask: [B, past+T], 0 = padding on either side.
            labels: [B,T].
            cache: continue after what it holds.
            kwargs: ignored, for ``Trainer``.

        Raises:
            ValueError: ids out of range, or more than ``block_size`` of them.
        """
        sizes = check_shape("input_ids", input_ids, "B T")
        if input_ids.dtype not in (torch.long, torch.int) or sizes["T"] == 0:
            raise ValueError(f"input_ids must be integers, at least one, got {input_ids.dtype} {list(input_ids.shape)}")
        past = 0 if cache is None else cache.length
        if past + sizes["T"] > self.config.block_size:
            raise ValueError(f"input_ids must hold at most block_size={self.config.block_size} ids, got {past + sizes['T']}")
        if input_ids.numel() and (int(input_ids.min()) < 0 or int(input_ids.max()) >= self.config.vocab_size):
            raise ValueError(f"input_ids must be in 0..{self.config.vocab_size - 1}, got one outside")
        valid = None if attention_mask is None else attention_mask.bool()
        if valid is None:
            index = torch.arange(past, past + sizes["T"], device=input_ids.device)[None]
        else:
            index = (valid.long().cumsum(1) - 1).clamp(min=0)[:, -sizes["T"] :]
        x = self.embedding(input_ids)
        x = x if self.position_code is None else x + self.position_code[0][index]
        logits = self.head(self.blocks(self.drop(x), valid, cache))
        loss = None
        if labels is not None:
            if labels.shape != input_ids.shape:
                raise ValueError(f"labels must have shape {list(input_ids.shape)}, got {list(labels.shape)}")
            target = labels[:, 1:]
            if valid is not None:
                target = target.masked_fill(~valid[:, -target.shape[1] :], -100)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten(), ignore_index=-100)
        return FlatLMOutput(loss, logits)
