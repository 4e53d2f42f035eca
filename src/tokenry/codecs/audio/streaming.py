"""Codes while audio arrives, and long recordings in bounded memory: the same codes as in one pass.

Tolerance: the latents agree with one pass to float rounding (about 1e-5 of their size in float32); a code differs only where
two codes of a book are equally near within that rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenry.codecs.audio.codes import RowEncoder, check_floating, evaluating, float_dtype
from tokenry.core.checks import check_finite, check_tensor
from tokenry.hosts.audio import Stage


class CodeStream:
    """Codes of a stream of audio at the codec's rate. One stream is one batch of recordings; make a new one for the next.

    Args:
        codec: whose codes these are.
        stages: wave [B,C,n] -> latents [B,D,t], piece by piece.
        quantize: (latents [B,t,D], books) -> codes [B,t,books].
        books: of the codes.
        start: samples to wait for before the first piece goes in (a reflecting padding reads ahead at the start); a shorter
            recording is encoded as a whole when it ends.
    """

    def __init__(
        self, codec: RowEncoder, stages: Stage, quantize: Callable[[Tensor, int], Tensor], books: int, *, start: int = 1
    ) -> None:
        self.codec, self.stages, self.quantize, self.books, self.start = codec, stages, quantize, books, start
        self.samples = 0
        self.frames = 0
        self._held: Tensor | None = None
        self._running = self._done = False

    @property
    def scales(self) -> Tensor | None:
        """Loudness of the chunks so far [B,chunks], for codecs that normalise it; else None."""
        return getattr(self.stages, "scales", None)

    def push(self, wave: Tensor) -> Tensor:
        """Feed [B,n] (or [B,C,n]); returns the codes [B,t,M] that are final by now, t >= 0.

        Raises:
            TypeError, ValueError: another shape than before, samples that are not finite, or a stream that is finished.
        """
        return self._feed(self._checked(wave), last=False)

    def finish(self) -> Tensor:
        """The rest of the codes [B,t,M]; a started frame is filled with zeros, as `AudioCodec.encode` does.

        Raises:
            ValueError: less than one frame was fed, or the stream is finished already.
        """
        if self._done:
            raise ValueError("the stream is finished; make a new one with codec.stream()")
        if self._held is None or self.samples < self.codec.layout.hop_length:
            raise ValueError(f"a stream must have at least one frame of {self.codec.layout.hop_length} samples")
        missing = self.codec.layout.samples(self.codec.layout.frames(self.samples)) - self.samples
        shape = (*self._held.shape[:2], missing)
        codes = self._feed(self._held.new_zeros(shape), last=True)
        self._done = True
        return codes

    @torch.no_grad()
    def _feed(self, wave: Tensor, last: bool) -> Tensor:
        with evaluating(self.codec):
            if not self._running:
                wave = wave if self._held is None else torch.cat([self._held, wave], dim=-1)
                self._held = wave
                if wave.shape[-1] < self.start:
                    return self._whole(wave) if last else self._none(wave)
                self._running = True
            self._held = wave[..., :0]
            latents = self.stages.push(wave, last).transpose(1, 2)
            codes = self.quantize(latents, self.books) if latents.shape[1] else self._none(wave)
        self.frames += codes.shape[1]
        return codes

    def _whole(self, wave: Tensor) -> Tensor:
        codes, _ = self.codec.encode_rows(wave, self.books)
        self.frames += codes.shape[1]
        return codes

    def _none(self, wave: Tensor) -> Tensor:
        return torch.zeros(len(wave), 0, self.books, dtype=torch.int64, device=wave.device)

    def _checked(self, wave: Tensor) -> Tensor:
        check_tensor("wave", wave)
        if self._done:
            raise ValueError("the stream is finished; make a new one with codec.stream()")
        check_floating(wave)
        wave = wave[:, None] if wave.dim() == 2 else wave
        if wave.dim() != 3 or wave.shape[1] != self.codec.layout.channels:
            raise ValueError(f"wave must be [B, n] or [B, {self.codec.layout.channels}, n], got {list(wave.shape)}")
        if self._held is not None and len(wave) != len(self._held):
            raise ValueError(f"wave must have the {len(self._held)} rows that the stream began with, got {len(wave)}")
        check_finite("wave", wave)
        self.samples += wave.shape[-1]
        return wave.to(float_dtype(self.codec))
