"""Cost of pooled words against flat models over characters, bytes, subwords and whole words, on one stretch of real text.

Every arm reads the same words. The language model has one width and depth for all arms; its positions are words times p for
the pooled model and units for the others, so that characters pay for their length. The pooled model has its word encoder and
in-word decoder on top. Measured: one training step on the batch, and one generated word after the window (greedy, with the keys
of the window kept in every arm). Peak memory is what a step allocates on top of the weights.

    python benchmarks/wordpool.py [--quick] [--device cuda] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import nn

from results_file import environment, write
from tokenry.lab.beds.language.next_word import UnitCoder, WordCorpus, unit_coder
from tokenry.lab.evidence.measure import peak_bytes, seconds
from tokenry.text.wordpool import FlatLM, FlatLMConfig, WordPoolConfig, WordPoolForCausalLM
from tokenry.text.wordpool.batch import WordBatch
from tokenry.text.wordpool.blocks import BlockCache
from tokenry.text.wordpool.generation import spell_next

MEAN_UNITS = {"char": 5, "byte": 5, "subword": 1, "word": 1}


def inputs(coder: UnitCoder, corpus: WordCorpus, args: argparse.Namespace) -> torch.Tensor:
    """Ids [B,T], or units [B,T,canvas] for the pooled model, of the same words."""
    windows = [corpus.train[i * args.words : (i + 1) * args.words] for i in range(args.batch)]
    if coder.kind == "pooled":
        units = torch.zeros(args.batch, args.words, corpus.max_word, dtype=torch.long)
        for b, window in enumerate(windows):
            for t, word in enumerate(window):
                units[b, t, : len(word)] = torch.tensor(coder.encode(word))
        return units
    rows = [[unit for word in window for unit in coder.encode(word)] for window in windows]
    shortest = min(len(row) for row in rows)
    return torch.tensor([row[:shortest] for row in rows])


def build(coder: UnitCoder, p: int, length: int, corpus: WordCorpus, args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    if coder.kind == "pooled":
        return WordPoolForCausalLM(
            WordPoolConfig(
                vocab_size=coder.size, num_prefix=p, hidden_size=args.width, num_hidden_layers=args.layers,
                num_attention_heads=8, block_size=args.words + 8, canvas_size=corpus.max_word,
            )
        )  # fmt: skip
    return FlatLM(
        FlatLMConfig(
            vocab_size=coder.size, hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=8,
            block_size=length + 16,
        )
    )  # fmt: skip


def training_step(model: Any, name: str, x: torch.Tensor) -> None:
    model.train()
    model.zero_grad(set_to_none=True)
    model(**{name: x}, labels=x).loss.backward()


class NextWord:
    """Generates one word after a window whose keys are kept; the cache is cut back after every call."""

    def __init__(self, model: Any, x: torch.Tensor, units: int) -> None:
        self.model, self.x, self.units = model.eval(), x, units
        self.pooled = x.dim() == 3
        with torch.inference_mode():
            if self.pooled:
                lengths = (x != 0).sum(-1)
                _, self.cache = model.run_words(model.pool(WordBatch(x[:, :-1], lengths[:, :-1], None)), None, "new")
                self.last = WordBatch(x[:, -1:], lengths[:, -1:], None)
            else:
                self.cache = BlockCache()
                model(x[:, :-1], cache=self.cache)

    @torch.inference_mode()
    def __call__(self) -> None:
        """One word."""
        cache = BlockCache(list(self.cache.keys), list(self.cache.values))
        if self.pooled:
            state = self.model.run_words(self.model.pool(self.last), None, cache)[0][:, -1]
            spell_next(self.model, state, longest=self.units)
            return
        ids = self.x[:, -1:]
        for _ in range(self.units):
            ids = self.model(ids, cache=cache).logits[:, -1:].argmax(-1)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    text = "\n".join(topics[name] for name in sorted(topics))
    corpus = WordCorpus.of(text, characters=len(text))
    arms: dict[str, tuple[Any, str, torch.Tensor, int]] = {}
    for name in ("pooled_p1", "pooled_p4", "char", "byte", "subword", "word"):
        kind, _, p = name.partition("_p")
        coder = unit_coder(kind, corpus, 1500 if kind == "subword" else 3000)
        x = inputs(coder, corpus, args).to(args.device)
        model = build(coder, int(p or 1), x.shape[1], corpus, args).to(args.device)
        # a word of mean length: its characters and its end
        arms[name] = (model, "input_units" if kind == "pooled" else "input_ids", x, MEAN_UNITS.get(kind, 5))
    steps = {n: lambda a=a: training_step(a[0], a[1], a[2]) for n, a in arms.items()}
    rows = _timed("training step", steps, args)
    for model, *_ in arms.values():
        model.zero_grad(set_to_none=True)
    rows += _timed("generated word", {n: NextWord(a[0], a[2], a[3]) for n, a in arms.items()}, args)
    for row in rows:
        model, _, x, _ = arms[row["arm"]]
        row["positions"] = x.shape[1] * (model.config.num_prefix if x.dim() == 3 else 1)
        row["parameters"] = sum(p.numel() for p in model.parameters())
    return rows


def _timed(task: str, calls: dict[str, Callable[[], None]], args: argparse.Namespace) -> list[dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(args.repeats + 1):
        for name, call in calls.items():
            spent = seconds(call, args.device)
            if repeat:
                times[name].append(spent)
    return [
        {
            "task": task,
            "arm": name,
            "ms": round(1e3 * statistics.median(spent), 2),
            "over_char": round(statistics.median(a / b for a, b in zip(spent, times["char"], strict=True)), 3),
            "peak_mb": round(peak_bytes(calls[name], args.device) / 2**20, 1),
        }
        for name, spent in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--words", type=int, default=192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.words, args.width, args.layers, args.repeats = 24, 64, 2, 1
    rows = measure(args)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if not args.quick:
        shapes = {"batch": args.batch, "words": args.words, "width": args.width, "layers": args.layers, "dtype": "float32"}
        setting = (
            f"{args.batch} windows of {args.words} words, width {args.width}, {args.layers} blocks, float32, {args.device}"
        )
        content = {
            "setting": setting,
            "shapes": shapes,
            "repeats": args.repeats,
            "environment": environment(args.device),
            "rows": rows,
        }
        print(f"written: {write('wordpool', content, args.device)}")


if __name__ == "__main__":
    main()
