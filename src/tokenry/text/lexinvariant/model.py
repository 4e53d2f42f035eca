"""The lexinvariant language model: a transformers decoder that reads and predicts through a table drawn for every sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from tokenry.core.checks import check_int, check_range, check_shape
from tokenry.core.seeding import seeded
from tokenry.hosts.release import CACHE, as_argument, cache_in, cache_of, takes_cache
from tokenry.text.lexinvariant.config import LexinvariantConfig
from tokenry.text.lexinvariant.lexicon import Lexicon, draw_lexicon, lexicon_of


@dataclass
class LexinvariantOutput(CausalLMOutputWithPast):
    """loss scalar; logits [B,T,V]; hidden_states: the final state [B,T,d] in a tuple of one; the cache; the lexicon used."""

    lexicon: Lexicon | None = None


class LexinvariantForCausalLM(PreTrainedModel, GenerationMixin):
    """Decoder-only language model without (or with partly) learnt token embeddings.

    For every sequence G ~ N(0, 1) [V, d] is drawn; ``h_0 = G[x]``, ``h = decoder(h_0)`` and
    ``logits = <W h, G_v> / sqrt(d)`` with the same G. The decoder is any transformers model that takes ``inputs_embeds``.
    G is drawn anew in every call unless a lexicon, a seed or a generator is given; a cache remembers the G it was filled with.
    Packed documents in one row share G.
    """

    config_class = LexinvariantConfig
    config: LexinvariantConfig
    base_model_prefix = "body"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 (the attribute of the parent class)

    def __init__(self, config: LexinvariantConfig) -> None:
        super().__init__(config)
        self.body: Any = AutoModel.from_config(config.body_config())
        self.body.set_input_embeddings(nn.Identity())
        learnt = config.vocab_size if config.random_rate < 1.0 else len(config.fixed_tokens)
        self.learnt = nn.Embedding(learnt, config.hidden_size) if learnt else None
        self.readout = nn.Linear(config.hidden_size, config.hidden_size, bias=False) if config.readout_map else None
        self._draws = 0
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # learnt rows have the law of the random ones, so that a mixed table has one scale
        if isinstance(module, nn.Embedding) and module is self.learnt:
            init.normal_(module.weight, mean=0.0, std=1.0)
        else:
            super()._init_weights(module)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is tied: the read-out follows the lexicon."""

    def get_input_embeddings(self) -> nn.Module | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The learnt rows (all tokens, or the fixed ones); None when there are none."""
        return self.learnt

    def get_output_embeddings(self) -> None:
        """None: the read-out follows the lexicon."""

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: build a model with another ``vocab_size``; in full mode the weights do not depend on it.

        Raises:
            ValueError: always.
        """
        raise ValueError("resize_token_embeddings is not supported: load the weights into a config with another vocab_size")

    def draw(
        self,
        batch: int,
        *,
        rate: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Lexicon:
        """Draw the embeddings of `batch` sequences; without seed or generator from the model's own sequence of draws.

        Args:
            batch: sequences B.
            rate: share of random types; default ``random_rate`` in training, and in evaluation 0 for a semi-lexinvariant model.
            seed: of this draw alone.
            generator: on the model's device; excludes `seed`.
        """
        config = self.config
        if seed is not None and generator is not None:
            raise ValueError("give seed or generator, not both")
        if rate is None:
            rate = config.random_rate if self.training or config.random_rate == 1.0 else 0.0
        elif check_range("rate", rate, 0.0, 1.0) < 1.0 and config.random_rate == 1.0:
            raise ValueError(f"rate must be 1 for a model with random_rate=1 (it has no learnt embeddings), got {rate}")
        if generator is None:
            generator = torch.Generator(self.device)
            generator.manual_seed(self._next_seed() if seed is None else check_int("seed", seed, 0))
        return draw_lexicon(
            batch, config.vocab_size, config.hidden_size, table=config.table, rate=rate, generator=generator,
            fixed_tokens=tuple(config.fixed_tokens), device=self.device, dtype=self.dtype,
        )  # fmt: skip

    def _next_seed(self) -> int:
        """A new seed per call and per process: the ranks of a distributed run must not share their tables."""
        rank = torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else 0
        self._draws += 1
        mixed = torch.Generator().manual_seed(self.config.seed * 1_000_003 + rank * 7_919 + self._draws)
        return int(torch.randint(2**62, (), generator=mixed))

    def embed(self, ids: Tensor, lexicon: Lexicon) -> Tensor:
        """Embeddings of ids [B,T] under the lexicon, learnt rows included: [B,T,d]."""
        if lexicon.blank and self.learnt is not None:
            return self.learnt(ids)
        drawn = lexicon.embed(ids).to(self.dtype)
        if self.learnt is None or lexicon.replaced is None:
            return drawn
        rows = self.learnt(ids) if self._all_learnt else self.learnt(self._slot(ids.device)[ids])
        return torch.where(lexicon.replaced.gather(1, ids)[..., None], drawn, rows)

    def scores(self, states: Tensor, lexicon: Lexicon) -> Tensor:
        """Logits [B,T,V] of states [B,T,d]: inner products with the same table, over sqrt(d)."""
        states = states if self.readout is None else self.readout(states)
        states = states / math.sqrt(self.config.hidden_size)
        if lexicon.blank and self.learnt is not None:
            return states @ self.learnt.weight.T
        drawn = lexicon.products(states)
        if self.learnt is None or lexicon.replaced is None:
            return drawn
        learnt = states @ self.learnt.weight.T
        if not self._all_learnt:
            fixed = torch.tensor(self.config.fixed_tokens, device=drawn.device)
            return drawn.index_copy(-1, fixed, learnt.to(drawn.dtype))
        return torch.where(lexicon.replaced[:, None, :], drawn, learnt)

    @property
    def _all_learnt(self) -> bool:
        return self.config.random_rate < 1.0

    def _slot(self, device: torch.device) -> Tensor:
        """Row of `learnt` for each fixed token, 0 elsewhere (those are masked out): [V]."""
        slot = torch.zeros(self.config.vocab_size, dtype=torch.long, device=device)
        slot[self.config.fixed_tokens] = torch.arange(len(self.config.fixed_tokens), device=device)
        return slot

    @takes_cache
    def forward(  # noqa: D417 (the rest are transformers' arguments)
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        labels: Tensor | None = None,
        lexicon: Lexicon | Tensor | None = None,
        rate: float | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> LexinvariantOutput:
        """Next-token logits, and the loss of `labels`.

        Args:
            input_ids: [B,T] long, all in 0..V-1.
            attention_mask: [B, past + T], 0 = padding (either side); padding neither is seen nor counts in the loss.
            labels: [B,T], shifted inside; -100 does not count.
            lexicon: embeddings to use: a `Lexicon`, G [B,V,d], or one G [V,d]; default: those of the cache, else drawn.
            rate: share of random types of this draw; see `draw`.
            seed: of this draw.
            generator: of this draw.

        Raises:
            ValueError: ids out of range, empty input, a lexicon of other sizes, or one that is not the cache's.
        """
        self._check_ids(input_ids, "input_ids")
        chosen = self._choose(input_ids.shape[0], cache, lexicon, rate, seed, generator)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=self.body.config)
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        out = self.body(
            inputs_embeds=self.embed(input_ids, chosen), attention_mask=attention_mask, position_ids=position_ids,
            use_cache=use_cache, **as_argument(cache if use_cache else None),
        )  # fmt: skip
        cache = cache_of(out) if use_cache else None
        if cache is not None:
            cache.lexicon = chosen
        states = out.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.scores(states[:, kept] if labels is None else states, chosen)
        loss = None if labels is None else self._loss(logits, labels, attention_mask, num_items_in_batch)
        return LexinvariantOutput(loss, logits, hidden_states=(states,), lexicon=chosen, **as_argument(cache))  # pyright: ignore

    def _check_ids(self, ids: Tensor, name: str) -> None:
        sizes = check_shape(name, ids, "B T")
        if ids.dtype not in (torch.long, torch.int):
            raise TypeError(f"{name} must be an integer tensor, got {ids.dtype}")
        if 0 in sizes.values():
            raise ValueError(f"{name} must hold at least one sequence of one token, got shape {list(ids.shape)}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            raise ValueError(f"{name} must be in 0..{self.config.vocab_size - 1}, got {low if low < 0 else high}")

    def _choose(
        self,
        batch: int,
        cache: Cache | None,
        given: Lexicon | Tensor | None,
        rate: float | None,
        seed: int | None,
        generator: torch.Generator | None,
    ) -> Lexicon:
        """The lexicon of this call: given, the cache's, or drawn; a filled cache accepts no other than its own."""
        filled = cache is not None and cache.get_seq_length() > 0
        kept: Lexicon | None = getattr(cache, "lexicon", None) if filled else None
        if filled and kept is None:
            raise ValueError(f"{CACHE} holds keys of unknown embeddings: pass the cache that this model returned")
        redraw = rate is not None or seed is not None or generator is not None
        if given is not None:
            config = self.config
            if redraw:
                raise ValueError("give a lexicon, or rate, seed or generator to draw one, not both")
            fixed = tuple(config.fixed_tokens)
            chosen = lexicon_of(given, batch, config.vocab_size, config.hidden_size, fixed)
            if chosen.replaced is not None and self.learnt is None:
                raise ValueError("lexicon.replaced must be None: this model has no learnt embeddings")
        elif kept is not None and not redraw:
            chosen = kept
        else:
            chosen = self.draw(batch, rate=rate, seed=seed, generator=generator)
        if kept is not None and not chosen.same_as(kept):
            raise ValueError(
                f"lexicon differs from the one that {CACHE} was filled with: keep one lexicon for a whole sequence"
            )
        return chosen

    def _loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None, items: Tensor | int | None) -> Tensor:
        """Next-token cross-entropy in float32; padding and -100 do not count. Without any target the loss is 0."""
        if labels.shape != logits.shape[:2]:
            raise ValueError(f"labels must have shape {list(logits.shape[:2])}, got {list(labels.shape)}")
        target = labels[:, 1:]
        if mask is not None:
            target = target.masked_fill(mask[:, -target.shape[1] :] == 0, -100) if target.shape[1] else target
        self._check_labels(target)
        total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten(), ignore_index=-100, reduction="sum")
        count = (target != -100).sum().clamp(min=1) if items is None else items
        return total / count

    def _check_labels(self, target: Tensor) -> None:
        bad = (target != -100) & ((target < 0) | (target >= self.config.vocab_size))
        if bool(bad.any()):
            raise ValueError(f"labels must be -100 or in 0..{self.config.vocab_size - 1}, got {int(target[bad][0])}")

    @torch.no_grad()
    def averaged_log_probs(
        self, input_ids: Tensor, *, draws: int = 8, attention_mask: Tensor | None = None, seed: int = 0
    ) -> Tensor:
        """Log of the mean next-token probability over `draws` lexicons: [B,T,V] float32.

        The model's prediction is an average over G; one draw is an unbiased estimate of it and more draws vary less.
        """
        check_int("draws", draws, 1)
        generator = torch.Generator(self.device).manual_seed(check_int("seed", seed, 0))
        total: Tensor | None = None
        for _ in range(draws):
            out = self(input_ids, attention_mask=attention_mask, generator=generator, use_cache=False)
            log_probs = out.logits.float().log_softmax(-1)
            total = log_probs if total is None else torch.logaddexp(total, log_probs)
        assert total is not None
        return total - math.log(draws)

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], **rest: Any) -> dict[str, Any]:
        # without a cache the lexicon must travel by itself
        model_kwargs["lexicon"] = outputs.lexicon
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, **rest)

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inputs: Tensor,
        *,
        lexicon: Lexicon | Tensor | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **kwargs: Any,
    ) -> Any:
        """``transformers``' generate under one lexicon for the whole sequence, cached or not.

        Args:
            inputs: prompts [B,T]; with ``attention_mask`` when they are padded (on the left).
            lexicon: embeddings to use; drawn from `seed` or `generator` otherwise.
            seed: of the lexicon and of the sampling.
            generator: of both, in place of a seed; on the model's device.
            kwargs: everything else of ``generate`` (``max_new_tokens``, ``do_sample``, ``temperature``, ``use_cache`` ...).

        Raises:
            ValueError: beam search, whose beams would need one lexicon each.
        """
        settings = kwargs.get("generation_config")
        if (kwargs.get("num_beams") or getattr(settings, "num_beams", None) or 1) > 1:
            raise ValueError("num_beams must be 1: the beams of a sequence would not share their lexicon")
        rows = inputs.shape[0] * int(kwargs.get("num_return_sequences") or getattr(settings, "num_return_sequences", None) or 1)
        if lexicon is None and getattr(cache_in(kwargs), "lexicon", None) is None:
            lexicon = self.draw(rows, seed=seed, generator=generator)
        if seed is None and generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        # transformers samples from the global state
        with seeded(self._next_seed() if seed is None else seed, self.device):
            return super().generate(inputs, lexicon=lexicon, **kwargs)  # pyright: ignore
