"""Tiny random transformers codecs whose books lie where their latents lie, so that many codes are in use."""

import torch
import transformers as tf

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


@torch.no_grad()
def tiny_encodec(**options):
    torch.manual_seed(0)
    sizes = {"sampling_rate": RATE, "upsampling_ratios": [5, 2, 2], "num_filters": 4, "hidden_size": 16, "codebook_size": 16,
             "target_bandwidths": [0.8, 1.6], "num_lstm_layers": 1, **options}  # fmt: skip
    model = tf.EncodecModel(tf.EncodecConfig(**sizes)).eval()
    return settle_books(model, model.encoder(0.3 * torch.randn(4, model.config.audio_channels, 400)))


@torch.no_grad()
def tiny_dac():
    torch.manual_seed(0)
    config = tf.DacConfig(
        encoder_hidden_size=4, decoder_hidden_size=32, downsampling_ratios=[2, 4, 5], n_codebooks=4, codebook_size=16,
        codebook_dim=4, sampling_rate=RATE,
    )  # fmt: skip
    model = tf.DacModel(config).eval()
    for module in model.encoder.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.weight.mul_(8.0)  # the initial weights (0.02) let next to nothing through
    return model


@torch.no_grad()
def tiny_mimi():
    torch.manual_seed(0)
    config = tf.MimiConfig(
        sampling_rate=RATE, upsampling_ratios=[5, 2], num_filters=4, hidden_size=16, codebook_size=16, codebook_dim=16,
        vector_quantization_hidden_dimension=16, num_quantizers=4, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=32, sliding_window=6, upsample_groups=16,
    )  # fmt: skip
    model = tf.MimiModel(config).eval()
    return settle_books(model, model.encoder(0.3 * torch.randn(4, 1, 400)).latents)


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
