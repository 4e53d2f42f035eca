"""Configuration of a lexinvariant language model."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tokenry.core.checks import check_choice, check_int, check_range

TABLES = ("sequence", "pool")


class LexinvariantConfig(PreTrainedConfig):
    """Sizes of the model, the share of random symbols, and which tokens keep a learnt embedding.

    Args:
        vocab_size: tokens V.
        hidden_size: width d, also of the embeddings.
        num_hidden_layers: decoder blocks.
        num_attention_heads: heads of a block.
        max_position_embeddings: longest sequence.
        dropout: inside the blocks of the default body, which is GPT-2's (pre-norm, learnt positions); never on the embeddings,
            which must stay equal for equal tokens.
        random_rate: r, the probability that a token type gets a random embedding in a sequence. 1 is the lexinvariant model,
            0 a standard language model, between them the semi-lexinvariant one (0.2 in the paper).
        table: ``"sequence"`` draws a table [V, d] for every sequence; ``"pool"`` draws one for the batch and permutes its rows
            for every sequence, which needs B times less memory.
        fixed_tokens: ids (begin, end, padding ...) that always keep a learnt embedding and stand outside the invariance.
        readout_map: a learnt d x d map W before the read-out.
        seed: of the model's own draws, used when a call brings neither a seed nor a generator.
        body: configuration of another transformers decoder (``LlamaConfig(...).to_dict()``) in place of the default one.

    Raises:
        TypeError, ValueError: a value is out of range; the message names it.
    """

    model_type = "lexinvariant"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 512,
        dropout: float = 0.0,
        random_rate: float = 1.0,
        table: str = "sequence",
        fixed_tokens: list[int] | tuple[int, ...] = (),
        readout_map: bool = False,
        seed: int = 0,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        body: dict[str, Any] | PreTrainedConfig | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("tie_word_embeddings", None)
        super().__init__(**kwargs)
        self.tie_word_embeddings = False  # the read-out follows the drawn table; there is nothing to tie
        self.vocab_size = check_int("vocab_size", vocab_size, 1)
        self.hidden_size = check_int("hidden_size", hidden_size, 1)
        self.num_hidden_layers = check_int("num_hidden_layers", num_hidden_layers, 1)
        self.num_attention_heads = check_int("num_attention_heads", num_attention_heads, 1)
        if body is None and hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads ({num_attention_heads}), got {hidden_size}"
            )
        self.max_position_embeddings = check_int("max_position_embeddings", max_position_embeddings, 1)
        self.dropout = check_range("dropout", dropout, 0.0, 1.0, high_open=True)
        self.random_rate = check_range("random_rate", random_rate, 0.0, 1.0)
        self.table = check_choice("table", table, TABLES)
        self.fixed_tokens = [check_int("fixed_tokens", token, 0, vocab_size - 1) for token in fixed_tokens]
        if len(set(self.fixed_tokens)) != len(self.fixed_tokens) or len(self.fixed_tokens) >= vocab_size:
            raise ValueError(f"fixed_tokens must be distinct and leave a symbol that is not fixed, got {self.fixed_tokens}")
        self.readout_map = bool(readout_map)
        self.seed = check_int("seed", seed, 0)
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.body = body.to_dict() if isinstance(body, PreTrainedConfig) else body
        self.body_config()

    def body_config(self) -> PreTrainedConfig:
        """Configuration of the decoder, with a vocabulary of one: its own embedding is never used.

        Raises:
            ValueError: `body` names no known model type, or its width is not `hidden_size`.
        """
        if self.body is None:
            from transformers import GPT2Config

            made: PreTrainedConfig = GPT2Config(
                vocab_size=1, n_positions=self.max_position_embeddings, n_embd=self.hidden_size, n_layer=self.num_hidden_layers,
                n_head=self.num_attention_heads, resid_pdrop=self.dropout, embd_pdrop=0.0, attn_pdrop=self.dropout,
                initializer_range=self.initializer_range, bos_token_id=None, eos_token_id=None, pad_token_id=None,
                activation_function="gelu_pytorch_tanh",  # GPT-2's function in one kernel: a third less time for small models
            )  # fmt: skip
        else:
            rest = {**self.body, "vocab_size": 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
            if "model_type" not in rest:
                raise ValueError("body must hold a model_type, as transformers' to_dict() writes it")
            made = AutoConfig.for_model(rest.pop("model_type"), **rest)
            if made.hidden_size != self.hidden_size:
                raise ValueError(f"hidden_size must be that of body ({made.hidden_size}), got {self.hidden_size}")
        if getattr(self, "_attn_implementation", None):
            made._attn_implementation = self._attn_implementation
        return made
