"""Claim of D2O: at an equal budget it loses less than H2O and StreamingLLM, and merging is part of why (Wan et al., ICLR 2025).

Measured here: log-likelihood of real text after a compressed prompt of 1,536 tokens: text that continues the prompt, and a
passage recalled from it, at depths spread evenly, its cue unknown or known when the prompt is cut. Every arm holds the same
bytes over all layers: D2O with the split the paper found best (3:1), H2O as published (1:1, no sinks) and with that split and
sinks. Merging, layer budgets and split are changed one by one in further arms, and three other ways to merge are tried (see
`beds.language.merging`).

What a small host can and cannot show: the paper's models have 7 to 13 billion parameters. What a real model does is seen here
too: the whole cache recalls at every depth, a recent window only what stands in it.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from tokenry.core.progress import Progress
from tokenry.errors import AssetMissingError
from tokenry.lab.beds.language.merging import OtherMerging, rotation_of
from tokenry.lab.beds.language.recall import Host, Outcome, byte_host, score_items, shared_items, smollm2_host
from tokenry.lab.evidence.claim import Claim, Competence, Contrast, Measurement, Scale
from tokenry.pruning import D2O, H2O, FullCache, SnapKV, StreamingLLM
from tokenry.pruning.kv_method import CacheMethod

_TASKS = ("continuation", "recall", "asked")
_WORSE = {
    "StreamingLLM": "streaming@0.2",
    "H2O as published": "h2o@0.2",
    "H2O with its split and sinks": "h2o, 3:1 and sinks@0.2",
    "itself without merging": "d2o, no merging@0.2",
}


def methods(host: Host, length: int) -> dict[str, CacheMethod]:
    """Arms by name; every arm of a budget holds the same share of the cache over all layers."""
    d2o = D2O(0.2, skip_layers=(), heavy_share=0.75)
    other, rotation = OtherMerging(0.2, skip_layers=(), heavy_share=0.75), rotation_of(host.model, length)
    return {
        "full": FullCache(),
        "streaming@0.03": StreamingLLM(0.03),
        "streaming@0.2": StreamingLLM(0.2),
        "snapkv@0.2": SnapKV(0.2),
        "h2o@0.2": H2O(0.2),
        "h2o, 3:1 and sinks@0.2": H2O(0.2, heavy_share=0.75, sinks=4),
        "d2o@0.2": d2o,
        "d2o, no merging@0.2": replace(d2o, merge=None),
        "d2o, equal layers@0.2": replace(d2o, density=None),
        "d2o, 1:1@0.2": replace(d2o, heavy_share=0.5),
        "d2o, values merged@0.2": replace(other, merges_keys=False),
        "d2o, values merged, matched unrotated@0.2": replace(other, merges_keys=False, rotation=rotation),
        "d2o, all merged unrotated@0.2": replace(other, rotation=rotation),
        "d2o@0.5": replace(d2o, budget=0.5),
        "d2o, no merging@0.5": replace(d2o, budget=0.5, merge=None),
    }


class D2OClaim(Claim):
    """D2O against H2O, StreamingLLM and itself without merging, at 20 % of the cache."""

    system = "d2o"
    statement = (
        "With 20 % of the cache over all layers, D2O keeps a higher log-likelihood of real text than StreamingLLM, than H2O "
        "as published and with D2O's split and sinks, and than itself without merging: for text that continues the prompt, and "
        "for text that is recalled from it, whether the prompt asks for it or not."
    )
    metric = "mean log-likelihood per token (nats; higher is better) after a compressed prompt"
    contrasts = tuple(
        Contrast(f"{task}: D2O over {name}", f"{task}/d2o@0.2", f"{task}/{arm}")
        for task in _TASKS
        for name, arm in _WORSE.items()
    )
    competence = Competence("recall/full", -1.0)  # with the whole cache the host must be able to recall at all
    assets = ("smollm2", "shakespeare")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """Host, prompt and item counts of a scale."""
        sizes = {
            "smoke": {"host": "bytes", "prompt": 128, "follow": 24, "cue": 8, "answer": 12, "items": 3},
            "small": {"host": "smollm2", "prompt": 1536, "follow": 32, "cue": 8, "answer": 16, "items": 24},
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
        return {**sizes[scale], "budgets": [0.2, 0.5], "split": "3:1"}

    def measure(self, scale: Scale, seed: int, device: str, progress: Progress) -> Measurement:
        """Score all arms on fresh items of all tasks; one prompt serves them all."""
        sizes = self.settings(scale)
        progress("loading the host", 0.0)
        host, text = _host(sizes, seed, device)
        counts = {name: sizes[name] for name in ("prompt", "follow", "cue", "answer")}
        groups = shared_items(host, text, count=sizes["items"], seed=seed, **counts)
        arms = methods(host, max(len(item.prompt) for item in groups[0]))
        rows: list[list[list[Outcome]]] = []  # [item][task][arm]
        for group in groups:
            rows.append(score_items(host, group, list(arms.values())))
            progress(f"prompt {len(rows)}/{len(groups)}", len(rows) / len(groups))
        values: dict[str, list[float]] = {}
        facts: dict[str, float | str] = {}
        for t, task in enumerate(_TASKS):
            for place, name in enumerate(arms):
                column = [row[t][place] for row in rows]
                values[f"{task}/{name}"] = [outcome.log_likelihood for outcome in column]
                facts[f"{task}/{name} tokens guessed"] = sum(o.accuracy for o in column) / len(column)
                facts[f"{task}/{name} cache"] = sum(o.cache_bytes / o.cache_bytes_full for o in column) / len(column)
        return Measurement(values, facts)


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
