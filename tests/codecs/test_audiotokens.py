"""The protocol, the small codec around every quantizer, its training, and the synthetic audio it is trained on."""

import copy
import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contracts import random_state_kept
from tokenry.codecs import BSQ, FSQ, LFQ, ProductVQ, ResidualVQ, SimVQ, VectorQuantizer
from tokenry.codecs.audio import (
    AudioCodec,
    CodecLayout,
    CodecTraining,
    ConvAutoencoder,
    ConvCodec,
    ConvCodecConfig,
    bitrate,
    load_audio_codec,
    posthoc_kmeans,
    si_snr,
    train_codec,
)
from tokenry.codecs.audio.training import encoder_bank, spectral_distance, start_quantizer
from tokenry.lab.beds.signals.synthetic_audio import DOMAINS, grammar, synthetic_audio
from tokenry.testing import check_audio_codec

SIZES = ConvCodecConfig(sample_rate=600, strides=(5, 3), channels=8, max_channels=16, dim=16, dilations=(1,))
QUANTIZERS = {
    "rvq": lambda: ResidualVQ(16, 3, 8),
    "vq": lambda: VectorQuantizer(16, 32),
    "fsq": lambda: FSQ((5, 5, 5), dim=16),
    "pq": lambda: ProductVQ(16, 2, 8),
    "lfq": lambda: LFQ(6, dim=16),
    "bsq": lambda: BSQ(6, dim=16),
    "sim": lambda: SimVQ(16, 32),
}


def noise(*shape, seed=0):
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_codec(name="rvq", **options):
    codec = ConvCodec(replace(SIZES, **options), QUANTIZERS[name]())
    start_quantizer(codec, noise(40, 150))
    return codec.eval()


# Layout and protocol ------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 48000), st.integers(1, 999), st.lists(st.integers(2, 5000), min_size=1, max_size=9), st.integers(1, 10**6)
)
@settings(max_examples=50, deadline=None)
def test_rates_are_arithmetic(rate, hop, sizes, samples):
    layout = CodecLayout(rate, hop, tuple(sizes))
    assert layout.frame_rate == Fraction(rate, hop)
    assert layout.bits(len(sizes)) == pytest.approx(sum(math.log2(k) for k in sizes))
    frames = layout.frames(samples)
    assert (frames - 1) * hop < samples <= layout.samples(frames)


def test_layout_refuses():
    with pytest.raises(ValueError, match="at least one book"):
        CodecLayout(100, 10, ())
    with pytest.raises(ValueError, match="min_codebooks"):
        CodecLayout(100, 10, (4,), min_codebooks=2)
    with pytest.raises(ValueError, match="domain"):
        CodecLayout(100, 10, (4,), domain=("images",))
    with pytest.raises(ValueError, match="chunk_stride"):
        CodecLayout(100, 10, (4,), chunk_length=20, chunk_stride=30)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "looks ahead"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_contract(name, causal):
    check_audio_codec(small_codec(name, causal=causal))


def test_books_are_selectable():
    codec = small_codec()
    assert (codec.min_codebooks, codec.max_codebooks, codec.n_codebooks) == (1, 3, 3)
    assert bitrate(codec) == pytest.approx(40 * 9)
    codec.n_codebooks = 2
    assert codec.codebook_sizes == (8, 8)
    assert bitrate(codec) == pytest.approx(240)
    assert codec.encode(noise(1, 150), 600).codes.shape == (1, 10, 2)
    with pytest.raises(ValueError, match="n_codebooks"):
        codec.n_codebooks = 4
    assert small_codec("pq").min_codebooks == 2  # the blocks of a product code are no prefix of one another
    with pytest.raises(TypeError, match="AudioCodec"):
        bitrate(torch.nn.Linear(1, 1))


def test_resampling_is_asked_for():
    codec = small_codec()
    wave = noise(2, 400)
    with pytest.raises(ValueError, match="resample=True"):
        codec.encode(wave, 1200)
    assert codec.encode(wave, 1200, [400, 300], resample=True).samples.tolist() == [200, 150]
    assert codec.reconstruct(wave, 1200, resample=True).shape == wave.shape


def test_trimming_to_other_lengths():
    codec = small_codec()
    found = codec.encode(noise(2, 100), 600, [100, 50])
    assert codec.decode(found).shape == (2, 100)
    assert codec.decode(found.codes).shape == (2, 105)  # bare codes: all that their frames hold
    assert codec.decode(found.codes, [20, 10]).shape == (2, 20)
    with pytest.raises(ValueError, match=r"lengths\[1\] must be at most 60"):
        codec.decode(found.codes, [20, 61])
    codes, lengths = found
    assert lengths.tolist() == [7, 4]
    assert torch.equal(codes[1, 4:], torch.full((3, 3), -1))


def test_decoding_carries_a_gradient_where_the_caller_wants_one():
    codec = small_codec()
    codec.decode(codec.encode(noise(1, 60), 600)).sum().backward()
    assert all(p.grad is not None for p in codec.autoencoder.decoder.parameters())


# The small codec ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("strides", [(5, 3), (4, 2), (2, 2, 2), (7,), (1, 3)])
def test_the_decoder_gives_back_as_many_samples(strides, causal):
    model = ConvAutoencoder(replace(SIZES, strides=strides, causal=causal))
    hop = math.prod(strides)
    wave = noise(1, 6 * hop)
    latents = model.encode(wave)
    assert latents.shape == (1, 6, 16)
    assert model.decode(latents).shape == wave.shape


def test_causality_in_samples():
    model = ConvAutoencoder(SIZES)
    wave = noise(1, 150)
    changed = wave.clone()
    changed[:, 75:] += 1
    assert torch.equal(model.encode(wave)[:, :5], model.encode(changed)[:, :5])
    assert torch.equal(model(wave)[:, :75], model(changed)[:, :75])


def test_more_books_never_raise_the_latent_error():
    codec = small_codec()
    codec.quantizer.fit(encoder_bank(codec.autoencoder, noise(40, 150)))
    wave = noise(8, 150)
    latents = codec.autoencoder.encode(wave)
    errors = [
        float((codec.embed(codec.encode(wave, 600, n_codebooks=m)) - latents).square().mean().detach()) for m in (1, 2, 3)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_save_and_load(name, tmp_path):
    codec = small_codec(name, semantic_dim=3, domain=("speech",))
    codec.save_pretrained(tmp_path)
    back = load_audio_codec(tmp_path)
    wave = noise(2, 150)
    assert torch.equal(back.encode(wave, 600).codes, codec.encode(wave, 600).codes)
    assert torch.equal(back.decode(back.encode(wave, 600)), codec.decode(codec.encode(wave, 600)))
    assert back.config == codec.config
    assert back.domain == ("speech",)


def test_the_weights_depend_on_the_seed_alone():
    with random_state_kept():
        one, two, other = (ConvAutoencoder(replace(SIZES, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_small_codec_refuses(tmp_path):
    with pytest.raises(ValueError, match="quantizer must take"):
        ConvCodec(SIZES, VectorQuantizer(8, 4))
    with pytest.raises(ValueError, match="quantizer must take"):
        ConvCodec(SIZES, VectorQuantizer(16, 4, channels_first=True))
    with pytest.raises(TypeError, match="quantizer must be"):
        ConvCodec(SIZES, torch.nn.Identity())
    with pytest.raises(ValueError, match="strides"):
        replace(SIZES, strides=())
    with pytest.raises(ValueError, match="S a multiple of 15"):
        small_codec()(noise(1, 31))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no ConvCodec"):
        ConvCodec.from_pretrained(tmp_path)


# Training -----------------------------------------------------------------------------------------------------------------

PLAN = CodecTraining(steps=12, batch=4, segment=150, resolutions=((64, 16),), log_every=4, save_every=4)


def test_training_lowers_the_loss_and_shows_the_books():
    wave = torch.sin(torch.arange(600) * torch.linspace(0.1, 0.4, 16)[:, None])
    codec = small_codec()
    rows = train_codec(codec, wave, replace(PLAN, steps=60, log_every=10))
    assert rows[-1]["wave"] < rows[0]["wave"]
    assert {"spectral", "quantizer", "perplexity", "usage"} <= rows[0].keys()
    assert not codec.training


@pytest.mark.parametrize("name", ["rvq", "fsq", "vq"])
def test_an_interrupted_run_ends_where_the_whole_run_ends(name, tmp_path):
    class Stop(Exception):
        pass

    def stop(message, fraction):
        if fraction > 0.6:
            raise Stop

    wave = noise(6, 300)
    whole = small_codec(name)
    broken, resumed = copy.deepcopy(whole), copy.deepcopy(whole)
    train_codec(whole, wave, PLAN)
    with pytest.raises(Stop):
        train_codec(broken, wave, PLAN, folder=tmp_path, progress=stop)
    rows = train_codec(resumed, wave, PLAN, folder=tmp_path)
    assert [row["step"] for row in rows] == [4, 8, 12]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    with pytest.raises(ValueError, match="other settings"):
        train_codec(resumed, wave, replace(PLAN, steps=20), folder=tmp_path)


@pytest.mark.parametrize("name", ["rvq", "vq", "fsq"])
def test_distillation_teaches_the_first_level(name):
    wave = noise(6, 300)
    features = torch.nn.functional.one_hot(torch.arange(20) // 5, 4).float().expand(6, -1, -1)
    codec = small_codec(name, semantic_dim=4)
    rows = train_codec(codec, wave, replace(PLAN, steps=8), features=features)
    assert math.isfinite(rows[-1]["semantic"])
    assert codec.semantic_head.weight.grad is not None
    with pytest.raises(ValueError, match="semantic head"):
        train_codec(codec, wave, PLAN)
    with pytest.raises(ValueError, match="features"):
        train_codec(codec, wave, PLAN, features=features[:, :-1])


def test_a_loss_that_is_not_finite_updates_nothing():
    codec = small_codec("fsq")
    before = {name: x.clone() for name, x in codec.state_dict().items()}
    with pytest.raises(ValueError, match="no weight was updated"):
        train_codec(codec, 1e30 * noise(4, 300), PLAN)
    assert all(torch.equal(x, before[name]) for name, x in codec.state_dict().items())
    with pytest.raises(ValueError, match="finite"):
        train_codec(codec, torch.full((4, 300), torch.nan), PLAN)


def test_training_refuses():
    codec = small_codec()
    with pytest.raises(ValueError, match="at least 150 samples"):
        train_codec(codec, noise(4, 100), PLAN)
    with pytest.raises(ValueError, match="steps"):
        CodecTraining(steps=0)
    with pytest.raises(ValueError, match="learning_rate"):
        CodecTraining(learning_rate=0.0)


def test_spectral_distance():
    wave = noise(2, 400)
    assert float(spectral_distance(wave, wave, ((64, 16),))) == pytest.approx(0.0, abs=1e-5)
    assert float(spectral_distance(wave, 0.5 * wave, ((64, 16),))) > 0.3
    silent = torch.cat([wave, torch.zeros(1, 400)])
    assert math.isfinite(float(spectral_distance(silent, silent + 1e-3, ((64, 16),))))


def test_kmeans_after_training_leaves_the_autoencoder_alone():
    model = ConvAutoencoder(SIZES)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    codec = posthoc_kmeans(model, noise(20, 150), 16)
    assert codec.codebook_sizes == (16,)
    assert len(codec.encode(noise(20, 150), 600).codes.unique()) > 8
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    with pytest.raises(ValueError, match="codebook_size"):
        posthoc_kmeans(model, noise(1, 150), 16)


def test_principal_axes_start_fsq_near_the_latents():
    codec = ConvCodec(SIZES, FSQ((8,) * 8, dim=16))
    wave = noise(40, 150)
    latents = codec.autoencoder.encode(wave)

    def error():
        return float((codec.quantizer(latents).codes - latents).square().mean().detach() / latents.var().detach())

    before = error()
    start_quantizer(codec, wave)
    assert error() < 0.5 * before
    assert error() < 0.3


# Synthetic audio ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_clips_are_drawn_from_the_seed(domain):
    one, two, other = (synthetic_audio(domain, 5, seed) for seed in (3, 3, 4))
    assert torch.equal(one.wave, two.wave)
    assert not torch.equal(one.wave, other.wave)
    assert one.wave.shape == (5, 8000)
    assert torch.allclose(one.wave.square().mean(1).sqrt(), torch.full((5,), 0.1), atol=1e-4)
    assert (one.phones >= 0).all() == (domain == "speech")


def test_phones_follow_the_grammar():
    clips = synthetic_audio("speech", 20, 0)
    table = grammar()
    for row in clips.phones:
        changes = [(a, b) for a, b in pairwise(row.tolist()) if a != b]
        assert all(b in table[a] for a, b in changes)
        assert 3 <= len(changes) + 1 <= 6
    assert clips.phones_at(160).shape == (20, 50)
    assert torch.equal(clips.phones_at(80), clips.phones)
    assert set(clips.speaker.tolist()) <= set(range(8))


def test_phones_and_speakers_are_in_the_spectrum():
    clips = synthetic_audio("speech", 40, 1)
    spectrum = torch.stft(clips.wave, 256, 80, window=torch.hann_window(256), return_complex=True).abs()[..., :100]
    loud = (spectrum + 1e-3).log().transpose(1, 2)
    means = torch.stack([loud[clips.phones == phone].mean(0) for phone in range(12)])
    guess = (loud[:, :, None] - means).square().sum(-1).argmin(-1)
    assert float((guess == clips.phones).float().mean()) > 0.4  # chance is 1 in 12


def test_synthetic_audio_refuses():
    with pytest.raises(ValueError, match="domain"):
        synthetic_audio("birds", 1, 0)
    with pytest.raises(ValueError, match=r"multiple of 0\.01"):
        synthetic_audio("speech", 1, 0, seconds=0.1234)


def test_metrics_are_exported():
    wave = noise(2, 100)
    assert min(si_snr(wave, 3 * wave + 1).tolist()) > 80
    assert issubclass(ConvCodec, AudioCodec)
