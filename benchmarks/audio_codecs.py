"""Cost of the audio codec protocol: adapter over the bare transformers model, streaming over one pass, real-time factors.

Published sizes with random weights (speed does not depend on them), and the library's small codec. Ratios are medians over
interleaved pairs in one process. "stream" feeds pieces of 80 ms (DAC, which looks ahead, included) and returns the same codes.

    python benchmarks/audio_codecs.py [--quick] [--device cuda] [--threads 1] [--seconds 2]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

from results_file import environment, write
from tokenry.codecs import ResidualVQ
from tokenry.codecs.audio import AudioCodec, ConvCodec, ConvCodecConfig, encode_in_chunks, load_audio_codec
from tokenry.lab.evidence.measure import seconds, time_ratio


def bare_calls(model: Any, wave: torch.Tensor, books: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Encode and decode as a user of the bare model writes them."""
    if isinstance(model, tf.EncodecModel):
        made = model.encode(wave, bandwidth=6.0)
        return lambda: model.encode(wave, bandwidth=6.0), lambda: model.decode(made.audio_codes, made.audio_scales)
    if isinstance(model, tf.DacModel):
        made = model.encode(wave, n_quantizers=books)
        return lambda: model.encode(wave, n_quantizers=books), lambda: model.decode(audio_codes=made.audio_codes)
    made = model.encode(wave, num_quantizers=books)
    return lambda: model.encode(wave, num_quantizers=books), lambda: model.decode(made.audio_codes)


@torch.inference_mode()
def measure(name: str, codec: AudioCodec, model: Any, args: argparse.Namespace) -> dict[str, Any]:
    rate, repeats = codec.sample_rate, args.repeats
    samples = round(args.seconds * rate) // codec.layout.hop_length * codec.layout.hop_length
    wave = 0.1 * torch.randn(1, samples, device=args.device)
    codes = codec.encode(wave, rate)
    row: dict[str, Any] = {"codec": name, "kbps": round(float(codec.frame_rate) * codec.bits_per_frame / 1000, 3)}

    def encode() -> Any:
        return codec.encode(wave, rate)

    if model is not None:
        bare_encode, bare_decode = bare_calls(model, wave[:, None], codec.n_codebooks)
        row["encode_over_bare"] = round(time_ratio(encode, bare_encode, repeats=repeats, device=args.device), 3)
        row["decode_over_bare"] = round(
            time_ratio(lambda: codec.decode(codes), bare_decode, repeats=repeats, device=args.device), 3
        )  # fmt: skip
    piece = round(0.08 * rate)
    row["stream_over_one_pass"] = round(
        time_ratio(lambda: encode_in_chunks(codec, wave, rate, chunk=piece), encode, repeats=repeats, device=args.device), 3
    )
    spoken = samples / rate
    for what, call in (("encode", encode), ("decode", lambda: codec.decode(codes))):
        spent = statistics.median(seconds(call, args.device) for _ in range(repeats))
        row[f"{what}_x_real_time"] = round(spoken / spent, 2)
    row["stream_x_real_time"] = round(row["encode_x_real_time"] / row["stream_over_one_pass"], 2)
    stream = encode_in_chunks(codec, wave, rate, chunk=piece)
    row["stream_codes_equal"] = round(float((stream.codes == codes.codes).float().mean()), 4)
    return row


def models(quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"EnCodec 24 kHz, 8 books": (lambda: tf.EncodecModel(tf.EncodecConfig()), 8)}
    if not quick:
        dac = tf.DacConfig(sampling_rate=24000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=32)
        found["Mimi 24 kHz, 8 books"] = (lambda: tf.MimiModel(tf.MimiConfig()), 8)
        found["DAC 24 kHz, 8 books"] = (lambda: tf.DacModel(dac), 8)
    return found


def fill_books(model: torch.nn.Module) -> torch.nn.Module:
    """Random books: those of a fresh model are zero, and every code would be the first."""
    for name, buffer in model.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            buffer.normal_(std=0.3)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="EnCodec and the small codec only; writes nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = []
    for name, (make, books) in models(args.quick).items():
        torch.manual_seed(0)
        model = fill_books(make()).eval().to(args.device)
        rows.append(measure(name, load_audio_codec(model, n_codebooks=books), model, args))
        print(rows[-1], flush=True)
    small = ConvCodec(ConvCodecConfig(), ResidualVQ(64, 4, 64)).eval().to(args.device)
    rows.append(measure("ConvCodec 8 kHz, 4 books of 64", small, None, args))
    print(rows[-1])
    if not args.quick:
        facts = environment(args.device)
        setting = (
            f"Batch 1, {args.seconds:g} s of noise, float32 on {args.device}, {facts.get('threads', '')} thread(s); "
            "random weights at published sizes; streams in pieces of 80 ms. Ratios below 1 are faster."
        )
        content = {"setting": setting, "repeats": args.repeats, "environment": facts, "rows": rows}
        print(f"written: {write('audio_codecs', content, args.device)}")


if __name__ == "__main__":
    main()
