"""The word-pooled language model: encode each word, model the pooled words, spell the next one (section 3 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput  # pyright: ignore[reportPrivateImportUsage]

from tokenry.hosts.release import as_argument
from tokenry.text.wordpool import generation
from tokenry.text.wordpool.batch import WordBatch, check_words
from tokenry.text.wordpool.blocks import BlockCache, CausalBlocks
from tokenry.text.wordpool.config import WordPoolConfig


@dataclass
class WordPoolOutput(ModelOutput):
    """What a forward pass returns.

    Attributes:
        loss: mean cross-entropy per counted slot.
        logits: [B,T-1,C0,V]; entry j spells word j+1 (the first word of a window is never predicted).
        word_log_probs: [B,T-1] float32, log-probability of words 1..T-1, end of word included; 0 for padding.
        pooled: Q [B,T,p,d].
        states: G [B,T,p,d].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    word_log_probs: Tensor | None = None
    pooled: Tensor | None = None
    states: Tensor | None = None


class WordPoolForCausalLM(PreTrainedModel):
    """Language model over words that are pooled from, and spelled in, base units.

    Three parts of one width d: a bidirectional encoder that sees one word alone and pools it into p slots, a causal language
    model over the T*p slots, and a causal decoder that spells word j from the state of word j-1, all words in parallel.
    """

    config_class = WordPoolConfig
    config: WordPoolConfig
    base_model_prefix = "words"
    main_input_name = "input_units"
    accepts_loss_kwargs = False  # Trainer would count the pads of the labels as items
    _supports_sdpa = True
    _no_split_modules = ["CausalBlock", "TransformerEncoderLayer"]  # noqa: RUF012 (the attribute of the parent class)

    def __init__(self, config: WordPoolConfig) -> None:
        super().__init__(config)
        p, d = config.num_prefix, config.hidden_size
        # rows vocab_size .. vocab_size+p-1 are the summary slots
        self.embedding = nn.Embedding(config.vocab_size + p, d)
        self.slot_code = nn.Parameter(torch.zeros(1, config.canvas_size + p, d))
        layer = nn.TransformerEncoderLayer(
            d, config.word_heads, config.word_intermediate_size, config.dropout, activation="relu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.word_layers, enable_nested_tensor=False)
        body = config.body_config()
        if body is None:
            self.word_code = nn.Parameter(torch.zeros(1, config.block_size * p, d))
            self.words: Any = CausalBlocks(config.num_hidden_layers, d, config.num_attention_heads, config.dropout, norm=True)
        else:
            self.words = AutoModel.from_config(body)
            self.words.set_input_embeddings(nn.Identity())
        self.decoder = CausalBlocks(config.word_layers, d, config.word_heads, config.dropout, norm=False)
        self.head = nn.Linear(d, config.vocab_size, bias=False)
        self.drop = nn.Dropout(config.dropout)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.zeros_(self.slot_code)
            if self.config.body is None:
                init.zeros_(self.word_code)
        super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The unit embeddings, summary slots in the last rows."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head over base units."""
        return self.head

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is tied: the head has no summary slots."""

    def forward(
        self,
        input_units: Tensor,
        word_lengths: Tensor | None = None,
        word_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> WordPoolOutput:
        """Logits and log-probabilities of words 1..T-1 of every window, and the loss of `labels`.

        Args:
            input_units: [B,T,C0] long, base units, 0 after the end of a word.
            word_lengths: [B,T] units of every word, 1..C0; default: up to the last unit that is not 0.
            word_mask: [B,T] bool, False = padding (either side): never seen, never counted. Its units and length are ignored.
            labels: [B,T,C0] like `input_units` (shifted by one word inside); -100 does not count.
            kwargs: ignored, for ``Trainer``.

        Raises:
            TypeError, ValueError: shapes, ids, lengths or counts out of range; a window of one word with labels.
        """
        batch = check_words(self.config, input_units, word_lengths, word_mask)
        slots = self._slots(batch.units)
        pooled = self.pool(batch, slots)
        states, _ = self.run_words(pooled, batch.mask)
        logits = self._spell(slots, states)
        width = batch.units.shape[2]
        log_probs = batch.word_log_probs(logits, self.config.canvas_size)
        logits = logits[:, :, :width]
        loss = None if labels is None else self._loss(logits, labels, batch)
        return WordPoolOutput(loss, logits, log_probs, pooled, states)

    def _slots(self, units: Tensor) -> Tensor:
        """Embedded summary slots and units with their slot codes: H [B,T,p+C0,d]."""
        p = self.config.num_prefix
        first = units.shape[2] if self.config.released_quirks else self.config.vocab_size
        prefix = torch.arange(first, first + p, device=units.device)
        filled = torch.cat([prefix.expand(*units.shape[:2], p), units], dim=2)
        return self.drop(self.embedding(filled) + self.slot_code[:, : filled.shape[2]])

    def pool(self, batch: WordBatch, slots: Tensor | None = None) -> Tensor:
        """Pooled words Q [B,T,p,d]: every word by itself, bidirectional.

        A word's Q depends on its units alone, so that without dropout every distinct word is encoded once.
        """
        count, words, width = batch.units.shape
        if self.training and self.config.dropout > 0.0:
            slots = self._slots(batch.units) if slots is None else slots
            encoded = self._encode(slots.reshape(count * words, -1, slots.shape[-1]), batch.lengths.reshape(-1), width)
        else:
            keyed = torch.cat([batch.units, batch.lengths[..., None]], dim=2).reshape(count * words, width + 1)
            distinct, place = torch.unique(keyed, dim=0, return_inverse=True)
            encoded = self._encode(self._slots(distinct[None, :, :-1])[0], distinct[:, -1], width)[place]
        return encoded.reshape(count, words, *encoded.shape[1:])

    def _encode(self, slots: Tensor, lengths: Tensor, width: int) -> Tensor:
        """Pool words given as embedded slots [N,p+C0,d] with their lengths [N]: [N,p,d]."""
        quirks, p = self.config.released_quirks, self.config.num_prefix
        if not quirks and width < self.config.canvas_size:
            # a word that fills the tensor still has its end slot, so that wider padding changes nothing
            end = self.embedding.weight[0] + self.slot_code[0, p + width]
            slots = torch.cat([slots, self.drop(end.expand(len(slots), 1, -1))], dim=1)
        # real: the summary slots, the units, and one end-of-word slot
        pad = torch.arange(slots.shape[1], device=slots.device) > (lengths[:, None] + p)
        if quirks:
            both = (pad[:, :, None] & pad[:, None, :]).repeat_interleave(self.config.word_heads, dim=0)
            return self.encoder(slots, mask=both)[:, :p]
        return self.encoder(slots, src_key_padding_mask=pad)[:, :p]

    def run_words(self, pooled: Tensor, mask: Tensor | None = None, cache: Any = None) -> tuple[Tensor, Any]:
        """The language model over words: Q [B,T,p,d] -> G [B,T,p,d] and the cache.

        `mask` [B, past+T] marks real words; `cache` continues after the words it holds (None: no cache; ``"new"``: start one).
        """
        count, words, p, width = pooled.shape
        if mask is None:
            past = 0 if cache is None or cache == "new" else _length(cache) // p
            index = torch.arange(past, past + words, device=pooled.device).expand(count, -1)
        else:
            index = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -words:]
        position = (index[..., None] * p + torch.arange(p, device=pooled.device)).flatten(1)
        valid = None if mask is None else mask.repeat_interleave(p, dim=1)
        flat = pooled.reshape(count, words * p, width)
        if self.config.body is None:
            cache = BlockCache() if cache == "new" else cache
            out = self.words(self.drop(flat + self.word_code[0][position]), valid, cache)
        else:
            cache = DynamicCache(config=self.words.config) if cache == "new" else cache
            done = self.words(
                inputs_embeds=flat, attention_mask=None if valid is None else valid.long(), position_ids=position,
                use_cache=cache is not None, **as_argument(cache),
            )  # fmt: skip
            out = done.last_hidden_state
        return out.reshape(count, words, p, width), cache

    def _spell(self, slots: Tensor, states: Tensor) -> Tensor:
        """Logits [B,T-1,C0+1,V] of every next word from the state before it, teacher-forced."""
        p, code = self.config.num_prefix, self.slot_code[:, : slots.shape[2]]
        units = slots[:, 1:, p:]
        if self.config.released_quirks:
            units = units + code[:, p:]
        joined = self.drop(torch.cat([states[:, :-1] + code[:, :p], units], dim=2))
        count, words, width, _ = joined.shape
        if words == 0:
            return joined.new_zeros(count, 0, width - p + 1, self.config.vocab_size)
        decoded = self.decoder(joined.reshape(count * words, width, -1)).reshape(joined.shape)
        # slot p-1 predicts unit 1, the slot of unit k predicts unit k+1
        return self.head(decoded[:, :, p - 1 :])

    def _loss(self, logits: Tensor, labels: Tensor, batch: WordBatch) -> Tensor:
        """Mean cross-entropy: up to and including the first 0 of a word, or every slot in the released form."""
        if labels.shape != batch.units.shape:
            raise ValueError(f"labels must have the shape of input_units {list(batch.units.shape)}, got {list(labels.shape)}")
        if labels.shape[1] < 2:
            raise ValueError("labels need windows of at least two words: the first word of a window is never predicted")
        target = labels[:, 1:]
        bad = (target != -100) & ((target < 0) | (target >= self.config.vocab_size))
        if bool(bad.any()):
            raise ValueError(f"labels must be -100 or in 0..{self.config.vocab_size - 1}, got {int(target[bad][0])}")
        counted = (target != -100) & batch.predicted[..., None]
        if not self.config.released_quirks:
            ended = (target == 0).long().cumsum(-1) - (target == 0).long()
            counted = counted & (ended == 0)
        target = target.masked_fill(~counted, -100)
        total = F.cross_entropy(logits.flatten(0, 2).float(), target.flatten(), ignore_index=-100, reduction="sum")
        return total / counted.sum().clamp(min=1)

    def generate_words(self, input_units: Tensor, word_lengths: Tensor | None = None, **options: Any) -> Any:
        """Continue windows of words; see `tokenry.text.wordpool.generate_words`."""
        return generation.generate_words(self, input_units, word_lengths, **options)

    def score_words(self, input_units: Tensor, word_lengths: Tensor | None = None, **options: Any) -> Tensor:
        """Log-probabilities of candidates for the next word; see `tokenry.text.wordpool.score_words`."""
        return generation.score_words(self, input_units, word_lengths, **options)


def _length(cache: Any) -> int:
    return cache.length if isinstance(cache, BlockCache) else cache.get_seq_length()
