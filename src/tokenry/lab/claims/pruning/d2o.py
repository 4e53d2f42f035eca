"""Claim of D2O: at an equal budget it loses less than H2O and StreamingLLM (Wan et al., ICLR 2025, main experiments).

Measured here: log-likelihood of real text after a compressed prompt, where the text continues the prompt and where it has to be
recalled from it. The layers that D2O leaves alone are left alone for the other methods too, and H2O gets D2O's sinks. Merging
and layer budgets are switched off one by one in further arms, to see which part does what.

What a small host can and cannot show: the paper's models have 7 to 13 billion parameters and prompts of thousands of tokens.
With a 135-million-parameter model and short prompts, the order of heavy hitters against a plain window carries over; whether
merging helps is the open question that the verdict answers for this host only.
"""

from __future__ import annotations

import inspect
from typing import Any

from tokenry.core.progress import Progress
from tokenry.errors import AssetMissingError
from tokenry.lab.beds.language.recall import (
    Host,
    Item,
    Outcome,
    byte_host,
    continuation_items,
    recall_items,
    score_item,
    smollm2_host,
)
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.pruning import D2O, H2O, FullCache, SnapKV, StreamingLLM
from tokenry.pruning.kv_method import CacheMethod

_SKIP = (0, 1, -1)
_TASKS = ("continuation", "recall")


def methods(budgets: tuple[float, ...]) -> dict[str, CacheMethod]:
    """Arms by name; every arm compresses the same layers."""
    arms: dict[str, CacheMethod] = {"full": FullCache()}
    for b in budgets:
        arms[f"d2o@{b}"] = D2O(b, skip_layers=_SKIP)
        arms[f"h2o@{b}"] = H2O(b, skip_layers=_SKIP, sinks=4)
        arms[f"streaming@{b}"] = StreamingLLM(b, skip_layers=_SKIP)
    tight = budgets[0]
    arms[f"snapkv@{tight}"] = SnapKV(tight, skip_layers=_SKIP)
    arms[f"d2o, no merging@{tight}"] = D2O(tight, skip_layers=_SKIP, merge=None)
    arms[f"d2o, equal layers@{tight}"] = D2O(tight, skip_layers=_SKIP, density=None)
    return arms


class D2OClaim(Claim):
    """D2O against H2O and StreamingLLM at 20 % of the prompt."""

    system = "d2o"
    statement = (
        "With 20 % of the cache in the compressed layers, D2O keeps a higher log-likelihood of real text than StreamingLLM and "
        "than H2O, both for text that continues the prompt and for text that is recalled from it."
    )
    metric = "mean log-likelihood per token (nats; higher is better) after a compressed prompt"
    contrasts = (
        Contrast("continuation: D2O over StreamingLLM", "continuation/d2o@0.2", "continuation/streaming@0.2"),
        Contrast("continuation: D2O over H2O", "continuation/d2o@0.2", "continuation/h2o@0.2"),
        Contrast("recall: D2O over StreamingLLM", "recall/d2o@0.2", "recall/streaming@0.2"),
        Contrast("recall: D2O over H2O", "recall/d2o@0.2", "recall/h2o@0.2"),
    )
    competence = Competence("recall/full", -1.0)  # with the whole cache the host must be able to recall at all
    assets = ("smollm2", "shakespeare")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Host, prompt and item counts of a scale."""
        sizes = {
            "smoke": {"host": "bytes", "prompt": 128, "follow": 24, "cue": 8, "answer": 12, "items": 3},
            "small": {"host": "smollm2", "prompt": 384, "follow": 48, "cue": 8, "answer": 16, "items": 6},
            "paper": {
                "host": "meta-llama/Meta-Llama-3-8B",
                "data": "THUDM/LongBench:narrativeqa",
                "prompt": 8192,
                "follow": 128,
                "cue": 16,
                "answer": 48,
                "items": 50,
            },
        }
        return {**sizes[scale], "budgets": [0.2, 0.4], "skip_layers": list(_SKIP)}

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Score all arms on fresh items of both tasks."""
        sizes = self.settings(scale)
        progress("loading the host", 0.0)
        host, text = _host(sizes, seed, device)
        arms = methods(tuple(sizes["budgets"]))
        values: dict[str, list[float]] = {}
        facts: dict[str, float | str] = {}
        items = _items(host, text, sizes, seed)
        total = sum(len(group) for group in items.values())
        done = 0
        for task, group in items.items():
            outcomes: list[list[Outcome]] = []
            for item in group:
                outcomes.append(score_item(host, item, list(arms.values())))
                done += 1
                progress(f"{task} {len(outcomes)}/{len(group)}", done / total)
            for place, name in enumerate(arms):
                column = [row[place] for row in outcomes]
                values[f"{task}/{name}"] = [outcome.log_likelihood for outcome in column]
                facts[f"{task}/{name} tokens guessed"] = sum(o.accuracy for o in column) / len(column)
                facts[f"{task}/{name} cache"] = sum(o.cache_bytes / o.cache_bytes_full for o in column) / len(column)
        return Measurement(values, facts)


def _items(host: Host, text: str, sizes: dict[str, Any], seed: int) -> dict[str, list[Item]]:
    count, prompt = sizes["items"], sizes["prompt"]
    return {
        "continuation": continuation_items(host, text, prompt=prompt, follow=sizes["follow"], count=count, seed=seed),
        "recall": recall_items(
            host, text, prompt=prompt, cue=sizes["cue"], answer=sizes["answer"], count=count, seed=seed + 500
        ),
    }


def _host(sizes: dict[str, Any], seed: int, device: str) -> tuple[Host, str]:
    if sizes["host"] == "bytes":
        import argparse
        import typing

        return byte_host(inspect.getsource(argparse), seed=seed, device=device), inspect.getsource(typing)
    if sizes["host"] == "smollm2":
        from tokenry.lab.sources.models import text_corpus

        return smollm2_host(device), text_corpus()
    return _hub_host(sizes["host"], sizes["data"], device)


def _hub_host(model_id: str, data_id: str, device: str) -> tuple[Host, str]:
    """The paper's model and long documents, by hub id."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenry.errors import optional

    repository, _, subset = data_id.partition(":")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model_id)
        model: Any = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.bfloat16)
        rows = optional("datasets", "training").load_dataset(repository, subset, split="test", revision="refs/convert/parquet")
    except (OSError, ValueError, ConnectionError) as error:
        raise AssetMissingError(
            f"{model_id} or {data_id} could not be loaded ({error}); run: hf download {model_id} && "
            f"hf download --repo-type dataset {repository}"
        ) from error

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    model = model.to(device).eval()
    start = () if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)
    return Host(model, encode, start), "\n\n".join(row["context"] for row in rows)


CLAIM = D2OClaim()
