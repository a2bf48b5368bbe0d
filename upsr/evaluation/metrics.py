"""PSNR and SSIM by the protocol, and metrics of pyiqa with local weights: nothing is downloaded."""

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from upsr.config import ConfigError
from upsr.evaluation.protocol import Protocol, for_fidelity
from upsr.images import round8

log = logging.getLogger(__name__)

Row = dict[str, Any]  # one row of a results table: benchmark, model, image and values

BEST_PSNR = 100.0  # for identical images: infinity has no mean and no JSON value

VGG16 = "checkpoints/vgg16-397923af.pth"
WEIGHTS: dict[str, tuple[str, ...]] = {
    "lpips": ("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"),
    "lpips-vgg": (VGG16, "pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"),
    "dists": (VGG16, "pyiqa/DISTS_weights-f5e65c96.pth"),
    "niqe": ("pyiqa/niqe_modelparameters.mat",),
    "clipiqa": ("clip/RN50.pt",),
    "musiq": ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",),
    **dict.fromkeys(("cw_ssim", "fsim", "gmsd", "mad", "ms_ssim", "nlpd", "piqe", "vif", "vsi"), ()),
}
"""The weights files of each supported pyiqa metric, relative to the hub. Any other metric is absent."""


class Metrics:
    """Measures one image at a time: PSNR and SSIM, and the metrics of pyiqa in `names`.

    Weights are read from `weights`/hub, never downloaded. `absent`: name of an unavailable metric -> reason. Raises
    `ConfigError` for a name that pyiqa does not know, and where pyiqa is not installed.
    """

    def __init__(self, names: Sequence[str], weights: Path, protocol: Protocol, scale: int, device: torch.device):
        self.protocol, self.scale, self.device = protocol, scale, device
        self.absent: dict[str, str] = {}
        self._models: dict[str, Any] = {}
        for name in names:
            try:
                self._models[name] = _open(name, weights / "hub", device)
            except ConfigError:
                raise
            except Exception as error:  # pyiqa's networks raise many types
                self.absent[name] = " ".join(str(error).split())

    def __call__(self, sr: Tensor, hr: Tensor | None) -> dict[str, float]:
        """Values by metric for (1, 3, H, W) in [0, 1], both of the same size; rounds them to 8 bit.

        Without `hr`, only the no-reference metrics are returned. NaN: the metric has no value for this image, such as
        one smaller than its window; the reason is logged.
        """
        sr = round8(sr.to(self.device))
        hr = None if hr is None else round8(hr.to(self.device))
        values = {} if hr is None else self._fidelity(sr, hr)
        for name, model in self._models.items():
            if hr is not None or model.metric_mode == "NR":
                values[name] = _value(name, model, sr, hr)
        return values

    def _fidelity(self, sr: Tensor, hr: Tensor) -> dict[str, float]:
        a, b = (for_fidelity(x, self.protocol, self.scale) for x in (sr, hr))
        return {"psnr": _value("psnr", psnr, a, b), "ssim": _value("ssim", ssim, a, b)}


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """PSNR in dB of two outputs of `for_fidelity` (peak 255), at most `BEST_PSNR`."""
    return (10 * torch.log10(255**2 / (a - b).square().mean())).clamp(max=BEST_PSNR)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM (Wang et al. 2004) of two (1, 1, H, W) outputs of `for_fidelity`, as MATLAB and BasicSR compute it.

    Gaussian window of 11 pixels, σ = 1.5, without padding. pyiqa clips negative covariance to 0; these do not.
    """
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def _blur(x: Tensor) -> Tensor:
    i = torch.arange(-5, 6, dtype=x.dtype, device=x.device)
    window = torch.exp(-(i**2) / (2 * 1.5**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(x, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))


def higher_is_better(name: str) -> bool:
    """True if a larger value of this metric is better. Raises `KeyError` for a name that pyiqa does not know."""
    if name in ("psnr", "ssim", "seconds"):
        return name != "seconds"
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return not DEFAULT_CONFIGS[name].get("lower_better", False)


def needs_reference(name: str) -> bool:
    """True if this metric compares with an HR image. Raises `KeyError` for a name that pyiqa does not know."""
    if name in ("psnr", "ssim"):
        return True
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return DEFAULT_CONFIGS[name]["metric_mode"] == "FR"


def _value(name: str, metric: Callable[..., Tensor], sr: Tensor, hr: Tensor | None) -> float:
    try:
        value = float(metric(sr, hr))
    except Exception as error:  # pyiqa's metrics raise many types for an image smaller than their windows
        log.warning("%s: no value for an image of %d x %d: %s", name, sr.shape[3], sr.shape[2], error)
        return math.nan
    return value if math.isfinite(value) else math.nan


def _open(name: str, hub: Path, device: torch.device) -> Any:
    """Opens a pyiqa metric. Raises `ConfigError` for an unknown name and `FileNotFoundError` for missing weights."""
    try:
        import pyiqa
    except ModuleNotFoundError as error:
        if error.name != "pyiqa":
            raise
        raise ConfigError(f"metric `{name}`: needs the extra `metrics`: pip install 'upsr[metrics]'") from None
    if name not in pyiqa.list_models():
        raise ConfigError(f"metric `{name}`: not a metric of pyiqa: choose one that `pyiqa -ls` lists")
    if name not in WEIGHTS:
        raise FileNotFoundError("its weights files are unknown: add them to WEIGHTS in upsr/evaluation/metrics.py")
    missing = [file for file in WEIGHTS[name] if not (hub / file).is_file()]
    if missing:
        raise FileNotFoundError(f"its weights are missing: put {' and '.join(missing)} into {hub}")
    with _weights_from(hub.resolve()), contextlib.redirect_stdout(io.StringIO()):  # pyiqa prints what it loads
        return pyiqa.create_metric(name, device=device)


@contextlib.contextmanager
def _weights_from(hub: Path) -> Iterator[None]:
    """Within the block, torch and pyiqa read weights from `hub` and execute no code from them."""
    from pyiqa.utils import download_util

    safe = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    # Of torch.hub the variable itself: it is None until somebody sets it, and `set_dir` cannot make it so again.
    before = torch.hub._hub_dir, download_util.DEFAULT_CACHE_DIR, os.environ.get(safe)
    torch.hub.set_dir(hub)
    download_util.DEFAULT_CACHE_DIR = str(hub / "pyiqa")
    os.environ[safe] = "1"
    try:
        yield
    finally:
        torch.hub._hub_dir = before[0]
        download_util.DEFAULT_CACHE_DIR = before[1]
        os.environ.pop(safe)
        os.environ |= {safe: before[2]} if before[2] is not None else {}
