"""Loaders of pictures: EfficientNet-Lite0 as a source of feature maps, and real photographs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tokenry.core.checks import check_int, check_shape
from tokenry.errors import optional
from tokenry.lab.assets.folders import fetch
from tokenry.lab.sources.models import sample_photos
from tokenry.lab.sources.raw_weights import load_raw_weights

__all__ = ["PHOTOGRAPHS", "EfficientNetLite0", "efficientnet_lite0", "photographs"]

PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip
# expansion, channels, repeats, stride of the first, kernel (Tan and Le 2019, B0; without squeeze-and-excitation)
_STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
           (6, 320, 1, 1, 3))  # fmt: skip
_EPS = 1e-3


class _SameConv(nn.Conv2d):
    """A convolution whose output has ceil(n / stride) pixels; odd padding goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C',ceil(H/s),ceil(W/s)]."""
        pads: list[int] = []
        for size, kernel, stride in zip(reversed(x.shape[2:]), self.kernel_size, self.stride, strict=True):
            short = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [short // 2, short - short // 2]
        return super().forward(F.pad(x, pads))


class _Block(nn.Module):
    """Inverted bottleneck: expand, depthwise, project; a shortcut where nothing changes size."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, kernel: int) -> None:
        super().__init__()
        width = inputs * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width, _EPS), nn.ReLU6()]
        layers += [_SameConv(width, width, kernel, stride, groups=width, bias=False), nn.BatchNorm2d(width, _EPS), nn.ReLU6()]
        layers += [nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs, _EPS)]
        self.layers = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C',H',W']."""
        return x + self.layers(x) if self.shortcut else self.layers(x)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: 16 blocks, ReLU6, no squeeze-and-excitation; stages at strides 2, 4, 8, 16, 16, 32, 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_SameConv(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, _EPS), nn.ReLU6())
        stages, inputs = [], 32
        for expand, outputs, repeats, stride, kernel in _STAGES:
            blocks = [_Block(inputs, outputs, expand, stride, kernel)]
            blocks += [_Block(outputs, outputs, expand, 1, kernel) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(nn.Conv2d(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, _EPS), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def features(self, images: Tensor, stage: int | None = None) -> Tensor:
        """Feature map of uint8 images [B,H,W,3]: [B,1280,H/32,W/32], or that of a stage 0..6 before the head."""
        check_shape("images", images, "B H W 3")
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        x = self.stem((images.movedim(-1, 1).to(self.classifier.weight.dtype) - 127.0) / 128.0)
        last = len(self.stages) - 1 if stage is None else check_int("stage", stage, 0, len(self.stages) - 1)
        for layer in self.stages[: last + 1]:
            x = layer(x)
        return self.head(x) if stage is None else x

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B,1000] of the ImageNet classes for uint8 images [B,H,W,3] (224 x 224 in training)."""
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def efficientnet_lite0(*, offline: bool | None = None) -> EfficientNetLite0:
    """The trained network in evaluation mode."""
    return load_raw_weights("efficientnet", EfficientNetLite0(), offline=offline)


def photographs(*, offline: bool | None = None) -> list[Tensor]:
    """Ten real colour pictures, uint8 [H,W,3] each: the two of scikit-learn and eight of scikit-image."""
    image: Any = optional("PIL.Image", "lab")
    folder = fetch("photographs", offline=offline)
    pictures = list(sample_photos())
    for name in PHOTOGRAPHS:
        with image.open(next(folder.glob(f"**/{name}"))) as opened:
            rgb = opened.convert("RGB")
            pictures.append(torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8).view(rgb.height, rgb.width, 3))
    return pictures
