"""Banks of vectors to quantize and to search: sentence embeddings, CNN feature maps, digits, a correlated mixture.

The real ones are computed once from assets and kept in the cache. A bank is split into training and test vectors by a seed, so
that two runs with one seed see the same vectors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenry.core.checks import check_choice, check_int
from tokenry.lab.assets.folders import derived
from tokenry.lab.sources.cnn import efficientnet_lite0, photographs
from tokenry.lab.sources.models import minilm, mnist_digits, sklearn_digits
from tokenry.lab.sources.text import domain_corpus

SENTENCES = 20_000
DOMAINS = ("legal", "financial", "technical", "literature", "email")
_WORDS = (5, 30)
_PER_DOMAIN = 6_000
_TOKENS = 48
_STAGE, _WINDOW = 4, 224


@dataclass(frozen=True)
class FeatureBank:
    """Vectors float32: `train` [N,D] to learn from and `test` [M,D] to judge on, drawn without overlap."""

    name: str
    train: Tensor
    test: Tensor

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return self.train.shape[1]


def feature_bank(name: str, train: int, test: int, *, seed: int = 0) -> FeatureBank:
    """`train` and `test` vectors of a bank, drawn by `seed`.

    Args:
        name: "sentences" (MiniLM, D = 384), "photos" (EfficientNet-Lite0 maps at stride 16, D = 112), "digits" (8 x 8 pixels,
            D = 64), "mnist" (28 x 28 pixels, D = 784), "mixture" (correlated clusters, D = 32), "isotropic" (one normal
            distribution, D = 32).
        train: how many to learn from.
        test: how many to judge on.
        seed: of the draw, and of the vectors where they are synthetic.

    Raises:
        ValueError: an unknown name, or more vectors than the bank has.
        AssetMissingError: what the bank is made of is not here.
    """
    check_choice("name", name, tuple(_BANKS))
    check_int("train", train, 1)
    check_int("test", test, 1)
    check_int("seed", seed, 0)
    if name in ("mixture", "isotropic"):
        vectors = gaussian_mixture(train + test, isotropic=name == "isotropic", seed=seed)
    else:
        vectors = _BANKS[name]()
    if train + test > len(vectors):
        raise ValueError(f"train + test must be <= {len(vectors)}, the vectors of bank {name!r}, got {train + test}")
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    return FeatureBank(name, vectors[order[:train]].contiguous(), vectors[order[train : train + test]].contiguous())


def gaussian_mixture(
    count: int, dim: int = 32, *, clusters: int = 64, spread: float = 0.25, isotropic: bool = False, seed: int = 0
) -> Tensor:
    """Vectors [count,dim] around `clusters` centres, mixed by a random full matrix so that coordinates depend on each other.

    `isotropic` draws from one standard normal distribution instead, where no quantizer has much to find.
    """
    check_int("count", count, 1)
    check_int("clusters", clusters, 1)
    generator = torch.Generator().manual_seed(seed)
    if isotropic:
        return torch.randn(count, dim, generator=generator)
    centres = torch.randn(clusters, dim, generator=generator)
    mixing = torch.randn(dim, dim, generator=generator) / dim**0.5
    own = torch.randint(clusters, (count,), generator=generator)
    return (centres[own] + spread * torch.randn(count, dim, generator=generator)) @ mixing


def sentences(count: int = SENTENCES, *, seed: int = 0) -> list[str]:
    """Real English sentences of 5 to 30 words, each once, from licences, handbooks, plays and e-mails; order by `seed`."""
    found: list[str] = []
    generator = random.Random(seed)
    for domain in DOMAINS:
        own = list(dict.fromkeys(s for text in domain_corpus(domain) for s in _sentences_of(text)))
        generator.shuffle(own)
        found += own[:_PER_DOMAIN]
    found = list(dict.fromkeys(found))
    if count > len(found):
        raise ValueError(f"count must be <= {len(found)}, the sentences there are, got {count}")
    generator.shuffle(found)
    return found[:count]


def _sentences_of(text: str) -> list[str]:
    pieces = (re.sub(r"\s+", " ", piece).strip() for piece in re.split(r"(?<=[.!?])\s+|\n\s*\n", text))
    low, high = _WORDS
    return [p for p in pieces if low <= len(p.split()) <= high and sum(c.isalpha() or c == " " for c in p) > 0.8 * len(p)]


def _sentence_vectors() -> Tensor:
    return _cached("minilm", f"sentences-{SENTENCES}", lambda: embed_sentences(sentences()).half()).float()


@torch.inference_mode()
def embed_sentences(texts: list[str], batch: int = 128) -> Tensor:
    """MiniLM sentence embeddings [n,384] of unit norm: mean over the tokens of the last layer."""
    loaded = minilm()
    tokenizer: Any = loaded.tokenizer
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
    vectors = torch.empty(len(texts), 384)
    for start in range(0, len(texts), batch):
        rows = order[start : start + batch]
        encoded = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt")
        hidden = loaded.model(**encoded).last_hidden_state
        mask = encoded["attention_mask"][..., None].to(hidden.dtype)
        vectors[rows] = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1)
    return vectors


def _photo_vectors() -> Tensor:
    return _cached("efficientnet", "photo-maps", lambda: photo_features().half()).float()


@torch.inference_mode()
def photo_features() -> Tensor:
    """Feature vectors [n,112] at stride 16 of windows 224 x 224 that cover ten photographs at two sizes."""
    model = efficientnet_lite0()
    vectors = []
    for picture in photographs():
        for shorter in (224, 448):
            for window in _windows(picture, shorter).split(8):
                vectors.append(model.features(window, _STAGE).movedim(1, -1).reshape(-1, 112))
    return torch.cat(vectors)


def _windows(picture: Tensor, shorter: int) -> Tensor:
    """Uint8 windows [n,224,224,3] of a picture scaled to a shorter side, without overlap but for the last ones."""
    height, width = picture.shape[:2]
    scale = shorter / min(height, width)
    size = (max(_WINDOW, round(height * scale)), max(_WINDOW, round(width * scale)))
    scaled = F.interpolate(picture.movedim(-1, 0)[None].float(), size=size, mode="bilinear", antialias=True)[0]
    scaled = scaled.round().clamp(0, 255).to(torch.uint8).movedim(0, -1)
    tops, lefts = (sorted({*range(0, side - _WINDOW + 1, _WINDOW), side - _WINDOW}) for side in size)
    return torch.stack([scaled[t : t + _WINDOW, left : left + _WINDOW] for t in tops for left in lefts])


def _cached(asset: str, label: str, make: Callable[[], Tensor]) -> Tensor:
    """Vectors kept as float16 beside the asset they were computed from."""
    from safetensors.torch import load_file, save_file

    def build(target: Path) -> None:
        save_file({"vectors": make().contiguous()}, target / "vectors.safetensors")

    return load_file(derived(asset, label, build) / "vectors.safetensors")["vectors"]


_BANKS: dict[str, Callable[[], Tensor]] = {
    "sentences": _sentence_vectors,
    "photos": _photo_vectors,
    "digits": lambda: sklearn_digits().images.flatten(1),
    "mnist": lambda: mnist_digits().images.flatten(1),
    "mixture": lambda: gaussian_mixture(1),
    "isotropic": lambda: gaussian_mixture(1, isotropic=True),
}
