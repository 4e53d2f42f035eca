"""Byte decoding against token decoding with the same model: bytes per second, share of time outside the model, model runs.

Also what is built once per tokenizer (byte map, trie, merge table) and how far the fast mode is off.

    python benchmarks/byte_lm.py [--prompt 1024] [--bytes 256] [--threads 2] [--device cuda] [--random]

`--random` takes random weights of the same shape instead of SmolLM2-135M (a GPU machine without the asset). The peer
(genlm-bytes) runs in its own environment: benchmarks/peers/genlm_bytes.py.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from results_file import environment, write
from tokenry.hosts.path_runs import drive
from tokenry.hosts.text import ByteTrie, ByteVocabulary
from tokenry.lab.sources.models import smollm2
from tokenry.lab.sources.tokenizers import load_real_tokenizer, real_tokenizers
from tokenry.text import ByteLM


def prompt_of(size: int) -> bytes:
    """English prose of the standard library's help topics, ending inside a word."""
    import pydoc_data.topics

    text = pydoc_data.topics.topics["bltin-type-objects"] + pydoc_data.topics.topics["types"]
    data = text.encode()[: size + 16]
    while not (data[size - 1 : size].isalpha() and data[size : size + 1].isalpha()):
        size -= 1
    return data[:size]


class Stopwatch:
    """Seconds spent inside the model's forward."""

    def __init__(self, model: Any, device: str) -> None:
        self.total, self.calls = 0.0, 0
        forward = model.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            output = forward(*args, **kwargs)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            self.total += time.perf_counter() - start
            self.calls += 1
            return output

        # The scorer reads the signature of `forward`, so the wrapper must show the same one.
        timed.__wrapped__ = forward
        model.forward = timed


def decode_bytes(lm: ByteLM, prompt: bytes, size: int, watch: Stopwatch, temperature: float) -> dict[str, float]:
    state, generator = lm.start(prompt), torch.Generator().manual_seed(0)
    state.next_probs()
    before, runs, start, work = watch.total, watch.calls, time.perf_counter(), time.process_time()
    made = 0
    while made < size:
        (symbol,) = drive([state.choose(temperature=temperature, generator=generator)])
        if symbol >= 256:
            break
        state.advance(symbol)
        made += 1
    spent, work = time.perf_counter() - start, time.process_time() - work
    tokens = len(lm.vocabulary.encode(state.text)) - len(lm.vocabulary.encode(prompt))
    return {
        "bytes_per_s": made / spent,
        "bytes_per_cpu_s": made / work,
        "outside_model": 1 - (watch.total - before) / spent,
        "runs_per_token": (watch.calls - runs) / tokens,
    }


def decode_tokens(model: Any, lm: ByteLM, prompt: bytes, size: int) -> dict[str, float]:
    ids = torch.tensor([[lm.begin_id, *lm.vocabulary.encode(prompt)]], device=model.device)
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    mask = torch.ones_like(ids)
    start, work = time.perf_counter(), time.process_time()
    model.generate(ids, attention_mask=mask, max_new_tokens=1, min_new_tokens=1, **options)
    first, first_work = time.perf_counter() - start, time.process_time() - work
    count = size // 4
    start, work = time.perf_counter(), time.process_time()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count + 1, min_new_tokens=count + 1, **options)
    spent, work = time.perf_counter() - start - first, time.process_time() - work - first_work
    made = sum(lm.vocabulary.lengths[token] for token in out[0, ids.shape[1] + 1 :].tolist())
    return {"bytes_per_s": made / spent, "bytes_per_cpu_s": made / work, "prefill_seconds": first}


def score_bytes(lm: ByteLM, text: bytes) -> dict[str, float]:
    """Log-probability of every byte of a text, in batched runs and a byte at a time (a third of it)."""
    start = time.perf_counter()
    found = lm.byte_log_probs(text)
    together = len(text) / (time.perf_counter() - start)
    state, start, gap = lm.start(), time.perf_counter(), 0.0
    part = text[: len(text) // 3]
    for place, byte in enumerate(part):
        gap = max(gap, abs(float(state.next_probs()[byte].log() - found[place])))
        state.advance(byte)
    return {"together": together, "ratio": together * (time.perf_counter() - start) / len(part), "gap": gap}


def rounds(
    model: Any, exact: ByteLM, fast: ByteLM, prompt: bytes, args: argparse.Namespace, watch: Stopwatch
) -> dict[str, Any]:
    """Every way in turn, several times; a ratio is taken inside a round, so that what else the machine does touches both."""
    ways = {"greedy": (exact, 0.0), "temperature 1": (exact, 1.0), "fast mode, greedy": (fast, 0.0)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (*ways, "tokens", "scoring")}
    for _ in range(args.rounds):
        found["tokens"].append(decode_tokens(model, exact, prompt, args.bytes))
        for name, (lm, temperature) in ways.items():
            found[name].append(decode_bytes(lm, prompt, args.bytes, watch, temperature))
            for clock, ratio in (("bytes_per_s", "ratio"), ("bytes_per_cpu_s", "cpu_ratio")):
                found[name][-1][ratio] = found[name][-1][clock] / found["tokens"][-1][clock]
        found["scoring"].append(score_bytes(exact, prompt[: args.bytes]))
        print({name: rows[-1] for name, rows in found.items()}, flush=True)
    return {name: {key: median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def fast_mode(model: Any, tokenizer: Any, prompt: bytes, cuts: int) -> dict[str, float]:
    exact, fast = ByteLM(model, tokenizer), ByteLM(model, tokenizer, valid_only=False)
    draw = np.random.default_rng(0)
    gaps, change = [], 0
    for cut in sorted(draw.integers(40, len(prompt), cuts).tolist()):
        p, q = exact.next_byte(prompt[:cut]), fast.next_byte(prompt[:cut])
        gaps.append(float((p - q).abs().max()))
        change += int(p.argmax() != q.argmax())
    return {"cuts": cuts, "largest_gap": max(gaps), "mean_gap": float(np.mean(gaps)), "other_top_1": change / cuts}


def built_once() -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = []
    for name in real_tokenizers(here=True):
        tokenizer = load_real_tokenizer(name)
        try:
            start = time.perf_counter()
            vocabulary = ByteVocabulary.of(tokenizer)
        except TypeError:
            continue  # its tokens do not hold the text
        read = time.perf_counter() - start
        start = time.perf_counter()
        ByteTrie.build(vocabulary.pieces)
        trie = time.perf_counter() - start
        start = time.perf_counter()
        _ = vocabulary.canonical
        rows.append(
            {"tokenizer": name, "ids": vocabulary.size, "read_s": read, "trie_s": trie, "tables_s": time.perf_counter() - start}
        )
        print(rows[-1], flush=True)
    return rows


def export(lm: ByteLM, tokenizer: Any, prompt: bytes, size: int, folder: Path) -> None:
    """What the peer needs to run on the same model and to be compared with: our distributions [size,256] and speed."""
    lm.model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    start = time.perf_counter()
    made = lm.generate(prompt, size, temperature=0)
    spent = time.perf_counter() - start
    state, rows = lm.start(prompt), []
    for byte in made:
        rows.append(state.next_probs()[:256].numpy())
        state.advance(byte)
    np.savez(
        folder / "exact.npz",
        prompt=np.frombuffer(prompt, np.uint8),
        made=np.frombuffer(made, np.uint8),
        rows=rows,
        bytes_per_s=size / spent,
    )
    print(folder / "exact.npz", f"{size / spent:.2f} bytes per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=1024)
    parser.add_argument("--bytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--export", help="write model, prompt, bytes and exact distributions for the peer, and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = smollm2(device=args.device)
    if args.random:
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02)
    model.eval()
    prompt = prompt_of(args.prompt)
    if args.export:
        export(ByteLM(model, tokenizer), tokenizer, prompt, args.bytes, Path(args.export))
        return
    start = time.perf_counter()
    lm = ByteLM(model, tokenizer)
    once = time.perf_counter() - start
    watch = Stopwatch(model, args.device)
    lm.scorer.__init__(model, lm.vocabulary.size)
    start = time.perf_counter()
    lm.start(prompt).next_probs()
    first = time.perf_counter() - start
    fast = ByteLM(model, tokenizer, valid_only=False)
    for warm in (lm, fast):
        decode_bytes(warm, prompt, 16, watch, 0.0)
    load = os.getloadavg()[0]
    found = rounds(model, lm, fast, prompt, args, watch)
    off = fast_mode(model, tokenizer, prompt, 40)
    figures = [("bytes per second, token decoding", found["tokens"]["bytes_per_s"])]
    for name in ("greedy", "temperature 1", "fast mode, greedy"):
        figures += [
            (f"bytes per second, byte decoding, {name}", found[name]["bytes_per_s"]),
            (f"ratio to token decoding, {name}", found[name]["ratio"]),
            (f"ratio to token decoding in processor time, {name}", found[name]["cpu_ratio"]),
            (f"model runs per token, {name}", found[name]["runs_per_token"]),
            (f"share of time outside the model, {name}", found[name]["outside_model"]),
        ]
    figures += [
        ("bytes per second, log-probability of every byte of a text", found["scoring"]["together"]),
        ("the same against a byte at a time, ratio", found["scoring"]["ratio"]),
        ("the same, largest difference of a log-probability", found["scoring"]["gap"]),
        ("seconds until the first byte is known", first),
        ("seconds until the first token is known", found["tokens"]["prefill_seconds"]),
        ("seconds to build the byte model, once", once),
        (f"fast mode, largest error of a probability ({off['cuts']} cuts)", off["largest_gap"]),
        ("fast mode, mean of the largest errors", off["mean_gap"]),
        ("fast mode, share of cuts with another most probable byte", off["other_top_1"]),
    ]
    name = "SmolLM2-135M" + (" (random weights)" if args.random else "")
    content = {
        "setting": f"{name}, prompt of {len(prompt)} bytes, {args.bytes} bytes generated, batch 1, {args.threads} threads, "
        f"median of {args.rounds} rounds; load average at the start {load:.1f}, at the end {os.getloadavg()[0]:.1f}.",
        "environment": environment(args.device),
        "rows": [{"what": what, "value": value} for what, value in figures],
        "once_per_tokenizer": built_once(),
    }
    for name, value in content.items():
        print(name, value)
    print(write("byte_lm", content, args.device))


if __name__ == "__main__":
    main()
