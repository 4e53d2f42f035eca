"""Waveform metrics: definitions written again in numpy, edges, batches with lengths, bad input, gradients."""

import builtins
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenry.codecs.audio.metrics import (
    ci_sdr,
    log_mel,
    mel_distance,
    multi_resolution_stft_distance,
    pesq,
    resample,
    sdr,
    si_sdr,
    si_snr,
    snr,
    stoi,
)
from tokenry.codecs.audio.metrics.resampling import resampled_length
from tokenry.codecs.audio.metrics.spectral import _mel_bank
from tokenry.errors import MissingDependencyError

RATIOS = {"snr": snr, "si_sdr": si_sdr, "si_snr": si_snr, "sdr": sdr, "ci_sdr": ci_sdr}
ALL = {
    **RATIOS,
    "stoi": lambda s, e, lengths=None: stoi(s, e, 10_000, lengths),
    "mel_distance": lambda s, e, lengths=None: mel_distance(s, e, 8000, lengths),
    "multi_resolution": multi_resolution_stft_distance,
}
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def noise(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) / 4


def speechlike(seed, size):
    """Bursts of coloured noise with pauses."""
    x = np.convolve(noise(seed, size + 40).numpy(), np.hanning(20))[:size]
    return torch.from_numpy(x * (0.02 + np.abs(np.sin(np.arange(size) / 900 + seed)) ** 3))


# --- the definitions, written from the papers ---------------------------------------------------------------------


def projection_sdr(s, e, taps):
    """BSS-eval for one source by an explicit matrix of shifts and least squares."""
    shifts = np.zeros((len(s) + taps - 1, taps))
    for lag in range(taps):
        shifts[lag : lag + len(s), lag] = s
    padded = np.concatenate([e, np.zeros(taps - 1)])
    target = shifts @ np.linalg.lstsq(shifts, padded, rcond=None)[0]
    return 10 * np.log10(np.sum(target**2) / np.sum((padded - target) ** 2))


def loop_stoi(x, y):
    """STOI at 10 kHz with loops, as section II of the paper describes it."""
    window = np.hanning(258)[1:-1]
    starts = range(0, len(x) - 256, 128)
    energy = [20 * np.log10(np.linalg.norm(x[i : i + 256] * window) + 2.2e-16) for i in starts]
    kept = [i for i, level in zip(starts, energy, strict=True) if level > max(energy) - 40]
    a, b = np.zeros(256 + 128 * (len(kept) - 1)), np.zeros(256 + 128 * (len(kept) - 1))
    for n, i in enumerate(kept):
        a[128 * n : 128 * n + 256] += x[i : i + 256] * window
        b[128 * n : 128 * n + 256] += y[i : i + 256] * window
    freq = np.linspace(0, 10_000, 513)[:257]
    bands = []
    for k in range(15):
        low, high = (np.argmin(np.abs(freq - 150 * 2 ** ((2 * k + d) / 6))) for d in (-1, 1))
        bands.append((low, high))
    spectra = []
    for z in (a, b):
        frames = [np.fft.rfft(z[i : i + 256] * window, 512) for i in range(0, len(z) - 256, 128)]
        spectra.append(np.array([[np.linalg.norm(f[low:high]) for f in frames] for low, high in bands]))
    scores = []
    for m in range(30, spectra[0].shape[1] + 1):
        for band in range(15):
            u, v = spectra[0][band, m - 30 : m], spectra[1][band, m - 30 : m]
            v = np.minimum(v * np.linalg.norm(u) / np.linalg.norm(v), u * (1 + 10 ** (15 / 20)))
            scores.append(np.corrcoef(u, v)[0, 1])
    return np.mean(scores)


def test_worked_numbers():
    s, e = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    assert snr(s, e).item() == pytest.approx(10 * math.log10(9))
    # a = 11/9, |a s|^2 = 121/9, |e - a s|^2 = 14 - 121/9 = 5/9
    assert si_sdr(s, e).item() == pytest.approx(10 * math.log10(121 / 5), abs=1e-5)
    # means removed: s = (-2, 1, 1)/3, e = (-1, 0, 1), a = 3/2: |a s|^2 = 3/2, rest 1/2
    assert si_snr(s, e).item() == pytest.approx(10 * math.log10(3), abs=1e-5)
    assert snr(s, e).shape == ()


@few
@given(seeds, st.integers(40, 200), st.integers(1, 24))
def test_sdr_is_the_projection_on_all_shifts(seed, size, taps):
    s, e = noise(seed, size), noise(seed + 1, size)
    found = float(sdr(s, e, filter_length=taps))
    assert found == pytest.approx(projection_sdr(s.numpy(), e.numpy(), taps), abs=1e-8)
    assert float(ci_sdr(s, e, filter_length=taps)) == found


@pytest.mark.parametrize("seed", range(3))
def test_stoi_is_the_paper_written_with_loops(seed):
    s = speechlike(seed, 9000)
    s[2000:3500] *= 1e-4  # silent frames
    e = s + noise(seed + 9, 9000) * (0.02 + 0.1 * seed)
    assert float(stoi(s, e, 10_000)) == pytest.approx(loop_stoi(s.numpy(), e.numpy()), abs=1e-12)


# --- properties ---------------------------------------------------------------------------------------------------


@few
@given(seeds, st.floats(0.01, 100), st.floats(-3, 3))
def test_invariances(seed, gain, offset):
    s, e = noise(seed, 700), noise(seed, 700) + noise(seed + 1, 700)
    assert float(si_sdr(s, gain * e)) == pytest.approx(float(si_sdr(s, e)), abs=1e-8)
    assert float(si_snr(s, gain * e + offset)) == pytest.approx(float(si_snr(s, e)), abs=1e-7)
    assert float(sdr(s, gain * e)) == pytest.approx(float(sdr(s, e)), abs=1e-7)
    assert float(si_sdr(s, -e)) == pytest.approx(float(si_sdr(s, e)), abs=1e-8)  # polarity is a scale
    assert snr(s, s) > snr(s, e)


def test_delay_and_offset_tell_the_ratios_apart():
    s = noise(1, 4000)
    delayed = torch.cat([torch.zeros(7, dtype=s.dtype), s])[:4000]
    assert sdr(s, delayed) > 25
    assert si_sdr(s, delayed) < 0
    assert si_snr(s, s + 1.0) > 250
    assert si_sdr(s, s + 1.0) < 0


@settings(max_examples=8, deadline=None)
@given(seeds, st.lists(st.integers(6000, 9000), min_size=1, max_size=3))
def test_a_batch_is_its_items_alone(seed, sizes):
    clips = [(speechlike(seed + i, n), speechlike(seed + i, n) + noise(seed + i, n) / 8) for i, n in enumerate(sizes)]
    lengths = torch.tensor(sizes)
    padded = [torch.full((len(sizes), max(sizes) + 50), float("nan"), dtype=torch.float64) for _ in range(2)]
    for i, pair in enumerate(clips):
        for target, x in zip(padded, pair, strict=True):
            target[i, : len(x)] = x
    for name, metric in ALL.items():
        alone = torch.stack([metric(s, e) for s, e in clips])
        torch.testing.assert_close(metric(*padded, lengths), alone, rtol=1e-9, atol=1e-9, msg=name)


def test_channels_and_dtypes():
    s = noise(0, 2, 3, 800)
    e = s + noise(1, 2, 3, 800)
    values = si_sdr(s, e, torch.tensor([800, 700]))
    assert values.shape == (2, 3)
    assert float(values[1, 2]) == pytest.approx(float(si_sdr(s[1, 2, :700], e[1, 2, :700])))
    assert si_sdr(s.bfloat16(), e.half()).dtype == torch.float32
    assert si_sdr(s, e).dtype == torch.float64


@pytest.mark.parametrize("name", RATIOS)
def test_edges_in_decibels(name):
    metric, s, zero = RATIOS[name], noise(3, 2000), torch.zeros(2000, dtype=torch.float64)
    assert 150 < float(metric(s, s)) <= 300
    assert float(metric(zero, zero)) == 300
    assert float(metric(zero, s)) == -300
    assert float(metric(s, zero)) == (0 if name == "snr" else -300)
    tone = torch.sin(torch.arange(2000, dtype=torch.float64) / 9)
    assert float(metric(tone, tone)) > 150  # all shifts of a tone lie in a plane


def test_distances_of_equal_and_silent_waveforms():
    s, zero = noise(3, 4000), torch.zeros(4000, dtype=torch.float64)
    for metric in (lambda a, b: mel_distance(a, b, 16000), multi_resolution_stft_distance):
        assert float(metric(s, s)) == 0
        assert float(metric(zero, zero)) == 0
        assert float(metric(s, zero)) > 1
    # a factor of 10 is one unit of log10 everywhere above the floor
    assert float(mel_distance(s, 10 * s, 16000)) == pytest.approx(1.0)
    assert log_mel(s, 16000, mels=20).shape == (1 + math.ceil((4000 - 512) / 128), 20)


@pytest.mark.parametrize(
    ("rate", "window"), [(8000, 256), (11025, 512), (16000, 512), (24000, 1024), (44100, 2048), (16000, 333)]
)
@pytest.mark.parametrize("mels", [1, 20, 80, 128])
def test_mel_triangles_are_never_narrower_than_a_bin(rate, window, mels):
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), mels + 2) / 2595) - 1)
    bins, step = np.arange(window // 2 + 1)[:, None] * rate / window, rate / window
    widths = np.maximum(np.diff(corners), step)
    sides = (bins - corners[:-2]) / widths[:-1], (corners[2:] - bins) / widths[1:]
    wanted = np.maximum(np.minimum(*sides), 1 - np.abs(bins - corners[1:-1]) / step).clip(0)
    found = _mel_bank(rate, window, mels)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=1e-12)
    assert bool((found > 0).any(0).all())


def test_stoi_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match=r"item 0 has 0"):
        stoi(torch.zeros(8000), torch.zeros(8000), 8000)
    with pytest.raises(ValueError, match="STOI needs 30 frames"):
        stoi(noise(0, 2000), noise(0, 2000), 16000)
    s = speechlike(0, 16000)
    assert float(stoi(s, s, 16000)) == pytest.approx(1.0)
    assert float(stoi(s, torch.zeros_like(s), 16000)) == pytest.approx(0.0)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("sdr", "stoi")])
def test_gradients_are_finite_also_at_silence(name):
    s = speechlike(0, 6000)
    for start in (s + noise(1, 6000) / 4, torch.zeros(6000, dtype=torch.float64), s.clone()):
        e = start.requires_grad_()
        ALL[name](s, e).backward()
        assert bool(torch.isfinite(e.grad).all()), name


def test_a_step_along_the_gradient_of_ci_sdr_helps():
    s = noise(0, 2000)
    e = (s + noise(1, 2000)).requires_grad_()
    value = ci_sdr(s, e, filter_length=32)
    value.backward()
    assert ci_sdr(s, e + e.grad, filter_length=32) > value
    assert float(ci_sdr(s, s, soft_maximum=20)) == pytest.approx(20, abs=1e-6)
    assert not sdr(s, e).requires_grad


# --- resampling ---------------------------------------------------------------------------------------------------


@few
@given(st.sampled_from([(22050, 16000), (8000, 16000), (16000, 10000), (44100, 24000), (48000, 8000)]), st.floats(0.05, 0.8))
def test_a_tone_stays_the_tone(rates, place):
    old, new = rates
    hertz = place * min(rates) / 2
    x = torch.sin(2 * math.pi * hertz * torch.arange(old // 4, dtype=torch.float64) / old)
    y = resample(x, old, new)
    assert len(y) == resampled_length(len(x), old, new)
    wanted = torch.sin(2 * math.pi * hertz * torch.arange(len(y), dtype=torch.float64) / new)
    edge = len(y) // 4
    torch.testing.assert_close(y[edge:-edge], wanted[edge:-edge], rtol=0, atol=1e-4)


def test_resampling_keeps_out_what_the_new_rate_cannot_hold():
    x = torch.sin(2 * math.pi * 6000 * torch.arange(16000, dtype=torch.float64) / 16000)
    assert resample(x, 16000, 8000)[1000:-1000].abs().max() < 1e-4
    assert torch.equal(resample(x, 16000, 16000), x)
    batch, lengths = torch.full((2, 3000), float("nan"), dtype=torch.float64), torch.tensor([3000, 1234])
    batch[0], batch[1, :1234] = x[:3000], x[100:1334]
    y = resample(batch, 16000, 22050, lengths=lengths)
    torch.testing.assert_close(y[1, :1701], resample(x[100:1334], 16000, 22050))
    assert not y[1, 1701:].any()


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("s", "e", "error", "match"),
    [
        (torch.zeros(9000, dtype=torch.int16), torch.zeros(9000), TypeError, "reference must be a floating-point waveform"),
        (torch.zeros(9000), torch.full((9000,), float("nan")), ValueError, "estimate must be finite"),
        (torch.full((9000,), float("inf")), torch.zeros(9000), ValueError, "reference must be finite"),
        (torch.zeros(9000), torch.zeros(8999), ValueError, r"shape of reference, \[9000\] \(trim it first\), got \[8999\]"),
        (torch.zeros(9000, 2), torch.zeros(9000, 2), ValueError, "time on its last axis"),
        (torch.zeros(0, 9000), torch.zeros(0, 9000), ValueError, "hold samples"),
        (torch.zeros(0), torch.zeros(0), ValueError, "hold samples"),
        (torch.zeros(1, 1, 1, 9000), torch.zeros(1, 1, 1, 9000), ValueError, r"must have shape \[T\]"),
        ([0.0] * 9000, torch.zeros(9000), TypeError, "reference must be a torch.Tensor, got list"),
    ],
)  # fmt: skip
def test_bad_waveforms(name, s, e, error, match):
    with pytest.raises(error, match=match):
        ALL[name](s, e)


@pytest.mark.parametrize(
    ("lengths", "error", "match"),
    [
        (torch.tensor([9000.0, 1]), TypeError, "integers"),
        (torch.tensor([9000]), ValueError, r"shape \[2\]"),
        (torch.tensor([0, 9000]), ValueError, r"in \[1, 9000\], got 0"),
        (torch.tensor([9001, 9000]), ValueError, "got 9000 to 9001"),
        ([9000, 9000], TypeError, "lengths must be a torch.Tensor"),
    ],
)  # fmt: skip
def test_bad_lengths(lengths, error, match):
    for metric in ALL.values():
        with pytest.raises(error, match=match):
            metric(noise(0, 2, 9000), noise(1, 2, 9000), lengths)


def test_other_bad_arguments():
    s = noise(0, 600)
    with pytest.raises(ValueError, match="None for a single waveform"):
        snr(s, s, torch.tensor([600]))
    with pytest.raises(ValueError, match=r"at least 512 samples, got 511 in item 1"):
        sdr(s.expand(2, -1), s.expand(2, -1), torch.tensor([600, 511]))
    with pytest.raises(TypeError, match="sample_rate"):
        mel_distance(s, s, 16000.0)
    with pytest.raises(ValueError, match="hop"):
        mel_distance(s, s, 16000, window=64, hop=65)
    with pytest.raises(ValueError, match="resolutions"):
        multi_resolution_stft_distance(s, s, resolutions=())
    with pytest.raises(ValueError, match="to_rate"):
        resample(s, 16000, 0)
    with pytest.raises(TypeError, match="from_rate"):
        resample(s, 16000.0, 8000)


def test_pesq_without_its_package(monkeypatch):
    kept = builtins.__import__
    blocked = lambda name, *rest: (_ for _ in ()).throw(ImportError(name)) if name == "pesq" else kept(name, *rest)  # noqa: E731
    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(MissingDependencyError, match="pip install pesq"):
        pesq(noise(0, 16000), noise(1, 16000), 16000)
    with pytest.raises(ValueError, match="sample_rate must be one of 8000, 16000"):
        pesq(noise(0, 16000), noise(1, 16000), 44100)


def test_pesq_names_the_items_without_a_value(monkeypatch):
    """The package divides by zero on a silent estimate and finds no utterance in a silent reference: nan, and the rest stands."""

    class NoUtterancesError(Exception):
        pass

    def measured(rate, s, e, mode):
        if not s.any() or not e.any():
            raise ValueError("cannot convert float NaN to integer")
        if np.abs(s).max() < 0.01:
            raise NoUtterancesError
        return 3.0

    library = types.SimpleNamespace(pesq=measured, NoUtterancesError=NoUtterancesError)
    monkeypatch.setitem(sys.modules, "pesq", library)
    s = noise(0, 5, 16000)
    e = s.clone()
    e[1], s[2], s[3] = 0, 0, s[3] / 1000
    with pytest.warns(UserWarning, match="3 of 5 clips .*: items 1, 2, 3"):
        values = pesq(s, e, 16000)
    assert values.isnan().tolist() == [False, True, True, True, False]


@pytest.mark.parametrize("rate", [8000, 16000])
def test_pesq_of_the_package_on_silence(rate):
    pytest.importorskip("pesq")
    s = speechlike(0, 2 * rate)[None]
    with pytest.warns(UserWarning, match="items 1, 2"):
        values = pesq(torch.cat([s, s, s * 0]), torch.cat([s + noise(1, *s.shape) / 100, s * 0, s]), rate)
    assert values.isnan().tolist() == [False, True, True]
