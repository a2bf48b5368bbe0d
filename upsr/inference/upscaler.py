"""Upscales images with the networks of a weights file."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upsr import images
from upsr.config import Atd, Diffusion, Uncertainty, Unet
from upsr.diffusion.denoiser import build_denoiser, upsample
from upsr.diffusion.diffuser import Diffuser
from upsr.diffusion.noise import field
from upsr.diffusion.uncertainty import Analysis, enlarged
from upsr.images import pad_to, resize, round8, to_image, to_tensor
from upsr.inference.tiling import Fields, blend, join
from upsr.models.atd import ATD, build_atd
from upsr.models.unet import build_unet
from upsr.pretrained import load_pretrained, load_weights, weights_file

OVERLAP = 16  # LR pixels that neighbouring tiles share
SHOWN = 6  # weight maps kept per image where the weight changes along the chain
LAYOUT = torch.channels_last  # convolutions are faster in it, above all in half precision
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Upscaled:
    """An image (1, 3, H, W) in [0, 1], rounded to 8 bit, and its maps.

    `maps`, each (1, 1, H, W), are means over the channels: `residual`, ψ = |g(y) − y↑| of images in [0, 1]; edges E and
    high frequencies H, if the variant uses them; the uncertainty W in [0, 1] (`mix`) and the weight w (`weight`) at the
    first step. `weights`: timestep -> w, for a variant in which w changes.
    """

    image: Tensor
    maps: dict[str, Tensor]
    weights: dict[int, Tensor]


class Upscaler:
    """Upscales images of any size with the networks of one weights file: g alone (ATD), or UPSR.

    The same seed gives the same image, alone or among other files: tiles cut their noise from one field, which does not
    depend on the tile size. The tile bounds the networks' memory.
    """

    def __init__(self, atd: ATD, diffuser: Diffuser | None, *, device: str = "cpu", dtype: str = "fp32") -> None:
        self.scale, self.device, self.dtype = atd.scale, torch.device(device), DTYPES[dtype]
        self.atd, self.diffuser = atd.to(device).to(memory_format=LAYOUT).eval(), diffuser

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "starter",
        *,
        device: str = "cpu",
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        steps: int = 0,
    ) -> "Upscaler":
        """Loads bundled weights by name (`starter`: the default), a weights file, or the folder of one.

        `steps`: number of sampling steps, at most the chain's; 0 means all. Raises `CheckpointError` for a file that is
        missing or does not fit, and `ValueError` for more steps than the chain has.
        """
        # ATD
        file = load_pretrained(weights_file(model))
        settings = file.section("atd", Atd)
        atd = file.network("atd", lambda: build_atd(settings, file.scale))
        if "unet" not in file.parts:
            return cls(atd, None, device=device, dtype=dtype)
        # UNet and diffusion
        cfg, chain = file.section("unet", Unet), file.section("diffusion", Diffusion)
        network = file.network("unet", lambda: build_unet(cfg, file.scale))
        uncertainty = file.section("uncertainty", Uncertainty)
        denoiser = build_denoiser(
            network, unet=cfg, diffusion=chain, uncertainty=uncertainty, scale=file.scale, steps=steps
        )
        load_weights(denoiser.get_submodule("uncertainty"), file.parts.get("uncertainty", {}), file.path)
        multiple = cfg.window * 2 ** (len(cfg.channel_mult) - 1)
        diffuser = Diffuser(denoiser.to(device).to(memory_format=LAYOUT).eval(), chain.sampler_eta, multiple)
        return cls(atd, diffuser, device=device, dtype=dtype)

    def __call__(self, image: np.ndarray, *, seed: int = 0, tile: int = 128) -> np.ndarray:
        """(H, W, C) uint8 or uint16, C = 1 (grey), 3 or 4 (with alpha) -> (s·H, s·W, C) of the same dtype.

        Raises `ValueError` for a tile below 1 or a negative seed.
        """
        return self._assemble(image, (band["image"] for _, band in self._bands(_rgb(image), seed, tile)))

    def with_maps(self, image: np.ndarray, *, seed: int = 0, tile: int = 128) -> tuple[np.ndarray, Upscaled]:
        """(the upscaled image as from `__call__`, its maps). The maps need memory for the whole image."""
        bands = [band for _, band in self._bands(_rgb(image), seed, tile)]
        return self._assemble(image, (band["image"] for band in bands)), self._upscaled(join(bands))

    def upscale_file(self, source: str | Path, target: str | Path, *, seed: int = 0, tile: int = 128) -> np.ndarray:
        """Upscales an image file to `target`, in the format of its suffix; returns the upscaled image.

        Raises `ImageError` for a file that cannot be read or written.
        """
        larger = self(images.read(source), seed=seed, tile=tile)
        images.write(target, larger)
        return larger

    def upscale(self, lr: Tensor, *, seed: int = 0, tile: int = 128) -> Upscaled:
        """(1, 3, h, w) in [0, 1] -> the upscaled image and its maps, on the CPU."""
        return self._upscaled(join([band for _, band in self._bands(lr, seed, tile)]))

    def _assemble(self, image: np.ndarray, bands: Iterator[Tensor]) -> np.ndarray:
        """Bands of RGB from top to bottom -> the upscaled image, with the dtype and channels of `image`."""
        dtype, channels = image.dtype.type, image.shape[2]
        out = np.empty((image.shape[0] * self.scale, image.shape[1] * self.scale, 3), dtype)
        row = 0
        for band in bands:
            out[row : row + band.shape[2]] = to_image(band, dtype)
            row += band.shape[2]
        if channels == 1:
            return out.mean(axis=2, keepdims=True).round().astype(dtype)
        if channels == 4:
            alpha = to_tensor(np.ascontiguousarray(image[:, :, 3:]))
            return np.concatenate([out, to_image(resize(alpha, out.shape[:2]), dtype)], axis=2)
        return out

    def _bands(self, lr: Tensor, seed: int, tile: int) -> Iterator[tuple[int, Fields]]:
        """Bands of `image` and `residual`; with a diffuser also of the maps of y and of the weights w."""
        for name, value, least in (("tile", tile, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} {value}: give {least} or more")
        overlap = min(OVERLAP, tile // 4)
        if self.diffuser is None:
            return blend({"lr": lr}, lambda part, *_: self._tile(part), scale=self.scale, tile=tile, overlap=overlap)
        diffuser = self.diffuser
        with torch.inference_mode():
            analysis = diffuser.analyse(lr.to(self.device))  # of the whole image

        def run(part: Fields, top: int, left: int) -> Fields:
            return self._diffused_tile(
                diffuser, part["lr"], analysis._replace(maps=part["analysis"]), top=top, left=left, seed=seed
            )

        inputs = {"lr": lr, "analysis": analysis.maps.cpu()}
        return blend(inputs, run, scale=self.scale, tile=tile, overlap=overlap)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def _auxiliary(self, lr: Tensor, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """(y↑, g(y)) of a tile, nominally in [0, 1], padded by reflection to multiples of `multiple`."""
        lr = pad_to(lr, *(-(-side // multiple) * multiple for side in lr.shape[2:])).to(self.device)
        with self._precision():
            return upsample(lr, self.scale), self.atd(lr).float()

    @torch.inference_mode()
    def _tile(self, part: Fields) -> Fields:
        """The image of g alone, and its residual ψ."""
        y_up, sr = self._auxiliary(part["lr"])
        return {"image": sr.clamp(0, 1), "residual": (sr - y_up).abs().mean(1, keepdim=True)}

    @torch.inference_mode()
    def _diffused_tile(
        self, diffuser: Diffuser, lr: Tensor, analysis: Analysis, *, top: int, left: int, seed: int
    ) -> Fields:
        """The sampled image, ψ, the maps of y, and w at each of the shown timesteps."""
        # prior
        h, w, s = lr.shape[2], lr.shape[3], self.scale
        y_up, sr = self._auxiliary(lr, diffuser.multiple)
        height, width = sr.shape[2:]
        analysis = analysis._replace(maps=pad_to(analysis.maps, height // s, width // s).to(self.device))

        def noise(t: int) -> Tensor:
            return field(seed, t, top * s, left * s, height, width).to(self.device)

        # sampling
        with self._precision():
            image, weights = diffuser(y_up, sr, noise, analysis)
        # maps
        fields = {"image": image.clamp(0, 1), "residual": (sr - y_up).abs().mean(1, keepdim=True)}
        fields |= {_weight_name(t): weights[t].mean(1, keepdim=True) for t in _shown(diffuser)}
        names, maps = diffuser.denoiser.uncertainty.map_names, enlarged(analysis.maps, y_up)
        fields |= {name: x[:, None] for name, x in zip(names, maps.unbind(1), strict=True)}
        return {name: x[:, :, : h * s, : w * s] for name, x in fields.items()}

    def _upscaled(self, whole: Fields) -> Upscaled:
        maps, weights = {"residual": whole["residual"]}, {}
        if self.diffuser is not None:
            uncertainty, times = self.diffuser.denoiser.uncertainty, _shown(self.diffuser)
            weights = {t: whole[_weight_name(t)] for t in times}
            weight, floor = weights[times[0]], uncertainty.floor
            maps |= {name: whole[name] for name in uncertainty.map_names}
            maps |= {"mix": (weight - floor) / (1 - floor)} if floor < 1 else {}
            maps |= {"weight": weight}
        return Upscaled(round8(whole["image"]), maps, weights if len(weights) > 1 else {})


def _weight_name(t: int) -> str:
    return f"weight at t={t}"


def _shown(diffuser: Diffuser) -> list[int]:
    """Timesteps whose weights are kept: the first and those at which the weight changes, thinned to `SHOWN`."""
    steps = diffuser.denoiser.process.steps
    times = [steps, *diffuser.denoiser.uncertainty.times(steps)]
    return times[:: -(-len(times) // SHOWN)]


def _rgb(image: np.ndarray) -> Tensor:
    rgb = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image, 3, axis=2)
    return to_tensor(np.ascontiguousarray(rgb))
