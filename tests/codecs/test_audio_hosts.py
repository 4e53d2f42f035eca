"""EnCodec, DAC and Mimi of transformers behind the protocol: same codes as the bare models, exact padding, exact streams."""

import json
from fractions import Fraction

import pytest
import torch

from tests.codecs.audio_models import HOSTS, RATE, tiny_dac, tiny_encodec, tiny_mimi
from tokenry.codecs.audio import AudioCodes, HostedCodec, bitrate, encode_in_chunks, load_audio_codec
from tokenry.errors import UnsupportedModelError
from tokenry.testing import AUDIO_CODEC_CHECKS, tiny

MODELS = {}


def codec_of(name):
    if name not in MODELS:
        MODELS[name] = HOSTS[name]()
    return load_audio_codec(MODELS[name])


def noise(*shape, seed=1):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("check", AUDIO_CODEC_CHECKS, ids=lambda c: c.__name__.strip("_"))
def test_contract(name, check):
    check(codec_of(name), 0.0)


@pytest.mark.parametrize("name", HOSTS)
def test_the_codes_are_worth_comparing(name):
    codec = codec_of(name)
    codes = codec.encode(noise(2, codec.channels, 1600), RATE).codes
    assert len(codes[..., 0].unique()) >= 4


# Against the bare models --------------------------------------------------------------------------------------------------


def test_encodec_equals_the_bare_model():
    model = tiny_encodec()
    codec, wave = load_audio_codec(model), noise(2, 1, 800)
    for bandwidth, books in ((0.8, 4), (1.6, 8)):
        bare = model.encode(wave, bandwidth=bandwidth)
        ours = codec.encode(wave, RATE, n_codebooks=books)
        assert torch.equal(bare.audio_codes[0].transpose(1, 2), ours.codes)
        made = model.decode(bare.audio_codes, bare.audio_scales).audio_values[:, 0]
        assert torch.equal(made, codec.decode(ours))


def test_chunked_encodec_equals_the_bare_model():
    model = HOSTS["encodec 48 kHz: stereo, chunks, loudness"]()
    codec, wave = load_audio_codec(model), noise(2, 2, 770)
    ours = codec.encode(wave, RATE)
    chunks = ours.codes.shape[1] // codec.layout.chunk_frames
    assert codec.frame_rate == Fraction(10 * RATE, 190)
    padded = torch.nn.functional.pad(wave, (0, codec.layout.samples(ours.codes.shape[1]) - 770))
    bare = model.encode(padded, bandwidth=1.6)  # its last chunk lies in the overlap of the one before
    assert torch.equal(bare.audio_codes[:chunks].permute(1, 0, 3, 2).flatten(1, 2), ours.codes)
    assert torch.allclose(torch.cat(bare.audio_scales[:chunks], dim=1), ours.scales)
    scales = [scale[:, None] for scale in ours.scales.t()]
    made = model.decode(bare.audio_codes[:chunks], scales).audio_values[..., :770]
    assert torch.allclose(made, codec.decode(ours), atol=1e-6)


def test_dac_equals_the_bare_model():
    model = tiny_dac()
    codec, wave = load_audio_codec(model), noise(2, 1, 800)
    for books in (2, 4):
        bare = model.encode(wave, n_quantizers=books)
        ours = codec.encode(wave, RATE, n_codebooks=books)
        assert torch.equal(bare.audio_codes.transpose(1, 2), ours.codes)
        made = model.decode(audio_codes=bare.audio_codes).audio_values  # shorter: a stride is odd
        assert torch.allclose(made, codec.decode(ours)[:, : made.shape[1]], atol=1e-6)


def test_mimi_equals_the_bare_model():
    model = tiny_mimi()
    codec, wave = load_audio_codec(model), noise(2, 1, 800)
    for books in (1, 2, 4):
        bare = model.encode(wave, num_quantizers=books)
        ours = codec.encode(wave, RATE, n_codebooks=books)
        assert torch.equal(bare.audio_codes.transpose(1, 2), ours.codes)
        assert torch.equal(model.decode(bare.audio_codes).audio_values[:, 0], codec.decode(ours))


def test_only_a_last_frame_that_is_not_whole_may_differ_from_the_bare_model():
    wave = noise(2, 1, 1 + 20 * 39)
    model = tiny_mimi()
    ours = load_audio_codec(model).encode(wave, RATE).codes
    assert ours.shape[1] == 40
    assert torch.equal(model.encode(wave).audio_codes.transpose(1, 2)[:, :39], ours[:, :39])


def test_embeddings_are_what_the_decoder_reads():
    for model in (tiny_encodec(), tiny_dac(), tiny_mimi()):
        codec = load_audio_codec(model)
        found = codec.encode(noise(2, 400), RATE)
        made = codec._host.synthesize(codec.embed(found).transpose(1, 2))
        size = min(made.shape[-1], 400)
        assert torch.allclose(made[:, 0, :size], codec.decode(found)[:, :size], atol=1e-6)


# Rates --------------------------------------------------------------------------------------------------------------------


def test_rates_of_the_published_sizes_are_computed():
    sizes = {"sampling_rate": 24000, "upsampling_ratios": [8, 5, 4, 2], "codebook_size": 1024, "target_bandwidths": [1.5, 24.0]}
    codec = HostedCodec(tiny("encodec", **sizes))
    assert codec.frame_rate == 75
    assert codec.max_codebooks == 32
    codec.n_codebooks = 8
    assert bitrate(codec) == pytest.approx(6000)
    assert bitrate(codec, 2) == pytest.approx(1500)


def test_mimi_at_eight_books_is_1_1_kbps():
    sizes = {"sampling_rate": 24000, "upsampling_ratios": [8, 6, 5, 4], "codebook_size": 2048, "num_quantizers": 8}
    codec = load_audio_codec(tiny("mimi", **sizes))
    assert codec.frame_rate == Fraction(25, 2)
    assert bitrate(codec) == pytest.approx(1100)


# Loading ------------------------------------------------------------------------------------------------------------------


def test_folders_and_instances(tmp_path):
    wave = noise(1, 400)
    for name, make in (("encodec", tiny_encodec), ("dac", tiny_dac), ("mimi", tiny_mimi)):
        model = make()
        model.save_pretrained(tmp_path / name)
        codec = load_audio_codec(tmp_path / name, n_codebooks=3)
        assert codec.n_codebooks == 3
        assert torch.equal(codec.encode(wave, RATE).codes, load_audio_codec(model).encode(wave, RATE, n_codebooks=3).codes)
        assert load_audio_codec(codec) is codec


def test_other_models_are_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="EncodecModel, DacModel, MimiModel"):
        load_audio_codec(torch.nn.Linear(2, 2))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        load_audio_codec(tmp_path)


def test_loudness_is_needed_to_decode():
    codec = codec_of("encodec: chunks side by side")
    found = codec.encode(noise(1, 300), RATE)
    with pytest.raises(ValueError, match="loudness"):
        codec.decode(found.codes)
    quiet = AudioCodes(found.codes, found.lengths, found.samples, found.scales / 2)
    assert torch.allclose(codec.decode(quiet) * 2, codec.decode(found), atol=1e-6)
    with pytest.raises(ValueError, match="whole chunks of 10 frames"):
        codec.decode(AudioCodes(found.codes[:, :-1], found.lengths - 1, found.samples, found.scales))


def test_whole_clip_normalisation_cannot_stream():
    codec = load_audio_codec(tiny_encodec(normalize=True))
    with pytest.raises(ValueError, match="whole clip"):
        codec.stream()
    found = codec.encode(noise(2, 400), RATE, [400, 150])
    alone = codec.encode(noise(2, 400)[1:, :150], RATE)
    assert torch.equal(found.codes[1, :8], alone.codes[0])
    assert float(found.scales[1, 0]) == pytest.approx(float(alone.scales[0, 0]), rel=1e-5)


# Streams ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encodec 24 kHz: causal", "mimi"])
def test_causal_models_emit_a_frame_as_soon_as_its_samples_are_there(name):
    codec = codec_of(name)
    hop, wave = codec.layout.hop_length, noise(2, 1000)
    stream = codec.stream(2)
    begun = codec._host.start
    counts = []
    for piece in wave.split(hop, dim=1):
        stream.push(piece)
        counts.append(stream.frames)
    assert counts[begun // hop :] == list(range(begun // hop + 1, 1000 // hop + 1))


def test_a_long_stream_of_mimi_forgets_what_its_window_forgets():
    codec = codec_of("mimi")
    wave = noise(1, 4000)
    pieces = encode_in_chunks(codec, wave, RATE, chunk=130)
    assert torch.equal(pieces.codes, codec.encode(wave, RATE).codes)


def test_streams_refuse():
    codec = codec_of("dac")
    stream = codec.stream()
    with pytest.raises(ValueError, match="at least one frame"):
        stream.finish()
    stream.push(noise(2, 100))
    with pytest.raises(ValueError, match="2 rows"):
        stream.push(noise(1, 100))
    with pytest.raises(ValueError, match="finite"):
        stream.push(torch.full((2, 10), torch.nan))
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.push(noise(2, 10))
    with pytest.raises(ValueError, match="finished"):
        stream.finish()


def test_half_precision_runs():
    codec = load_audio_codec(tiny_encodec().to(torch.bfloat16))
    found = codec.encode(noise(2, 400), RATE)
    assert torch.isfinite(codec.decode(found)).all()
