"""The audio metrics against mir_eval, fast-bss-eval, ci-sdr, pystoi, torchmetrics and pesq: largest difference, and time.

    python benchmarks/peers/audio_metrics.py [--clips 24]

Real speech (English telephone prompts of at least two seconds, 8 kHz) under weak noise, strong noise, and a random filter
with noise. The peers live beside Tokenry in one environment; a peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from results_file import environment, write
from tokenry.codecs.audio import metrics
from tokenry.lab.sources.audio.recordings import speech_corpus

Pair = Callable[[Tensor, Tensor, int], float]


def peers() -> dict[str, tuple[str, Callable[[], Pair], Callable[[Tensor, Tensor, int], Tensor]]]:
    """Metric, (package, its call, ours)."""

    def mir_eval() -> Pair:
        from mir_eval.separation import bss_eval_sources

        return lambda s, e, rate: bss_eval_sources(s[None].numpy(), e[None].numpy(), compute_permutation=False)[0][0]

    def fast_bss_eval() -> Pair:
        import fast_bss_eval

        return lambda s, e, rate: fast_bss_eval.sdr(s[None].numpy(), e[None].numpy())[0]

    def ci_sdr() -> Pair:
        import ci_sdr

        return lambda s, e, rate: -ci_sdr.pt.ci_sdr_loss(e[None], s[None], compute_permutation=False)[0]

    def pystoi() -> Pair:
        from pystoi import stoi

        return lambda s, e, rate: stoi(s.numpy(), e.numpy(), rate)

    def torchmetrics(name: str) -> Callable[[], Pair]:
        def load() -> Pair:
            import torchmetrics.functional.audio as audio

            return lambda s, e, rate: getattr(audio, name)(e, s)

        return load

    def pesq() -> Pair:
        import pesq

        return lambda s, e, rate: pesq.pesq(rate, s.numpy(), e.numpy(), "nb")

    def plain(name: str) -> Callable[[Tensor, Tensor, int], Tensor]:
        return lambda s, e, rate: getattr(metrics, name)(s, e)

    return {
        "snr": ("torchmetrics", torchmetrics("signal_noise_ratio"), plain("snr")),
        "si_sdr": ("torchmetrics", torchmetrics("scale_invariant_signal_distortion_ratio"), plain("si_sdr")),
        "si_snr": ("torchmetrics", torchmetrics("scale_invariant_signal_noise_ratio"), plain("si_snr")),
        "sdr (mir_eval)": ("mir_eval", mir_eval, plain("sdr")),
        "sdr (fast-bss-eval)": ("fast-bss-eval", fast_bss_eval, plain("sdr")),
        "ci_sdr": ("ci-sdr", ci_sdr, plain("ci_sdr")),
        "stoi": ("pystoi", pystoi, metrics.stoi),
        "pesq": ("pesq", pesq, metrics.pesq),
    }


def pairs(clips: int) -> list[tuple[Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number, clip in enumerate(speech_corpus("all", sources=["prompts-en"], seconds=(2.0, 6.0), limit=clips)):
        s = clip.wave.double()
        noise = torch.randn(len(s), generator=generator, dtype=torch.float64)
        taps = torch.randn(20, generator=generator, dtype=torch.float64) * torch.exp(-torch.arange(20) / 4)
        filtered = torch.nn.functional.conv1d(s[None, None], taps.flip(0)[None, None], padding=19)[0, 0, : len(s)]
        e = (s + 0.01 * noise, s + 0.05 * noise, filtered + 0.003 * noise)[number % 3]
        made.append((s, e, clip.sample_rate))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    data, rows = pairs(args.clips), []
    for name, (package, load, ours) in peers().items():
        try:
            theirs = load()
        except ImportError:
            print(f"{package} is not installed")
            continue
        spent, found = [], []
        for call in (ours, theirs):
            call(*data[0])
            began = time.perf_counter()
            found.append([float(call(*pair)) for pair in data])
            spent.append((time.perf_counter() - began) / len(data))
        gap = max(abs(a - b) for a, b in zip(*found, strict=True))
        row = {
            "metric": name, "peer": f"{package} {version(package)}", "largest_difference": float(f"{gap:.2g}"),
            "ms": round(1e3 * spent[0], 2), "peer_ms": round(1e3 * spent[1], 2),
        }  # fmt: skip
        rows.append(row)
        print(json.dumps(row))
    content = {"environment": environment("cpu"), "setting": {"clips": args.clips, "dtype": "float64"}, "rows": rows}
    print(write("audio_metrics_peers", content, "cpu"))


if __name__ == "__main__":
    main()
