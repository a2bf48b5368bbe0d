"""LPIPS with VGG16 as a training loss, in plain torch: training needs no metric library."""

from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.images import to_unit

VGG = "hub/checkpoints/vgg16-397923af.pth"
LINEAR = "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"
# Convolutions of VGG16 by their index in torchvision's `features`; pooling separates the stages.
WIDTHS = (64, 128, 256, 512, 512)  # channels of the stages
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Lpips(nn.Module):
    """LPIPS v0.1 (Zhang et al., CVPR 2018): distances of unit-normalised VGG16 features, weighted per channel.

    `weights` is the folder that the stage `download` fills; None: meta tensors, which only count. Frozen; only the
    first image gets gradients. Raises `FileNotFoundError` where the weights are missing.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: str | Path | None) -> None:
        super().__init__()
        vgg, linear = _shapes() if weights is None else (_load(Path(weights) / name) for name in (VGG, LINEAR))
        self.convs = nn.ModuleList(nn.ModuleList(_conv(vgg, i) for i in stage) for stage in STAGES)
        self.lines = nn.ParameterList(linear[f"lin{i}.model.1.weight"] for i in range(len(STAGES)))
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Both (B, 3, H, W) in [0, 1] -> (B,)."""
        with torch.no_grad():
            targets = self._features(target)
        distances = [
            ((a - b).square() * line).sum(1).mean((1, 2))
            for a, b, line in zip(self._features(x), targets, self.lines, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def _features(self, x: Tensor) -> list[Tensor]:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = []
        for i, stage in enumerate(self.convs):
            x = F.max_pool2d(x, 2) if i else x
            for conv in stage:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
            features.append(F.normalize(x.float(), dim=1, eps=1e-10))  # squares would overflow in half precision
        return features


def _conv(vgg: dict[str, Tensor], index: int) -> nn.Conv2d:
    weight = vgg[f"features.{index}.weight"]
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device=weight.device)
    conv.load_state_dict({"weight": weight, "bias": vgg[f"features.{index}.bias"]})
    return conv


def _shapes() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of VGG16 and of the linear layers as meta tensors."""
    vgg, linear, before = dict[str, Tensor](), dict[str, Tensor](), 3
    for i, (stage, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
        for index in stage:
            vgg[f"features.{index}.weight"] = torch.empty(width, before, 3, 3, device="meta")
            vgg[f"features.{index}.bias"] = torch.empty(width, device="meta")
            before = width
        linear[f"lin{i}.model.1.weight"] = torch.empty(1, width, 1, 1, device="meta")
    return vgg, linear


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: LPIPS weights are missing: run `dvc repro -f -s download`, or set lpips_weight: 0"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


class PerceptualLoss(nn.Module):
    """Weighted LPIPS of images in [-1, 1]; a weight of 0 needs no weights file and costs nothing. `weights` as `Lpips`.

    `official` repeats the released code, which passes [-1, 1] to a metric that expects [0, 1]. Raises
    `FileNotFoundError` where the weights are missing.
    """

    def __init__(self, weight: float, lpips_range: Literal["proper", "official"], weights: str | Path | None) -> None:
        super().__init__()
        self.weight, self.proper = weight, lpips_range == "proper"
        self.lpips = Lpips(weights) if weight else None

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Both (B, 3, H, W) in [-1, 1] -> (B,), weighted."""
        if self.lpips is None:
            return x.new_zeros(len(x))
        if self.proper:
            x, target = to_unit(x), to_unit(target)
        return self.weight * self.lpips(x, target)
