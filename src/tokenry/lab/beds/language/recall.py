"""Testbed for KV-cache methods: does a language model still continue, and still recall, after its prompt was compressed?

Three tasks from real text, all scored by the log-likelihood of real tokens after a compressed prompt:

- **continuation**: the text that really follows the prompt;
- **recall**: a passage stands somewhere in the prompt; its first words come again after it, and the model has to give the
  rest. The cue is unknown when the prompt is compressed, so nothing can be kept just because a question asks for it;
- **asked**: the same, with the cue at the end of the prompt, as the question stands in a long-context benchmark.

Hosts: SmolLM2-135M (real weights, needs the asset ``smollm2``), or a byte-level Llama trained here in seconds (no download).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checks import check_int
from tokenry.core.descent import Plan, descend
from tokenry.core.seeding import seeded
from tokenry.hosts.cache import Observe, compress_cache, fork_cache
from tokenry.hosts.release import as_argument, cache_of
from tokenry.pruning.kv_method import CacheMethod

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Host:
    """A causal language model with its text encoder and the first token its prompts need, if any."""

    model: nn.Module
    encode: Encode
    start: tuple[int, ...] = ()


@dataclass(frozen=True)
class Item:
    """One test item: token ids of the prompt [P], of what follows it [C], and the first position of it that is scored."""

    prompt: Tensor
    follow: Tensor
    scored_from: int = 0


@dataclass(frozen=True)
class Outcome:
    """Result of one method on one item: mean log-likelihood (nats per token), share of tokens guessed, bytes of the cache."""

    log_likelihood: float
    accuracy: float
    cache_bytes: int
    cache_bytes_full: int


def smollm2_host(device: str = "cpu") -> Host:
    """SmolLM2-135M-Instruct with real weights (asset ``smollm2``)."""
    from tokenry.lab.sources.models import smollm2

    model, tokenizer = smollm2(device)
    tokens: Any = tokenizer

    def encode(text: str) -> list[int]:
        return tokens(text, add_special_tokens=False)["input_ids"]

    return Host(model, encode, (tokens.bos_token_id,))


def byte_host(text: str, *, seed: int = 0, steps: int = 60, width: int = 64, layers: int = 4, device: str = "cpu") -> Host:
    """A byte-level Llama trained on `text` for `steps` steps: seconds on a CPU, no download; good for smoke tests only."""
    from transformers import LlamaConfig, LlamaForCausalLM

    check_int("steps", steps, 0)
    data = torch.tensor(list(text.encode("utf-8")), device=device)
    if len(data) < 130:
        raise ValueError(f"text must hold at least 130 bytes, got {len(data)}")
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with seeded(seed):
        model = LlamaForCausalLM(config)
    model.to(device)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(seed)

    def loss_of(step: int) -> torch.Tensor:
        starts = torch.randint(len(data) - 129, (16,), generator=generator)
        batch = torch.stack([data[s : s + 129] for s in starts.tolist()])
        return F.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())

    descend(model, loss_of, Plan(steps=steps, learning_rate=3e-3, clip=None, warmup=0.0, decay="none"))
    return Host(model.eval(), lambda text: list(text.encode("utf-8")))


def continuation_items(host: Host, text: str, *, prompt: int, follow: int, count: int, seed: int) -> list[Item]:
    """`count` windows of real text from random places: a prompt of `prompt` tokens, and the `follow` tokens that come next."""
    items = []
    for ids in _windows(host, text, prompt - len(host.start) + follow, count, seed):
        whole = torch.tensor([*host.start, *ids])
        items.append(Item(whole[:prompt], whole[prompt:]))
    return items


def shared_items(
    host: Host,
    text: str,
    *,
    prompt: int,
    follow: int,
    cue: int,
    answer: int,
    count: int,
    seed: int,
    margin: float = 0.1,
) -> list[tuple[Item, Item, Item]]:
    """(continuation, recall, asked) over one prompt: real text with a foreign passage of ``cue + answer`` tokens in it.

    The continuation is the `follow` tokens that come next in the text; the recall is the passage again, its answer scored;
    asked is the same with the cue at the end of the prompt, so that a method may keep what the cue looks at.

    The passage is taken from another place of `text` and set off by blank lines. The depths are spread evenly: one item in each
    of `count` equal parts of the prompt, in order, at a random place of its part, so that chance favours neither a window nor
    the early slots. `margin` keeps the passage away from both ends of the prompt (a share of it).
    """
    generator = torch.Generator().manual_seed(seed + 1)
    breaks = host.encode("\n\n")
    body = prompt - len(host.start) - cue - answer - 2 * len(breaks)
    if body < 8:
        raise ValueError(f"prompt must leave room for text around the passage, got {prompt} for {cue + answer} tokens of it")
    fillers = _windows(host, text, body + follow, count, seed)
    passages = _windows(host, text, cue + answer, count, seed + 1000)
    items = []
    for place, (filler, passage) in enumerate(zip(fillers, passages, strict=True)):
        depth = margin + (1 - 2 * margin) * (place + float(torch.rand((), generator=generator))) / count
        at = int(depth * body)
        ids = torch.tensor([*host.start, *filler[:at], *breaks, *passage, *breaks, *filler[at:body]])
        recall = Item(ids, torch.tensor([*breaks, *passage]), scored_from=len(breaks) + cue)
        asked = Item(torch.cat((ids, recall.follow[: recall.scored_from])), recall.follow[recall.scored_from :])
        items.append((Item(ids, torch.tensor(filler[body:])), recall, asked))
    return items


def _windows(host: Host, text: str, tokens: int, count: int, seed: int) -> list[list[int]]:
    """Token windows of exactly `tokens`, from random line starts of `text`."""
    check_int("tokens", tokens, 1)
    generator = torch.Generator().manual_seed(seed)
    out: list[list[int]] = []
    for _ in range(100 * count):
        start = int(torch.randint(max(len(text) - 8 * tokens, 1), (), generator=generator))
        begin = text.find("\n", start) + 1
        ids = host.encode(text[begin : begin + 8 * tokens])
        if len(ids) >= tokens:
            out.append(ids[:tokens])
        if len(out) == count:
            return out
    raise ValueError(f"text must hold {count} windows of {tokens} tokens, got one of {len(text)} characters")


@torch.no_grad()
def score_items(host: Host, items: Sequence[Item], methods: Sequence[CacheMethod]) -> list[list[Outcome]]:
    """Outcomes [item][method]; every prompt is the one before it, or goes on from it, and is run once for all methods."""
    model, device, watch = host.model, next(host.model.parameters()).device, Observe()
    read, cache, first, outcomes = items[0].prompt[:0], None, torch.empty(0), []
    for item in items:
        if not torch.equal(item.prompt[: len(read)], read):
            raise ValueError("items must share one prompt, or go on from it, got several")
        if len(fresh := item.prompt[len(read) :]):
            with compress_cache(model, watch) as session, session.hold():
                earlier = {} if cache is None else as_argument(cache)
                out = model(fresh[None].to(device), use_cache=True, logits_to_keep=1, **earlier)
            read, cache, first = item.prompt, cache_of(out), out.logits[:, -1:]
        outcomes.append([_outcome(model, item, method, cache, first) for method in methods])
    return outcomes


def score_item(host: Host, item: Item, methods: Sequence[CacheMethod]) -> list[Outcome]:
    """Outcome of every method on one item."""
    return score_items(host, [item], methods)[0]


def _outcome(model: nn.Module, item: Item, method: CacheMethod, observed: Any, first: Tensor) -> Outcome:
    follow = item.follow[None].to(first.device)
    cache, done = fork_cache(model, observed, method)
    with compress_cache(model, method):
        rest = model(follow[:, :-1], **as_argument(cache)).logits if follow.shape[1] > 1 else first[:, :0]
    logits = torch.cat((first, rest), dim=1)[0, item.scored_from :].float()
    target = follow[0, item.scored_from :]
    likelihood = -F.cross_entropy(logits, target).item()
    accuracy = (logits.argmax(-1) == target).float().mean().item()
    return Outcome(likelihood, accuracy, done.facts["cache_bytes"], done.facts["cache_bytes_full"])
