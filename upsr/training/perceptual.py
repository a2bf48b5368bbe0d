"""LPIPS and DISTS as training losses, in plain torch: training needs no metric library."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from upsr.config import UnetRecipe
from upsr.images import to_unit


class Conv(NamedTuple):
    """A convolution, by its number in torchvision's `features`."""

    number: int
    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Net(NamedTuple):
    """The network of an LPIPS. The features of a stage are those of its last convolution, after its ReLU."""

    key: str
    """The key of `params.yaml` that is 0 where this LPIPS is not used."""
    weights: str
    linear: str
    pooling: int
    """Side of the maximum pooling, of stride 2, before each stage with a number in `pooled`."""
    pooled: tuple[int, ...]
    stages: tuple[tuple[Conv, ...], ...]

    def shapes(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights of the network and of the linear layers as meta tensors."""
        network, linear, before = dict[str, Tensor](), dict[str, Tensor](), 3
        for i, stage in enumerate(self.stages):
            for conv in stage:
                shape = (conv.width, before, conv.kernel, conv.kernel)
                network[f"features.{conv.number}.weight"] = torch.empty(shape, device="meta")
                network[f"features.{conv.number}.bias"] = torch.empty(conv.width, device="meta")
                before = conv.width
            linear[f"lin{i}.model.1.weight"] = torch.empty(1, before, 1, 1, device="meta")
        return network, linear


VGG = Net(
    "lpips_weight",
    "hub/checkpoints/vgg16-397923af.pth",
    "hub/pyiqa/LPIPS_v0.1_vgg-a78928a0.pth",
    pooling=2,
    pooled=(1, 2, 3, 4),
    stages=(
        (Conv(0, 64), Conv(2, 64)),
        (Conv(5, 128), Conv(7, 128)),
        (Conv(10, 256), Conv(12, 256), Conv(14, 256)),
        (Conv(17, 512), Conv(19, 512), Conv(21, 512)),
        (Conv(24, 512), Conv(26, 512), Conv(28, 512)),
    ),
)
ALEX = Net(
    "lpips_alex_weight",
    "hub/checkpoints/alexnet-owt-7be5be79.pth",
    "hub/pyiqa/LPIPS_v0.1_alex-df73285e.pth",
    pooling=3,
    pooled=(1, 2),
    stages=(
        (Conv(0, 64, kernel=11, stride=4, padding=2),),
        (Conv(3, 192, kernel=5, padding=2),),
        (Conv(6, 384),),
        (Conv(8, 256),),
        (Conv(10, 256),),
    ),
)
DISTS = "hub/pyiqa/DISTS_weights-f5e65c96.pth"
CHANNELS = 3 + sum(stage[-1].width for stage in VGG.stages)  # of an image and its features
EPSILON = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Features(nn.Module):
    """The frozen network of a metric: its features of images in [0, 1], one (B, C, H, W) per stage."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: Net, weights: dict[str, Tensor], pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.pool = net, pool
        self.convs = nn.ModuleList(nn.ModuleList(_conv(weights, conv) for conv in stage) for stage in net.stages)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = []
        for i, stage in enumerate(self.convs):
            x = self.pool(x) if i in self.net.pooled else x
            for conv in stage:  # type: ignore[attr-defined]
                x = F.relu(conv(x))
            features.append(x)
        return features


class Lpips(nn.Module):
    """LPIPS v0.1 (Zhang et al., CVPR 2018): distances of unit-normalised features, weighted per channel.

    `weights` is the folder that the stage `download` fills; None: meta tensors, which only count. Frozen; only the
    first image gets gradients. Raises `FileNotFoundError` where the weights are missing.
    """

    def __init__(self, weights: str | Path | None, net: Net = VGG) -> None:
        super().__init__()
        network, linear = net.shapes() if weights is None else _load(Path(weights), net.key, net.weights, net.linear)
        self.features = Features(net, network, partial(F.max_pool2d, kernel_size=net.pooling, stride=2))
        self.lines = nn.ParameterList(linear[f"lin{i}.model.1.weight"] for i in range(len(net.stages)))
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Both (B, 3, H, W) in [0, 1] -> (B,)."""
        with torch.no_grad():
            targets = self._unit(target)
        distances = [
            ((a - b).square() * line).sum(1).mean((1, 2))
            for a, b, line in zip(self._unit(x), targets, self.lines, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def _unit(self, x: Tensor) -> list[Tensor]:
        # Squares would overflow in half precision.
        return [F.normalize(feature.float(), dim=1, eps=1e-10) for feature in self.features(x)]


class Dists(nn.Module):
    """DISTS (Ding et al., arXiv 2004.07728, equations 5 to 8): textures by the means of features, structure by their
    covariance, weighted per channel. `weights`, gradients and errors as `Lpips`.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, weights: str | Path | None) -> None:
        super().__init__()
        if weights is None:
            network, _ = VGG.shapes()
            balance = dict.fromkeys(("alpha", "beta"), torch.empty(1, CHANNELS, device="meta"))
        else:
            network, balance = _load(Path(weights), "dists_weight", VGG.weights, DISTS)
        total = balance["alpha"].sum() + balance["beta"].sum()
        for name in ("alpha", "beta"):
            self.register_buffer(name, balance[name].flatten() / total)
        self.features = Features(VGG, network, _l2_pool)
        self.requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Both (B, 3, H, W) in [0, 1] -> (B,)."""
        with torch.no_grad():
            targets = [target, *self.features(target)]
        pairs = list(zip([x, *self.features(x)], targets, strict=True))
        texture, structure = (torch.cat(parts, 1) for parts in zip(*(_similar(*pair) for pair in pairs), strict=True))
        return 1 - (self.alpha * texture + self.beta * structure).sum(1)


def _similar(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, H, W) each -> how similar texture and structure are, (B, C) each, at most 1."""
    x, y = x.float(), y.float()
    mean_x, mean_y = x.mean((2, 3)), y.mean((2, 3))
    variances = x.var((2, 3), correction=0) + y.var((2, 3), correction=0)
    covariance = (x * y).mean((2, 3)) - mean_x * mean_y
    texture = (2 * mean_x * mean_y + EPSILON) / (mean_x.square() + mean_y.square() + EPSILON)
    return texture, (2 * covariance + EPSILON) / (variances + EPSILON)


def _l2_pool(x: Tensor) -> Tensor:
    """(B, C, H, W) -> half the size: the root of blurred squares, which does not alias (equation 2 of DISTS)."""
    x = x.float() if x.dtype == torch.float16 else x  # in which squares overflow and 1e-12 is 0
    taps = x.new_tensor([0.25, 0.5, 0.25])
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    with torch.autocast(x.device.type, enabled=False):
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _conv(weights: dict[str, Tensor], conv: Conv) -> nn.Conv2d:
    weight = weights[f"features.{conv.number}.weight"]
    layer = nn.Conv2d(weight.shape[1], conv.width, conv.kernel, conv.stride, conv.padding, device=weight.device)
    layer.load_state_dict({"weight": weight, "bias": weights[f"features.{conv.number}.bias"]})
    return layer


def _load(folder: Path, key: str, *names: str) -> list[dict[str, Tensor]]:
    for path in (folder / name for name in names):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: weights of a metric are missing: run `dvc repro -f -s download`, or set {key}: 0"
            )
    return [torch.load(folder / name, map_location="cpu", weights_only=True) for name in names]


class PerceptualLoss(nn.Module):
    """A weighted metric of images in [-1, 1]; a weight of 0 needs no file and costs nothing. `weights` as the metric.

    `official` repeats the released code, which passes [-1, 1] to a metric that expects [0, 1]. Raises
    `FileNotFoundError` where the weights are missing.
    """

    def __init__(
        self,
        weight: float,
        lpips_range: Literal["proper", "official"],
        weights: str | Path | None,
        metric: Callable[[str | Path | None], nn.Module] = Lpips,
    ) -> None:
        super().__init__()
        self.weight, self.proper = weight, lpips_range == "proper"
        self.metric = metric(weights) if weight else None

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Both (B, 3, H, W) in [-1, 1] -> (B,), weighted."""
        if self.metric is None:
            return x.new_zeros(len(x))
        if self.proper:
            x, target = to_unit(x), to_unit(target)
        return self.weight * self.metric(x, target)


def sharper_losses(
    recipe: UnetRecipe, lpips_range: Literal["proper", "official"], weights: str | Path | None
) -> dict[str, PerceptualLoss]:
    """What the UNet's recipe adds to MSE and LPIPS, by the name it is logged under. Errors as `PerceptualLoss`."""
    chosen: dict[str, tuple[float, Callable[[str | Path | None], nn.Module]]] = {
        "lpips_alex": (recipe.lpips_alex_weight, partial(Lpips, net=ALEX)),
        "dists": (recipe.dists_weight, Dists),
    }
    return {
        name: PerceptualLoss(weight, lpips_range, weights, metric)
        for name, (weight, metric) in chosen.items()
        if weight
    }
