"""Whisper tiny.en out of a CTranslate2 file: its variables by name, and the same weights under transformers' names."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenry.errors import AssetDamagedError
from tokenry.lab.assets.folders import derived, fetch

_TYPES = {0: np.dtype("<f4"), 1: np.dtype("i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}
_HEADS, _START, _END, _PLAIN = 6, 50257, 50256, 50362  # end of text, start of transcript, no time stamps


def whisper_folder(*, offline: bool | None = None) -> Path:
    """Folder with Whisper tiny.en as `WhisperForConditionalGeneration` can load it, and its tokenizer; converted once."""
    source = fetch("whisper", offline=offline)
    return derived("whisper", "transformers", lambda target: _convert(source, target))


def _convert(source: Path, target: Path) -> None:
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

    weights = next(source.glob("**/model.bin"), None)
    if weights is None:
        raise AssetDamagedError("asset 'whisper' is damaged: it holds no model.bin; run: tokenry assets get whisper --repair")
    state = renamed(read_ctranslate2(weights))
    blocks = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("model.encoder.layers."))
    wide, vocabulary = state["model.decoder.embed_tokens.weight"].shape[1], len(state["model.decoder.embed_tokens.weight"])
    config = WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=state["model.encoder.conv1.weight"].shape[1], d_model=wide,
        encoder_layers=blocks, decoder_layers=blocks, encoder_attention_heads=_HEADS, decoder_attention_heads=_HEADS,
        encoder_ffn_dim=4 * wide, decoder_ffn_dim=4 * wide, decoder_start_token_id=_START, bos_token_id=_END,
        eos_token_id=_END, pad_token_id=_END, suppress_tokens=None, begin_suppress_tokens=[220, _END],
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if set(missing) - {"proj_out.weight"} or unexpected:
        raise AssetDamagedError(f"asset 'whisper' does not fill the model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    generation: Any = model.generation_config
    generation.update(
        forced_decoder_ids=None, is_multilingual=False, no_timestamps_token_id=_PLAIN, max_length=448, return_timestamps=False
    )
    model.save_pretrained(target)
    tokens = next(source.glob("**/tokenizer.json"))
    PreTrainedTokenizerFast(tokenizer_file=str(tokens), eos_token="<|endoftext|>", pad_token="<|endoftext|>").save_pretrained(
        target
    )


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """Variables of a CTranslate2 model file by name, as float32; scalars (settings of the file) are left out.

    The file is little-endian: version, name and revision of the model, then name, shape, type and bytes per variable.
    """
    data = memoryview(path.read_bytes())
    try:
        return dict(_variables(data))
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise AssetDamagedError(f"{path.name} is not a CTranslate2 model file ({type(error).__name__}: {error})") from error


def _variables(data: memoryview) -> Iterator[tuple[str, Tensor]]:
    place = 0

    def take(layout: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from("<" + layout, data, place)
        place += struct.calcsize("<" + layout)
        return value

    def text() -> str:
        nonlocal place
        size = take("H")
        place += size
        return bytes(data[place - size : place]).rstrip(b"\0").decode()

    take("I")
    text()
    take("I")
    for _ in range(take("I")):
        name = text()
        shape = [take("I") for _ in range(take("B"))]
        kind, size = _TYPES[take("B")], take("I")
        values = np.frombuffer(data[place : place + size], kind)
        place += size
        if shape and kind.kind == "f":
            yield name, torch.from_numpy(values.astype(np.float32).reshape(shape))


def renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The variables under the names of `WhisperForConditionalGeneration`: fused projections apart, keys without bias."""
    state: dict[str, Tensor] = {}
    for name, value in found.items():
        parts = name.split("/")
        half = parts[0]
        if half not in ("encoder", "decoder"):
            continue
        leaf = {"gamma": "weight", "beta": "bias"}.get(parts[-1], parts[-1])
        if parts[1].startswith("layer_") and parts[1] != "layer_norm":
            prefix = f"model.{half}.layers.{parts[1][6:]}."
            state.update({prefix + key: x for key, x in _of_layer(parts[2:-1], leaf, value)})
        elif parts[1] == "embeddings":
            state["model.decoder.embed_tokens.weight"] = value
        elif parts[1] == "position_encodings":
            state[f"model.{half}.embed_positions.weight"] = value
        elif parts[1] in ("conv1", "conv2", "layer_norm"):
            state[f"model.{half}.{parts[1]}.{leaf}"] = value
    return state


_NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}


def _of_layer(parts: list[str], leaf: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    part, piece = parts[0], parts[1]
    if piece == "layer_norm":
        yield f"{_NORMS[part]}.{leaf}", value
    elif part == "ffn":
        yield f"fc{int(piece[-1]) + 1}.{leaf}", value
    else:
        # self-attention: q, k, v stacked, then out; attention to the encoder: q, then k, v stacked, then out
        names = {"linear_0": ("q", "k", "v"), "linear_1": ("out",)}
        if part == "attention":
            names = {"linear_0": ("q",), "linear_1": ("k", "v"), "linear_2": ("out",)}
        block = {"self_attention": "self_attn", "attention": "encoder_attn"}[part]
        for letter, rows in zip(names[piece], value.chunk(len(names[piece])), strict=True):
            if not (letter == "k" and leaf == "bias"):
                yield f"{block}.{letter}_proj.{leaf}", rows.clone()
