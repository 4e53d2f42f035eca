"""A small image autoencoder with any quantizer between its halves: the recipe of `tokenry train autoencoder`.

Images of at most 16 x 16 pixels pass through an MLP (8 x 8 digits: 64-128-4 tokens and back), larger ones through two
strided convolutions (28 x 28: 7 x 7 tokens; 32 x 32: 8 x 8). Training is AdamW on the mean squared error plus the
quantizer's own loss. Every figure in the log is of the test images, so a line depends on the weights alone, and a run that
was interrupted and resumed is the same, line by line and bit by bit, as one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checkpoint import write_checkpoint, write_text
from tokenry.core.checks import check_int, check_range
from tokenry.core.descent import Plan, descend, kept_log
from tokenry.core.seeding import seeded
from tokenry.lab.beds.pictures.image_sets import ImageSet
from tokenry.lab.beds.signals.named_quantizers import build_quantizer

LOG, RECIPE, QUANTIZER = "log.jsonl", "recipe.json", "quantizer"
_MLP_SIDE = 16

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class AutoencoderRecipe:
    """What a run depends on.

    Attributes:
        data: name of the images, or a folder; recorded.
        quantizer: name, see `build_quantizer`.
        codebook_size: codes of each book.
        options: of the quantizer.
        dim: width of a token.
        hidden: width of the MLP, or channels of the convolutions.
        tokens: tokens of an image (MLP only; convolutions have one for every 4 x 4 pixels).
        steps: optimizer steps.
        batch: images of a step.
        learning_rate: of AdamW.
        seed: of weights, quantizer and order of the images.
    """

    data: str = "digits"
    quantizer: str = "vq"
    codebook_size: int = 256
    options: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 16
    hidden: int = 128
    tokens: int = 4
    steps: int = 1000
    batch: int = 128
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dim", "hidden", "tokens", "steps", "batch"):
            check_int(name, getattr(self, name), 1)
        check_int("seed", self.seed, 0)
        check_range("learning_rate", self.learning_rate, 0.0, low_open=True)


class Reconstruction(NamedTuple):
    """Images [B,C,H,W] from their tokens, what the quantizer returned, and the tokens before it [B,T,D]."""

    images: Tensor
    quantized: Any
    tokens: Tensor


class ImageAutoencoder(nn.Module):
    """Encoder, quantizer and decoder for images of one size.

    Args:
        shape: (C, H, W) of an image; sides above 16 must be multiples of 4.
        quantizer: takes [B,T,D].
        dim: D, width of a token.
        hidden: width of the MLP, or channels of the convolutions.
        tokens: T of the MLP.
    """

    def __init__(
        self, shape: tuple[int, int, int], quantizer: nn.Module, *, dim: int = 16, hidden: int = 128, tokens: int = 4
    ) -> None:
        super().__init__()
        channels, height, width = shape
        pixels = channels * height * width
        self.convolutional = max(height, width) > _MLP_SIDE
        self.quantizer = quantizer
        if not self.convolutional:
            self.grid = (tokens, 1)
            self.encoder = nn.Sequential(
                nn.Flatten(),
                nn.Linear(pixels, hidden),
                nn.ReLU(),
                nn.Linear(hidden, tokens * dim),
                nn.Unflatten(1, (tokens, dim)),
            )
            self.decoder = nn.Sequential(
                nn.Flatten(), nn.Linear(tokens * dim, hidden), nn.ReLU(), nn.Linear(hidden, pixels), nn.Unflatten(1, shape)
            )
            return
        if height % 4 or width % 4:
            raise ValueError(f"images above {_MLP_SIDE} pixels must have sides that are multiples of 4, got {list(shape)}")
        self.grid = (height // 4, width // 4)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, hidden // 2 or 1, 4, 2, 1), nn.ReLU(), nn.Conv2d(hidden // 2 or 1, hidden, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(hidden, dim, 1), nn.Flatten(2),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Unflatten(2, self.grid), nn.Conv2d(dim, hidden, 3, 1, 1), nn.ReLU(),
            nn.ConvTranspose2d(hidden, hidden // 2 or 1, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(hidden // 2 or 1, channels, 4, 2, 1),
        )  # fmt: skip

    def encode(self, images: Tensor) -> Tensor:
        """Tokens [B,T,D] before quantization."""
        tokens = self.encoder(images)
        return tokens.transpose(1, 2) if self.convolutional else tokens

    def decode(self, codes: Tensor) -> Tensor:
        """Images of quantized tokens [B,T,D]."""
        return self.decoder(codes.transpose(1, 2) if self.convolutional else codes)

    def forward(self, images: Tensor) -> Reconstruction:
        """Images [B,C,H,W] -> their reconstruction."""
        tokens = self.encode(images)
        quantized = self.quantizer(tokens)
        return Reconstruction(self.decode(quantized.codes), quantized, tokens)


def build_autoencoder(recipe: AutoencoderRecipe, shape: tuple[int, int, int]) -> ImageAutoencoder:
    """The untrained model of a recipe; weights depend on its seed alone."""
    quantizer = build_quantizer(recipe.quantizer, recipe.dim, recipe.codebook_size, {"seed": recipe.seed, **recipe.options})
    with seeded(recipe.seed):
        return ImageAutoencoder(shape, quantizer, dim=recipe.dim, hidden=recipe.hidden, tokens=recipe.tokens)


class Evaluation(NamedTuple):
    """Mean squared error of each image [n], indices of all tokens, and mean squared distance of tokens to their codes."""

    errors: Tensor
    indices: Tensor
    distance: float


@torch.no_grad()
def evaluate(model: ImageAutoencoder, images: Tensor, batch: int = 512) -> Evaluation:
    """Reconstruct `images` in evaluation mode; the model's mode is restored."""
    training = model.training
    model.eval()
    errors, indices, distance = [], [], 0.0
    for part in images.split(batch):
        made = model(part)
        errors.append((made.images - part).square().flatten(1).mean(dim=1))
        indices.append(made.quantized.indices)
        distance += float((made.quantized.codes - made.tokens).square().mean()) * len(part)
    model.train(training)
    return Evaluation(torch.cat(errors), torch.cat(indices), distance / len(images))


def health(model: ImageAutoencoder, images: Tensor) -> dict[str, Any]:
    """Test error and codebook figures for the log; lists where there are several books."""
    from tokenry.codecs import usage

    found = evaluate(model, images)
    quantizer: Any = model.quantizer
    several = found.indices.dim() == 3
    stats = usage(found.indices, quantizer.codebook_size, books=several)
    figures = {name: getattr(stats, name).tolist() for name in ("perplexity", "usage", "dead")}
    return {"test_mse": float(found.errors.mean()), **figures, "vectors": found.indices[..., 0].numel() if several
            else found.indices.numel(), "bits": float(quantizer.bits)}  # fmt: skip


class Trained(NamedTuple):
    """A model in evaluation mode, its log, and whether it has done all its steps."""

    model: ImageAutoencoder
    log: list[dict[str, Any]]
    complete: bool


def train_autoencoder(
    recipe: AutoencoderRecipe,
    images: ImageSet,
    *,
    out: str | Path | None = None,
    device: str = "cpu",
    log_every: int = 100,
    save_every: int = 100,
    report: Report | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train, or go on from the checkpoint in `out`.

    Args:
        recipe: what to train.
        images: training and test images.
        out: folder of ``log.jsonl``, ``training.safetensors`` and, at the end, ``quantizer/``; None keeps nothing.
        device: where.
        log_every: steps between two lines of the log; the last step has one too.
        save_every: steps between two checkpoints.
        report: called with every line of the log.
        stop: asked after every step; True saves a checkpoint and ends the run early.

    Raises:
        ValueError: `out` holds a run of another recipe.
    """
    check_int("log_every", log_every, 1)
    check_int("save_every", save_every, 1)
    model = build_autoencoder(recipe, tuple(images.train.shape[1:])).to(device)  # type: ignore[arg-type]
    train, test = images.train.to(device), images.test.to(device)
    folder = None if out is None else Path(out)
    if folder is not None:
        _begin(folder, recipe)

    def loss_of(step: int) -> dict[str, Any]:
        batch = train[_rows(len(train), recipe, step).to(device)]
        made = model(batch)
        error = F.mse_loss(made.images, batch)
        return {"loss": error + made.quantized.loss, "train_mse": error}

    def watch(row: dict[str, Any]) -> None:
        row |= health(model, test)
        if folder is not None:
            with (folder / LOG).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
        if report is not None:
            report(row)

    plan = Plan(steps=recipe.steps, learning_rate=recipe.learning_rate, clip=None, warmup=0.0, decay="none")
    log = descend(
        model, loss_of, plan, folder=folder, settings=asdict(recipe), log_every=log_every, save_every=save_every, watch=watch,
        stop=stop,
    )  # fmt: skip
    model.eval()
    complete = bool(log) and log[-1]["step"] == recipe.steps
    if folder is not None and complete:
        quantizer: Any = model.quantizer
        quantizer.save_pretrained(folder / QUANTIZER)
        write_checkpoint(folder / "model", model, asdict(recipe) | {"shape": list(train.shape[1:])})
    return Trained(model, log, complete)


def _rows(count: int, recipe: AutoencoderRecipe, step: int) -> Tensor:
    """Rows of the batch of a step: an epoch's order depends on the seed and the epoch, so no state has to be kept."""
    batch = min(recipe.batch, count)
    epoch, place = divmod(step, count // batch)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch))
    return order[place * batch : (place + 1) * batch]


def _begin(folder: Path, recipe: AutoencoderRecipe) -> None:
    """Write the recipe, or refuse another's folder; the lines of a log that its checkpoint does not hold are made again."""
    described = json.dumps(asdict(recipe), indent=2, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECIPE
    if path.exists() and path.read_text(encoding="utf-8") != described:
        raise ValueError(f"{folder} holds a run of another recipe ({path.name}); choose another folder or remove it")
    write_text(path, described)
    write_text(folder / LOG, "".join(json.dumps(row) + "\n" for row in kept_log(folder)))
