"""Configuration of a word-pooled language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tokenry.core.checks import check_int, check_range


class WordPoolConfig(PreTrainedConfig):
    """Sizes of the word encoder, the language model over words and the in-word decoder. Defaults are the released runs'.

    Args:
        vocab_size: base units V (bytes, characters ...); id 0 is padding and end of word.
        num_prefix: p, summary slots per word.
        hidden_size: width d of all three parts.
        num_hidden_layers: blocks of the language model over words.
        num_attention_heads: its heads.
        word_layers: layers of the word encoder, and blocks of the in-word decoder.
        word_heads: heads of both.
        word_intermediate_size: feed-forward width of the word encoder.
        block_size: longest window, in words.
        canvas_size: longest word, in units.
        dropout: everywhere.
        initializer_range: standard deviation of linear and embedding weights.
        released_quirks: compute as the released code: pads masked only against pads, slot codes added twice in the decoder,
            every slot of the canvas in the loss, the summary slots of c units read from rows c..c+p-1. False is the clean form.
        body: configuration of a transformers decoder (``GPT2Config(...).to_dict()``) in place of the language model over words.
            It brings its own positions, so its longest input must hold ``block_size * num_prefix``.

    Raises:
        TypeError, ValueError: a value is out of range; the message names it.
    """

    model_type = "wordpool"

    def __init__(
        self,
        vocab_size: int = 257,
        num_prefix: int = 4,
        hidden_size: int = 512,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        word_layers: int = 2,
        word_heads: int = 4,
        word_intermediate_size: int = 2048,
        block_size: int = 192,
        canvas_size: int = 24,
        dropout: float = 0.1,
        initializer_range: float = 0.02,
        released_quirks: bool = False,
        body: dict[str, Any] | PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("tie_word_embeddings", None)
        super().__init__(**kwargs)
        self.tie_word_embeddings = False
        self.vocab_size = check_int("vocab_size", vocab_size, 2)
        self.num_prefix = check_int("num_prefix", num_prefix, 1)
        self.hidden_size = check_int("hidden_size", hidden_size, 1)
        self.num_hidden_layers = check_int("num_hidden_layers", num_hidden_layers, 1)
        self.num_attention_heads = check_int("num_attention_heads", num_attention_heads, 1)
        self.word_layers = check_int("word_layers", word_layers, 1)
        self.word_heads = check_int("word_heads", word_heads, 1)
        for name in ("num_attention_heads", "word_heads"):
            if hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size must be a multiple of {name} ({getattr(self, name)}), got {hidden_size}")
        self.word_intermediate_size = check_int("word_intermediate_size", word_intermediate_size, 1)
        self.block_size = check_int("block_size", block_size, 1)
        self.canvas_size = check_int("canvas_size", canvas_size, 1)
        self.dropout = check_range("dropout", dropout, 0.0, 1.0, high_open=True)
        self.initializer_range = check_range("initializer_range", initializer_range, 0.0)
        if not isinstance(released_quirks, bool):
            raise TypeError(f"released_quirks must be a bool, got {type(released_quirks).__name__}")
        if released_quirks and canvas_size > vocab_size:
            raise ValueError(f"canvas_size must be at most vocab_size ({vocab_size}) with released_quirks, got {canvas_size}")
        self.released_quirks = released_quirks
        self.body = body.to_dict() if isinstance(body, PreTrainedConfig) else body
        self.body_config()

    def body_config(self) -> PreTrainedConfig | None:
        """Configuration of the exchanged language model (with a vocabulary of one: its embedding is unused), or None.

        Raises:
            ValueError: `body` names no model type, or its width or longest input do not fit.
        """
        if self.body is None:
            return None
        rest = {**self.body, "vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        if "model_type" not in rest:
            raise ValueError("body must hold a model_type, as transformers' to_dict() writes it")
        made = AutoConfig.for_model(rest.pop("model_type"), **rest)
        if made.hidden_size != self.hidden_size:
            raise ValueError(f"hidden_size must be that of body ({made.hidden_size}), got {self.hidden_size}")
        longest = getattr(made, "max_position_embeddings", None)
        if longest is not None and longest < self.block_size * self.num_prefix:
            raise ValueError(
                f"body must take block_size * num_prefix = {self.block_size * self.num_prefix} inputs, got {longest}"
            )
        return made
