"""Tiny random transformers codecs whose books lie where their latents lie, so that many codes are in use."""

import torch

from tokenry.testing import tiny

RATE = 1000


def settle_books(model, latents, seed=0):
    """Put every book at the scale of the encoder's latents: random weights would use a code or two."""
    generator = torch.Generator().manual_seed(seed)
    rows = latents.transpose(1, 2).flatten(0, 1)
    for name, buffer in model.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            pick = torch.randint(0, len(rows), (len(buffer),), generator=generator)
            noise = 0.1 * rows.std() * torch.randn(buffer.shape, generator=generator)
            buffer.copy_(rows[pick][:, : buffer.shape[1]] + noise)
    return model


def noise(channels=1):
    return 0.3 * torch.randn(4, channels, 400, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tiny_encodec(**options):
    model = tiny("encodec", **options)
    return settle_books(model, model.encoder(noise(model.config.audio_channels)))


@torch.no_grad()
def tiny_dac():
    model = tiny("dac")
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.weight.mul_(8.0)  # the initial weights (0.02) let next to nothing through
    return model


@torch.no_grad()
def tiny_mimi():
    model = tiny("mimi")
    return settle_books(model, model.encoder(noise()).latents)


HOSTS = {
    "encodec 24 kHz: causal": tiny_encodec,
    "encodec 32 kHz: looks ahead": lambda: tiny_encodec(use_causal_conv=False),
    "encodec 48 kHz: stereo, chunks, loudness": lambda: tiny_encodec(
        use_causal_conv=False, audio_channels=2, normalize=True, norm_type="time_group_norm", chunk_length_s=0.2, overlap=0.05
    ),
    "encodec: chunks side by side": lambda: tiny_encodec(normalize=True, chunk_length_s=0.2),
    "dac": tiny_dac,
    "mimi": tiny_mimi,
}
