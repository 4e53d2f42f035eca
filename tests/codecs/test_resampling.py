"""Change of sample rate at any pair of rates: scipy's low-pass, one result by three ways, memory, gradients."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenry.codecs.audio.metrics import resample, resampling
from tokenry.codecs.audio.metrics.resampling import _LowPass

few = settings(max_examples=25, deadline=None)
ODD = [(16001, 16000), (44056, 48000), (44101, 16000), (16000, 44101)]


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 4


class Held(TorchDispatchMode):
    """Largest number of bytes that tensors made inside hold at one time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                self.known[key] = tensor.untyped_storage().nbytes()
                self.live += self.known[key]
                self.peak = max(self.peak, self.live)
                weakref.finalize(tensor.untyped_storage(), self.gone, key)
        return out

    def gone(self, key):
        self.live -= self.known.pop(key, 0)


# --- against scipy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(16000, 8000), (44100, 16000), (8000, 22050), *ODD, (192001, 16000), (3, 1601)])
def test_the_low_pass_is_that_of_resample_poly(old, new):
    """With its settings equal to scipy's but for the gain of a phase, and with ours when scipy is given our low-pass."""
    signal = pytest.importorskip("scipy.signal")
    x = noise(old, 3000 if old > 100 else 60).numpy()
    theirs = signal.resample_poly(x, new, old)
    ours = resample(torch.from_numpy(x), old, new, zeros=10, rolloff=1.0, beta=5.0).numpy()
    assert ours.shape == theirs.shape
    assert np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)) < 1e-3
    common = math.gcd(old, new)
    low = _LowPass(old // common, new // common, resampling.ZEROS, resampling.ROLLOFF, resampling.BETA)
    half = low.width * low.new
    taps = low.at(torch.arange(-half, half + 1, dtype=torch.float64) / low.new).numpy()
    given = signal.resample_poly(x, new, old, window=taps / taps.sum())
    assert np.abs(resample(torch.from_numpy(x), old, new).numpy() - given).max() < 1e-5


@pytest.mark.parametrize(("old", "new"), ODD)
def test_band_limits_at_odd_rates(old, new):
    """The level of tones around the lower Nyquist frequency: what the docstring says, at any pair."""
    nyquist = min(old, new) / 2
    time = torch.arange(old // 4, dtype=torch.float64) / old
    levels = {}
    for place in (0.5, 0.9, 0.95, 1.1):
        if place * nyquist < old / 2:
            y = resample(torch.sin(2 * math.pi * place * nyquist * time), old, new)
            levels[place] = 10 * math.log10(float(y[len(y) // 4 : -len(y) // 4].square().mean()) * 2 + 1e-30)
    assert levels[0.5] == pytest.approx(0, abs=1e-3)
    assert levels[0.9] == pytest.approx(-0.4, abs=0.1)
    assert levels[0.95] == pytest.approx(-6, abs=0.1)
    assert levels.get(1.1, -100) < -95


# --- one result by three ways ------------------------------------------------------------------------------------------


@few
@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 60), st.sampled_from([1 << 17, 97, 21]))
def test_the_ways_agree(old, new, size, block):
    """One convolution, a bank, and the table, whatever the size of a block, give one result."""
    x = noise(size, 2, size)
    lengths = torch.tensor([size, max(1, size // 2)])
    found = []
    for dense, bank in ((resampling.DENSE, resampling.BANK), (0, resampling.BANK), (0, 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resampling, "DENSE", dense)
            patch.setattr(resampling, "BANK", bank)
            patch.setattr(resampling, "BLOCK", block)
            found.append(resample(x, old, new, lengths=lengths))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=2e-5)  # the gain of a phase


@pytest.mark.parametrize("bank", [0, 1 << 22])
def test_gradients_through_blocks(bank, monkeypatch):
    x = noise(0, 2, 50).requires_grad_()
    wanted = torch.autograd.grad(resample(x, 7, 5).square().sum(), x)[0]
    monkeypatch.setattr(resampling, "DENSE", 0)
    monkeypatch.setattr(resampling, "BANK", bank)
    monkeypatch.setattr(resampling, "BLOCK", 64)
    torch.testing.assert_close(torch.autograd.grad(resample(x, 7, 5).square().sum(), x)[0], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dense", "bank"), [(1 << 19, 0), (0, 1 << 22), (0, 0)])
def test_filters_made_in_inference_mode_serve_training(dense, bank, monkeypatch):
    for cache in (resampling._kernel, resampling._bank, resampling._table):
        cache.cache_clear()
    monkeypatch.setattr(resampling, "DENSE", dense)
    monkeypatch.setattr(resampling, "BANK", bank)
    x = noise(0, 60)
    with torch.inference_mode():
        made = resample(x, 9, 5)
    y = resample(x.clone().requires_grad_(), 9, 5)
    y.sum().backward()
    assert torch.equal(y.detach(), made)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "seconds", "learn"),
    [
        (16001, 16000, 2, False), (16001, 16000, 2, True), (44056, 48000, 1, True), (44101, 16000, 1, False),
        (192001, 16000, 0.3, True), (11025, 48000, 2, False), (44100, 16000, 2, True), (1_000_003, 48000, 0.05, False),
        (2**31 - 1, 16000, 1e-4, False), (1, 2**16 + 1, 16, False), (2**31 - 1, 1, 1e-4, False),
    ],
)  # fmt: skip
def test_memory_is_bounded_at_any_pair(old, new, seconds, learn):
    """Besides input and output, less than 64 MB; both are counted a few times for the checks and the joining of blocks."""
    resampling._bank.cache_clear()
    resampling._kernel.cache_clear()
    x = noise(0, math.ceil(old * seconds)).float().requires_grad_(learn)
    with Held() as held:
        y = resample(x, old, new)
        if learn:
            y.sum().backward()
    assert held.peak - 4 * 4 * (x.numel() + y.numel()) < 64 * 2**20
    assert held.peak > 4 * y.numel()  # it is measured
    assert bool(y.isfinite().all())


def test_rates_that_no_header_has():
    with pytest.raises(ValueError, match="from_rate"):
        resample(noise(0, 100), 2**40, 16000)
