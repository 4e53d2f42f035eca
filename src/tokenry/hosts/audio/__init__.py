"""Audio codecs of transformers behind one layout."""

from tokenry.hosts.audio.layout import CodecLayout
from tokenry.hosts.audio.registry import host_of
from tokenry.hosts.audio.stages import Chain, Convolution, Elementwise, Residual, Stage

__all__ = ["Chain", "CodecLayout", "Convolution", "Elementwise", "Residual", "Stage", "host_of"]
