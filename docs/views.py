"""What the Performance page shows of each benchmark: a small table of ratios, and a chart where a curve says more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Rows = list[Row]


@dataclass(frozen=True)
class View:
    """What is shown of a benchmark: a small table (at most six columns) of its rows, and perhaps a chart."""

    says: str
    table: Callable[[Rows], Rows]
    chart: Callable[[Any, Rows], None] | None = None


def columns(
    wanted: Callable[[Row], bool] = lambda row: True, /, **values: Callable[[Row], Any] | str
) -> Callable[[Rows], Rows]:
    """Heading -> a key of a row, or what is made of one; ``_`` in a heading is a space."""

    def table(rows: Rows) -> Rows:
        named = {head.replace("_", " "): value for head, value in values.items()}
        return [
            {head: row[value] if isinstance(value, str) else value(row) for head, value in named.items()}
            for row in rows
            if wanted(row)
        ]

    return table


def ratio(key: str, over: str = "", offset: float = 0.0) -> Callable[[Row], str]:
    """``1.23x``: a ratio of a row, or one key over another; empty where it was not measured."""

    def cell(row: Row) -> str:
        given = [row[name] for name in (key, over) if name]
        if any(isinstance(value, str) or value is None for value in given):
            return ""
        return f"{given[0] / (given[1] if over else 1.0) + offset:.2f}x"

    return cell


def pivot(
    rows: Rows, index: str, across: Callable[[Row], str], cell: Callable[[Row], str], **first: Callable[[Row], str]
) -> Rows:
    """One line per value of `index`, a column per value of `across`."""
    lines: dict[str, Row] = {}
    for row in rows:
        line = lines.setdefault(row[index], {index: row[index], **{head: value(row) for head, value in first.items()}})
        line[across(row)] = cell(row)
    return list(lines.values())


def kv_cache(rows: Rows) -> Rows:
    """Prefill time and decoding speed per model, over the plain model."""
    shown = [row for row in rows if row["method"] not in ("plain model", "FullCache")]
    return pivot(
        shown,
        "method",
        _model,
        lambda r: f"{1 + r['prefill_overhead']:.2f}x, {r['decode_ratio']:.2f}x",
        cache=ratio("cache_ratio"),
    )


def _model(row: Row) -> str:
    return f"{row['shape']}, {row['context'] // 1024}k tokens"


def kv_chart(axes: Any, rows: Rows) -> None:
    """Bars of prefill time by method, a colour per model."""
    shown = [row for row in rows if row["method"] not in ("plain model", "FullCache")]
    methods, models = (list(dict.fromkeys(f(r) for r in shown)) for f in (lambda r: r["method"], _model))
    for number, model in enumerate(models):
        values = [1 + r["prefill_overhead"] for r in shown if _model(r) == model]
        axes.barh([place + 0.27 * (1 - number) for place in range(len(methods))], values, height=0.25, label=model)
    axes.set_yticks(range(len(methods)), methods)
    axes.invert_yaxis()
    axes.axvline(1.0, color="0.4", linewidth=0.8)
    axes.set_xlabel("prefill time over the plain model")
    axes.legend(frameon=False)


def search(rows: Rows) -> Rows:
    """Ours beside FAISS: the same kind of code, found items and time."""
    pairs = {"PQ": "PQ", "OPQ": "OPQ", "RVQ, beam 5": "RQ, beam 5", "AQ, local search": "LSQ"}
    by = {(r["data"], r["library"], r["method"]): r for r in rows}
    lines = []
    for (data, library, method), ours in by.items():
        if library != "faiss" and method in pairs:
            peer = by[data, "faiss", pairs[method]]
            found = {"recall@10": f"{ours['recall@10']:.2f} ({peer['recall@10']:.2f})"}
            times = ", ".join(f"{ours[key] / peer[key]:.2f}x" for key in ("train s", "encode us", "search us"))
            lines.append({"data": data, "method": f"{method} ({pairs[method]})", **found, "train, encode, search": times})
    return lines


def search_chart(axes: Any, rows: Rows) -> None:
    """Recall over the time of one query, sentence embeddings."""
    for number, row in enumerate(r for r in rows if r["data"] == "sentences"):
        ours, at = row["library"] == "tokenry", (row["search us"], row["recall@10"])
        mark, colour = ("o", "C0") if ours else ("s", "C1")
        axes.plot(*at, mark, color=colour, label=None if number > 1 else row["library"])
        axes.annotate(row["method"], at, xytext=(6, 3 if ours else -9), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(60, 20_000)
    axes.set_xlabel("microseconds per query (the whole base)")
    axes.set_ylabel("recall@10")
    axes.legend(frameon=False, loc="lower right")


def wordpool(rows: Rows) -> Rows:
    """A line per arm, time and memory of both tasks over the model of characters."""
    memory = {r["task"]: r["peak_mb"] for r in rows if r["arm"] == "char"}
    return pivot(rows, "arm", lambda r: r["task"], lambda r: f"{r['over_char']:.2f}x, {r['peak_mb'] / memory[r['task']]:.2f}x")


def lexinvariant(rows: Rows) -> Rows:
    """Time and memory of drawn embeddings over learnt ones."""
    arms = {"drawn per sequence": "per_sequence", "shared pool": "pool"}
    return [
        {
            "task": row["task"],
            "vocabulary": row["vocabulary"],
            **{
                head: f"{row[f'{arm}_over_learnt']:.2f}x, {row[f'{arm}_peak_mb'] / row['learnt_peak_mb']:.2f}x"
                for head, arm in arms.items()
            },
        }
        for row in rows
    ]


def quantizers(rows: Rows) -> Rows:
    """A line per quantizer: training and inference; those of the nearest code alone have no training."""
    lines: dict[str, Row] = {}
    for row in rows:
        what, _, mode = (
            row["what"].rpartition(", ") if row["what"].endswith((", train", ", infer")) else (row["what"], "", "infer")
        )
        line = lines.setdefault(what, {"what": what, "train": "", "infer": "", "less memory": ""})
        if row["faster"]:
            line[mode] = f"{row['faster']:.2f}x"
        if row["ours_mb"]:
            line["less memory"] = f"{row['peer_mb'] / row['ours_mb']:.0f}x"
    return list(lines.values())


def hashes(rows: Rows) -> Rows:
    """Parameters over a vector per node, and mean reciprocal rank."""
    whole = next(r["parameters"] for r in rows if r["node vectors"] == "vector per node")
    return [
        {"node vectors": r["node vectors"], "parameters": f"{r['parameters'] / whole:.2f}x",
         "MRR": f"{r['MRR']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"}
        for r in rows
    ]  # fmt: skip


VIEWS = {
    "selection": View(
        "Over an implementation with the whole N x N matrix.",
        columns(
            case="case",
            times_faster=ratio("times faster"),
            times_less_memory=ratio("times less memory"),
            same_selection="same selection",
        ),
    ),
    "sensitivity": View(
        "The closed form over the two-sided difference, and their largest relative difference.",
        columns(
            tokens="tokens",
            directions="directions",
            projector="projector",
            times_faster=ratio("times faster"),
            difference="largest relative difference",
        ),
    ),
    "attention_columns": View(
        "Column sums without the map, over a pass that holds the map and over fused attention.",
        columns(
            context="context",
            time_over_the_plain_pass=ratio("ratio_to_plain_pass"),
            time_over_fused=ratio("ratio_to_fused_causal"),
            memory_over_the_map=ratio("largest_tensor_bytes", "full_map_bytes"),
        ),
    ),
    "kv_cache": View(
        "Cells: prefill time, decoding speed over the plain model; a fifth of the cache is kept.", kv_cache, kv_chart
    ),
    "eet_latency": View(
        "Time over the unpruned model.",
        columns(
            model=lambda row: row.get("model", "ViT-S"),
            batch="batch",
            EET=ratio("eet_ratio"),
            CLS_row=ratio("cls_row_ratio"),
            ToMe=ratio("tome_ratio"),
            random=ratio("random_ratio"),
        ),
    ),
    "full_size": View(
        "Prefill over the unpruned model, random weights. Cells: time, peak memory; batch in brackets.",
        lambda rows: pivot(
            [row for row in rows if row["keep"] == 0.25],
            "method",
            lambda r: f"{r['model']} ({r['batch']})",
            lambda r: f"{r['time']:.2f}x, {r['peak_memory']:.2f}x",
        ),
    ),
    "gls_selection": View(
        "Time of scoring the patches, over global-local similarity.",
        columns(patches="patches", CLS_row=ratio("cls_row_over_gls"), attention_rollout=ratio("rollout_over_gls")),
    ),
    "byte_lm": View(
        "",
        columns(
            lambda row: not row["what"].startswith(("bytes per", "seconds")),
            what="what",
            value=lambda row: f"{row['value']:.3g}",
        ),
    ),
    "byte_lm_peers": View(
        "Beside genlm-bytes.",
        columns(
            beam="beam",
            our_speed_over_theirs=ratio("ours_bytes_per_s", "bytes_per_s"),
            mean_total_variation="mean_total_variation",
            largest_gap="largest_gap",
        ),
    ),
    "audit": View(
        "",
        columns(
            setting="setting",
            MB_per_second="mb_per_s",
            MB_per_CPU_second="mb_per_cpu_s",
            share_inside_the_tokenizer="share_inside_tokenizer",
            share_while_streaming="share_while_streaming",
        ),
    ),
    "audit_peers": View(
        "Other tools on half of that text.",
        columns(tool=lambda row: f"{row['peer']} {row['version']}", MB_per_second="mb_per_s", MB_per_CPU_second="mb_per_cpu_s"),
    ),
    "tokenizer_training": View(
        "Time over the stock trainer.",
        columns(lambda row: "overhead" in row, stage="stage", vocabulary="vocab", time=ratio("overhead", offset=1.0)),
    ),
    "quantizers": View(
        "Times faster than the peer (vector-quantize-pytorch, or one product and argmin), and times less memory.", quantizers
    ),
    "audio_codecs": View(
        "Time over the bare model, and of streaming over one pass.",
        columns(
            codec="codec",
            encode=ratio("encode_over_bare"),
            decode=ratio("decode_over_bare"),
            stream=ratio("stream_over_one_pass"),
            same_codes_when_streaming=lambda row: f"{row['stream_codes_equal']:.0%}",
        ),
    ),
    "audio_metrics_peers": View(
        "Beside other libraries: largest difference, and time over theirs.",
        columns(metric="metric", peer="peer", largest_difference="largest_difference", time=ratio("ms", "peer_ms")),
    ),
    "vector_search": View(
        "Ours, FAISS in brackets; times of training, encoding and search over those of FAISS.", search, search_chart
    ),
    "node_hashes": View("Parameters over those of a vector per node; 95 % intervals.", hashes),
    "wordpool": View("Cells: time, memory over the model of characters.", wordpool),
    "lexinvariant": View("Cells: time, memory over learnt embeddings.", lexinvariant),
    "import_time": View("", columns(seconds="import (s)", Python_alone="python alone (s)", loads_torch="loads torch")),
}
