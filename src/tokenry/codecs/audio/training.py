"""Training a small codec: L1 and multi-resolution STFT, the quantizer's own loss, optional semantic distillation; no GAN.

A step's clips and segments are drawn from (seed, step), so that a run that was interrupted and resumed from its folder ends
where the whole run ends. A loss or a gradient that is not finite stops the run before anything is updated by it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenry.codecs.audio.small_codec import CodecPass, ConvAutoencoder, ConvCodec
from tokenry.codecs.vq import VectorQuantizer
from tokenry.core.checks import check_finite, check_int, check_range, check_shape
from tokenry.core.descent import Plan, descend
from tokenry.core.progress import Progress


@dataclass(frozen=True)
class CodecTraining:
    """Settings of the recipe.

    Attributes:
        steps: optimizer steps.
        batch: segments per step.
        segment: samples of a segment, cut down to whole frames.
        learning_rate: peak of AdamW, reached after 5 % of the steps, then a cosine to a twentieth.
        wave_weight: of the L1 distance of samples, divided by the batch's mean magnitude.
        spectral_weight: of the multi-resolution STFT distance.
        quantizer_weight: of the quantizer's loss.
        semantic_weight: of 1 - cosine between the head on the first level and the given features.
        resolutions: (FFT, hop) of the STFT distance; windows are as long as the FFT.
        clip: largest norm of the gradient.
        log_every: steps between two rows of the history.
        save_every: steps between two checkpoints, where a folder is given.
        seed: of the draws.
    """

    steps: int = 1500
    batch: int = 8
    segment: int = 4000
    learning_rate: float = 2e-3
    wave_weight: float = 1.0
    spectral_weight: float = 0.3
    quantizer_weight: float = 1.0
    semantic_weight: float = 1.0
    resolutions: tuple[tuple[int, int], ...] = ((512, 128), (128, 32))
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "segment", "log_every", "save_every"):
            check_int(name, getattr(self, name), 1)
        check_int("seed", self.seed, 0)
        for name in ("learning_rate", "clip"):
            check_range(name, getattr(self, name), 0.0, low_open=True)
        for name in ("wave_weight", "spectral_weight", "quantizer_weight", "semantic_weight"):
            check_range(name, getattr(self, name), 0.0)
        for size, hop in self.resolutions:
            check_int("resolutions (FFT)", size, 16, self.segment)
            check_int("resolutions (hop)", hop, 1, size)


def train_codec(
    model: ConvCodec | ConvAutoencoder,
    waves: Tensor,
    settings: CodecTraining | None = None,
    *,
    features: Tensor | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place on clips [N,S]; returns a row of losses and of codebook health every `log_every` steps.

    Args:
        model: a codec, or an autoencoder without a quantizer (the continuous reference).
        waves: floating point clips of at least one segment.
        settings: of the recipe.
        features: [N,T,F] frame features for the codec's semantic head, T = S // hop.
        folder: checkpoints are written there; a run that stopped goes on from its last one.
        progress: called as ``progress(message, fraction)``.

    Raises:
        TypeError, ValueError: bad arguments, features without a head or the reverse, or a loss that is not finite.
    """
    settings = settings or CodecTraining()
    hop = model.config.hop_length
    size = check_shape("waves", check_finite("waves", waves), "N S")
    segment = settings.segment // hop * hop
    if not waves.is_floating_point() or segment == 0 or size["S"] < segment:
        raise ValueError(
            f"waves must be floating-point clips of at least {max(segment, hop)} samples, got {waves.dtype} {list(waves.shape)}"
        )
    _check_features(model, features, size["N"], size["S"] // hop)

    def loss_of(step: int) -> dict[str, Any]:
        return _terms(model, *_draw(waves, features, settings, segment, hop, step), settings, step)

    def tell(row: dict[str, Any]) -> None:
        if progress is not None:
            told = ", ".join(f"{name} {row[name]:.3g}" for name in ("wave", "perplexity") if name in row)
            progress(told, row["step"] / settings.steps)

    plan = Plan(
        steps=settings.steps, learning_rate=settings.learning_rate, betas=(0.8, 0.99), weight_decay=0.0, clip=settings.clip,
        floor=0.05,
    )  # fmt: skip
    log = descend(
        model, loss_of, plan, folder=folder, settings=asdict(settings), log_every=settings.log_every,
        save_every=settings.save_every, watch=tell,
    )  # fmt: skip
    model.eval()
    return log


def spectral_distance(reference: Tensor, estimate: Tensor, resolutions: tuple[tuple[int, int], ...]) -> Tensor:
    """Spectral convergence plus mean |ln S - ln E| over STFTs of wave [B,S], averaged over the resolutions; a scalar."""
    terms = []
    for size, hop in resolutions:
        window = torch.hann_window(size, device=reference.device)
        s, e = (
            torch.view_as_real(torch.stft(x.float(), size, hop, window=window, return_complex=True))
            .square().sum(-1).add(1e-8).sqrt()
            for x in (reference, estimate)
        )  # fmt: skip
        # Both parts are relative to the batch, so that a silent clip neither divides by zero nor outweighs the others;
        # magnitudes 40 dB under the batch's mean count as silence.
        convergence = ((s - e).square().mean() / s.square().mean()).sqrt()
        floor = 0.01 * s.mean()
        terms.append(convergence + ((s + floor).log() - (e + floor).log()).abs().mean())
    return torch.stack(terms).mean()


def start_quantizer(codec: ConvCodec, waves: Tensor, *, iterations: int = 10, vectors: int = 20_000, seed: int = 0) -> None:
    """Fit the quantizer of `codec` to the latents of its (trained) encoder, before training goes on with it.

    Look-up quantizers run their own `fit` (k-means). Those without a book and with maps to fewer channels (FSQ, LFQ, BSQ) get
    the latents' principal axes, each scaled to unit deviation, and the inverse map behind the codes.

    Raises:
        TypeError, ValueError: waves [N,S] are not finite or too few for the book.
    """
    bank = encoder_bank(codec.autoencoder, waves)
    if len(bank) > vectors:
        bank = bank[torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))[:vectors]]
    quantizer: Any = codec.quantizer
    if hasattr(quantizer, "fit"):
        quantizer.fit(bank, iterations=iterations)
        return
    inner, outer = quantizer.project_in, quantizer.project_out
    if not isinstance(inner, nn.Linear):
        return
    with torch.no_grad():
        rows = bank.double()
        mean = rows.mean(0)
        values, axes = torch.linalg.eigh((rows - mean).t() @ (rows - mean) / len(rows))  # ascending
        axes, values = axes.t().flip(0)[: quantizer.code_dim], values.flip(0)[: quantizer.code_dim]
        axes = axes * torch.where(axes.sum(1, keepdim=True) < 0, -1.0, 1.0)
        weight = axes / values.clamp_min(1e-12).sqrt()[:, None]
        inner.weight.copy_(weight)
        inner.bias.copy_(-weight @ mean)
        # Least squares from the codes back to the latents: what the rounding and the bound leave of them.
        codes = quantizer.codes_of(quantizer.encode(bank)).double()
        design = torch.cat([codes, codes.new_ones(len(codes), 1)], dim=1)
        back = torch.linalg.lstsq(design, rows).solution
        outer.weight.copy_(back[:-1].t())
        outer.bias.copy_(back[-1])


def encoder_bank(autoencoder: ConvAutoencoder, waves: Tensor) -> Tensor:
    """Latents [N * T, D] of clips [N,S].

    Raises:
        TypeError, ValueError: waves that are not finite, or shorter than a frame.
    """
    hop = autoencoder.config.hop_length
    size = check_shape("waves", check_finite("waves", waves), "N S")
    frames = check_int("frames of waves", size["S"] // hop, 1)
    with torch.no_grad():
        return torch.cat([autoencoder.encode(part).flatten(0, 1) for part in waves[:, : frames * hop].split(32)])


def posthoc_kmeans(
    autoencoder: ConvAutoencoder, waves: Tensor, codebook_size: int, *, iterations: int = 20, seed: int = 0
) -> ConvCodec:
    """A tokenizer by k-means on the latents of a trained encoder, which stays as it is, as does the decoder.

    Raises:
        TypeError, ValueError: waves [N,S] hold fewer frames than `codebook_size`, or are not finite.
    """
    bank = encoder_bank(autoencoder, waves)
    check_int("codebook_size", codebook_size, 2, len(bank))
    quantizer = VectorQuantizer(autoencoder.config.dim, codebook_size, seed=seed).to(bank.device)
    quantizer.fit(bank, iterations=iterations)
    return ConvCodec(autoencoder.config, quantizer, autoencoder=autoencoder).eval()


def _check_features(model: nn.Module, features: Tensor | None, clips: int, frames: int) -> None:
    head = getattr(model, "semantic_head", None)
    if (head is None) != (features is None):
        raise ValueError("features are needed exactly when the codec has a semantic head (config.semantic_dim)")
    if head is not None:
        check_shape("features", features, "N T F", N=clips, T=frames, F=head.out_features)


def _draw(
    waves: Tensor, features: Tensor | None, settings: CodecTraining, segment: int, hop: int, step: int
) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
    clips = torch.randint(0, len(waves), (settings.batch,), generator=generator)
    frames = (waves.shape[1] - segment) // hop + 1
    begins = torch.randint(0, frames, (settings.batch,), generator=generator)
    batch = torch.stack([waves[c, b * hop : b * hop + segment] for c, b in zip(clips.tolist(), begins.tolist(), strict=True)])
    if features is None:
        return batch, None
    count = segment // hop
    return batch, torch.stack([features[c, b : b + count] for c, b in zip(clips.tolist(), begins.tolist(), strict=True)])


def _terms(
    model: ConvCodec | ConvAutoencoder, batch: Tensor, targets: Tensor | None, settings: CodecTraining, step: int
) -> dict[str, Any]:
    """The loss of a batch and its terms, with the codebooks' health where the log has a row."""
    output: Any = model(batch)
    made = output.wave if isinstance(output, CodecPass) else output
    terms: dict[str, Tensor] = {"wave": (made - batch).abs().mean() / batch.abs().mean().clamp_min(1e-6)}
    terms["spectral"] = spectral_distance(batch, made, settings.resolutions)
    loss = settings.wave_weight * terms["wave"] + settings.spectral_weight * terms["spectral"]
    if isinstance(output, CodecPass):
        terms["quantizer"] = output.quantized.loss
        loss = loss + settings.quantizer_weight * output.quantized.loss
        if targets is not None and output.semantic is not None:
            terms["semantic"] = 1 - nn.functional.cosine_similarity(output.semantic, targets, dim=-1).mean()
            loss = loss + settings.semantic_weight * terms["semantic"]
        if (step + 1) % settings.log_every == 0:
            stats = output.quantized.stats
            terms |= {name: getattr(stats, name).float().mean() for name in ("perplexity", "usage")}
    return {"loss": loss, **terms}
