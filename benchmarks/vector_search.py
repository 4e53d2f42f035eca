"""Search among coded vectors: recall, training, encoding and search times of our quantizers and FAISS at equal bytes.

Queries stay exact, the base is coded (asymmetric distances). Recall@R is the share of queries whose true nearest neighbour is
among the first R answers. Training vectors, base and queries do not overlap: a book that has seen part of the base codes that
part better than the rest, which spoils the order of distances. FAISS runs its exhaustive indexes (IndexPQ, OPQ before it,
ResidualQuantizer, LocalSearchQuantizer). Search times are the least of three runs.

    python benchmarks/vector_search.py [--quick] [--threads 1]
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from results_file import environment, write
from tokenry.codecs import AdditiveVQ, ProductVQ, QINCo, ResidualVQ
from tokenry.lab.beds.signals.feature_banks import feature_bank


def least(call: Callable[[], Any], runs: int = 3) -> tuple[float, Any]:
    results = [timed(call) for _ in range(runs)]
    return min(seconds for seconds, _ in results), results[-1][1]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def nearest(queries: Tensor, base: Tensor) -> Tensor:
    """Position of the true nearest neighbour of each query."""
    return torch.cat([torch.cdist(part.double(), base.double()).argmin(dim=1) for part in queries.split(256)])


def ours(make: Callable[[], Any], train: Tensor, base: Tensor, queries: Tensor) -> dict[str, Any]:
    quantizer = make()
    fit, _ = timed(lambda: quantizer.fit(train))
    quantizer.eval()
    encode, codes = timed(lambda: quantizer.encode(base))
    search, (_, found) = least(lambda: quantizer.search(queries, codes, 100))
    with torch.no_grad():
        decoded = quantizer.decode(codes)
    return {"fit": fit, "encode": encode, "search": search, "found": found, "decoded": decoded}


def theirs(make: Callable[[], Any], train: Tensor, base: Tensor, queries: Tensor) -> dict[str, Any]:
    index = make()
    fit, _ = timed(lambda: index.train(train.numpy()))
    encode, _ = timed(lambda: index.add(base.numpy()))
    search, (_, found) = least(lambda: index.search(queries.numpy(), 100))
    decoded = torch.from_numpy(index.reconstruct_n(0, len(base)))
    return {
        "fit": fit,
        "encode": encode,
        "search": search,
        "found": torch.from_numpy(found.astype(np.int64)),
        "decoded": decoded,
    }


def opq(dim: int, books: int, bits: int) -> Any:
    rotation = faiss.OPQMatrix(dim, books)
    return faiss.IndexPreTransform(rotation, faiss.IndexPQ(dim, books, bits))


def methods(dim: int, books: int, bits: int, quick: bool) -> list[tuple[str, str, Callable[..., Any], Callable[[], Any]]]:
    codes = 2**bits
    rounds = [
        ("PQ", "tokenry", ours, lambda: ProductVQ(dim, books, codes)),
        ("PQ", "faiss", theirs, lambda: faiss.IndexPQ(dim, books, bits)),
        ("OPQ", "tokenry", ours, lambda: ProductVQ(dim, books, codes, rotation=True)),
        ("OPQ", "faiss", theirs, lambda: opq(dim, books, bits)),
        ("RVQ", "tokenry", ours, lambda: ResidualVQ(dim, books, codes)),
        ("RVQ, beam 5", "tokenry", ours, lambda: ResidualVQ(dim, books, codes, beam=5)),
        ("RQ, beam 5", "faiss", theirs, lambda: faiss.IndexResidualQuantizer(dim, books, bits)),
        ("AQ, local search", "tokenry", ours, lambda: AdditiveVQ(dim, books, codes, encoder="icm")),
        ("LSQ", "faiss", theirs, lambda: faiss.IndexLocalSearchQuantizer(dim, books, bits)),
    ]
    if dim <= 64:  # maps of wide vectors take hours to train on a CPU
        rounds.append(("QINCo", "tokenry", ours, lambda: QINCo(dim, books, codes, hidden=64)))
    return [m for m in rounds if not quick or m[0] in ("PQ", "OPQ", "RVQ")]


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    plans = [("sentences", 8, 6, 5_000, 5_000, 1_000), ("mixture", 4, 4, 5_000, 5_000, 1_000)]
    for name, books, bits, learn, size, asked in plans:
        if args.quick:
            learn, size, asked = 2_000, 3_000, 200
        bank = feature_bank(name, learn, size + asked, seed=args.seed)
        base, queries = bank.test[:size].contiguous(), bank.test[size:].contiguous()
        truth = nearest(queries, base)
        variance = (base - base.mean(dim=0)).square().sum()
        for method, library, run, make in methods(bank.dim, books, bits, args.quick):
            got = run(make, bank.train, base, queries)
            hits = got["found"] == truth[:, None]
            row: dict[str, Any] = {"data": name, "method": method, "library": library, "bytes": books * bits // 8}
            row |= {f"recall@{r}": float(hits[:, :r].any(dim=1).float().mean()) for r in (1, 10, 100)}
            row["95 % +-"] = 1.96 * math.sqrt(row["recall@10"] * (1 - row["recall@10"]) / asked)
            row["explained"] = 1.0 - float((got["decoded"] - base).square().sum() / variance)
            row |= {"train s": got["fit"], "encode us": 1e6 * got["encode"] / size, "search us": 1e6 * got["search"] / asked}
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few vectors and methods; writes nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    rows = measure(args)
    if args.quick:
        return
    setting = (
        "MiniLM sentence embeddings (D 384, 8 books of 64) and the correlated mixture (D 32, 4 books of 16): 5,000 vectors to "
        f"learn from, 5,000 others in the base, 1,000 queries; {args.threads} thread, load average {load:.1f} before; "
        f"FAISS {faiss.__version__}. '95 % +-' belongs to recall@10; encode is per vector of the base, search per query over "
        "the whole base."
    )
    print(write("vector_search", {"setting": setting, "environment": environment("cpu"), "rows": rows}, "cpu"))


if __name__ == "__main__":
    main()
