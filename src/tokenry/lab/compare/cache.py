"""Comparison of KV-cache methods on a causal language model and a text: how well is the real continuation predicted?"""

from __future__ import annotations

from typing import Any

import torch

from tokenry.core.progress import Progress
from tokenry.hosts.release import cache_of
from tokenry.lab.beds.language.recall import Host, continuation_items, score_item, smollm2_host
from tokenry.lab.compare.methods import default_methods, kv_method
from tokenry.lab.compare.rows import Row, Settings
from tokenry.lab.evidence.measure import cache_bytes, peak_bytes, time_ratio

_PROMPT, _FOLLOW = 384, 64


class KVBench:
    """Methods on a causal language model: log-likelihood of the text that follows a compressed prompt."""

    quality = "nats per token"
    default_methods = default_methods("cache")

    def __init__(self, settings: Settings) -> None:
        if settings.data is None or not settings.data.is_file():
            raise FileNotFoundError(f"--data must be a text file for KV-cache methods, got {settings.data}")
        self.settings = settings
        self.host = smollm2_host(settings.device) if settings.model is None else _host(settings.model, settings.device)
        text = settings.data.read_text(encoding="utf-8")
        count = min(settings.limit, 24)
        self.items = continuation_items(self.host, text, prompt=_PROMPT, follow=_FOLLOW, count=count, seed=settings.seed)
        self.model_name = settings.model or "SmolLM2-135M-Instruct"
        self.data_name = str(settings.data)
        self.reference: tuple[int, int] | None = None

    def count(self) -> int:
        """Number of items."""
        return len(self.items)

    @staticmethod
    def check(methods: tuple[str, ...]) -> None:
        """Refuse unknown names."""
        for name in methods:
            kv_method(name, 0.5)

    def measure(self, method: str, keep: float, progress: Progress) -> Row:
        """Log-likelihood over all items, cost on the first prompt."""
        policy = kv_method(method, keep)
        outcomes, kept = [], []
        for number, item in enumerate(self.items):
            (outcome,) = score_item(self.host, item, [policy])
            outcomes.append(outcome.log_likelihood)
            kept.append(outcome.cache_bytes / outcome.cache_bytes_full)
            progress("", 0.9 * (number + 1) / len(self.items))
        time, memory, cache = self._cost(policy)
        share = sum(kept) / len(kept)
        return Row(outcomes, share * _PROMPT, float(_PROMPT), time, memory, cache)

    def maps(self) -> dict[str, Any]:
        """No pictures for text."""
        return {}

    def _cost(self, policy: Any) -> tuple[float, float, float]:
        model, device = self.host.model, self.settings.device
        prompt = self.items[0].prompt[None].to(device)

        @torch.no_grad()
        def plain() -> Any:
            return cache_of(model(prompt, use_cache=True, logits_to_keep=1))

        @torch.no_grad()
        def compressed() -> Any:
            with policy.attach(model):
                return cache_of(model(prompt, use_cache=True, logits_to_keep=1))

        if self.reference is None:
            self.reference = (cache_bytes(plain()), peak_bytes(plain, device))
        cache = cache_bytes(compressed()) / self.reference[0]
        memory = peak_bytes(compressed, device) / self.reference[1]
        return time_ratio(compressed, plain, repeats=3, device=device), memory, cache


def _host(model: str, device: str) -> Host:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    loaded = loaded.to(device).eval()
    start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return Host(loaded, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"], start)
