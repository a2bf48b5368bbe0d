"""A picture in, a larger picture out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upsr.checkpoint import load_weights, section
from upsr.config import Atd, Diffusion, Uncertainty, Unet
from upsr.diffusion.denoiser import Denoiser, build_denoiser, to_signed, to_unit, upsample
from upsr.diffusion.noise import field
from upsr.diffusion.samplers import sample
from upsr.diffusion.uncertainty import Isotropic, Residual, build_uncertainty
from upsr.images import pad_to, resize, round8, to_image, to_tensor
from upsr.inference.tiling import blend
from upsr.models import ATD, build_atd, build_unet

OVERLAP = 16  # LR pixels that neighbouring tiles share
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Diffuser:
    """What UPSR adds to g: the denoiser and the uncertainty that places its noise."""

    denoiser: Denoiser
    uncertainty: Isotropic | Residual
    eta: float
    multiple: int
    """What an LR size must be a multiple of."""

    def __call__(self, lr: Tensor, sr: Tensor, noise: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        """LR and g(LR) in [0, 1] -> the sampled picture in [0, 1] and the noise weight."""
        g_y, y_up = to_signed(sr), to_signed(upsample(lr, self.denoiser.scale))
        weight = self.uncertainty(y_up, g_y)
        denoise = self.denoiser.denoise(self.denoiser.condition(g_y, y_up), y_up)
        x = sample(denoise, self.denoiser.process, y_up, lambda *_: weight, noise, self.eta)
        return to_unit(x), weight


@dataclass(frozen=True)
class Upscaled:
    """A picture (1, 3, H, W) in [0, 1], rounded to 8 bit, and what placed its noise, (1, 1, H, W): the residual ψ and
    the weight w, means over the channels (w is 1 everywhere for g alone)."""

    picture: Tensor
    residual: Tensor
    weight: Tensor


class Upscaler:
    """Upscales pictures of any size with the networks of one weights file: g alone (ATD), or UPSR.

    The same seed gives the same picture, whatever other files there are: all noise is cut from one field, which does
    not depend on the tile. Memory for the networks is bounded by the tile.
    """

    def __init__(self, atd: ATD, diffuser: Diffuser | None, *, device: str = "cpu", dtype: str = "fp32") -> None:
        self.scale, self.device, self.dtype = atd.scale, torch.device(device), DTYPES[dtype]
        self.atd, self.diffuser = atd.to(device).eval(), diffuser

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "cpu", dtype: Literal["fp32", "bf16", "fp16"] = "fp32", steps: int = 0
    ) -> "Upscaler":
        """From a weights file or the folder that holds `weights.safetensors`.

        `steps`: sample with fewer steps than the chain was trained with (0: all). Raises `CheckpointError`.
        """
        path = Path(path)
        path = path / "weights.safetensors" if path.is_dir() or not path.suffix else path
        weights, settings = load_weights(path)
        scale = settings["scale"]
        atd = build_atd(section(settings, "atd", Atd, path), scale)
        atd.load_state_dict(_below(weights, "atd."))
        if "unet" not in settings:
            return cls(atd, None, device=device, dtype=dtype)
        cfg = section(settings, "unet", Unet, path)
        chain = section(settings, "diffusion", Diffusion, path)
        noise = section(settings, "uncertainty", Uncertainty, path)
        network = build_unet(cfg, scale)
        network.load_state_dict(_below(weights, "unet."))
        denoiser = build_denoiser(network, unet=cfg, diffusion=chain, uncertainty=noise, scale=scale, steps=steps)
        multiple = cfg.window * 2 ** (len(cfg.channel_mult) - 1)
        diffuser = Diffuser(denoiser.to(device).eval(), build_uncertainty(noise), chain.sampler_eta, multiple)
        return cls(atd, diffuser, device=device, dtype=dtype)

    def __call__(self, image: np.ndarray, *, seed: int = 0, tile: int = 128) -> np.ndarray:
        """(H, W, C) uint8 or uint16, C of 1 (grey), 3, 4 (alpha) -> (s·H, s·W, C) of the same kind."""
        return self._assemble(image, self._bands(_rgb(image), seed, tile))

    def with_maps(self, image: np.ndarray, *, seed: int = 0, tile: int = 128) -> tuple[np.ndarray, Upscaled]:
        """The picture as by calling, and its maps; these need memory for the whole picture."""
        bands = list(self._bands(_rgb(image), seed, tile))
        return self._assemble(image, bands), _joined(bands)

    def _assemble(self, image: np.ndarray, bands: Iterable[tuple[int, Tensor]]) -> np.ndarray:
        kind, channels = image.dtype.type, image.shape[2]
        out = np.empty((image.shape[0] * self.scale, image.shape[1] * self.scale, 3), kind)
        for row, band in bands:
            out[row : row + band.shape[2]] = to_image(band[:, :3], kind)
        if channels == 1:
            return out.mean(axis=2, keepdims=True).round().astype(kind)
        if channels == 4:
            alpha = to_tensor(np.ascontiguousarray(image[:, :, 3:]))
            return np.concatenate([out, to_image(resize(alpha, out.shape[:2]), kind)], axis=2)
        return out

    def upscale(self, lr: Tensor, *, seed: int = 0, tile: int = 128) -> Upscaled:
        """(1, 3, h, w) in [0, 1] -> the picture and its maps, on the CPU."""
        return _joined(self._bands(lr, seed, tile))

    def _bands(self, lr: Tensor, seed: int, tile: int) -> Iterator[tuple[int, Tensor]]:
        def run(part: Tensor, top: int, left: int) -> Tensor:
            return self._tile(part, top, left, seed)

        return blend(lr, run, scale=self.scale, tile=tile, overlap=min(OVERLAP, tile // 4))

    @torch.inference_mode()
    def _tile(self, lr: Tensor, top: int, left: int, seed: int) -> Tensor:
        """(1, 3, h, w) -> (1, 5, s·h, s·w): the picture, ψ, w."""
        h, w, s = lr.shape[2], lr.shape[3], self.scale
        if self.diffuser is not None:
            multiple = self.diffuser.multiple
            lr = pad_to(lr, -(-h // multiple) * multiple, -(-w // multiple) * multiple)
        lr = lr.to(self.device)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext():
            sr = self.atd(lr).float()
            psi = (sr - upsample(lr, s)).abs().mean(1, keepdim=True)
            weight = torch.ones_like(psi)
            if self.diffuser is not None:
                height, width = sr.shape[2:]

                def noise(t: int) -> Tensor:
                    return field(seed, t, top * s, left * s, height, width).to(self.device)

                sr, weight = self.diffuser(lr, sr, noise)
        out = torch.cat([sr.clamp(0, 1), psi, weight.mean(1, keepdim=True)], dim=1)
        return out[:, :, : h * s, : w * s]


def _rgb(image: np.ndarray) -> Tensor:
    rgb = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image, 3, axis=2)
    return to_tensor(np.ascontiguousarray(rgb))


def _joined(bands: Iterable[tuple[int, Tensor]]) -> Upscaled:
    whole = torch.cat([band for _, band in bands], dim=2)
    return Upscaled(picture=round8(whole[:, :3]), residual=whole[:, 3:4], weight=whole[:, 4:5])


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
