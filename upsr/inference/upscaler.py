"""A picture in, a larger picture out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from upsr.allocator import keep_freed_memory
from upsr.checkpoint import load_weights, section, weights_file
from upsr.config import Atd, Diffusion, Uncertainty, Unet
from upsr.diffusion.denoiser import Denoiser, build_denoiser, to_signed, to_unit, upsample
from upsr.diffusion.noise import field
from upsr.diffusion.samplers import sample
from upsr.diffusion.uncertainty import Look, enlarged
from upsr.images import pad_to, resize, round8, to_image, to_tensor
from upsr.inference.tiling import blend
from upsr.models import ATD, build_atd, build_unet

OVERLAP = 16  # LR pixels that neighbouring tiles share
SHOWN = 6  # weights kept of a chain in which they change
LAYOUT = torch.channels_last  # convolutions are faster in it, in half precision most of all
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Diffuser:
    """What UPSR adds to g: the denoiser, with the uncertainty that places its noise."""

    denoiser: Denoiser
    eta: float
    multiple: int
    """What an LR size must be a multiple of."""

    def look(self, lr: Tensor) -> Look:
        """What the uncertainty takes from the whole LR picture, (1, 3, h, w) in [0, 1]."""
        return self.denoiser.uncertainty.look(lr)

    def __call__(
        self, y_up: Tensor, sr: Tensor, noise: Callable[[int], Tensor], look: Look
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """y↑ and g(y) in [0, 1] -> the sampled picture in [0, 1], and the noise weight of each step."""
        g_y, y_up = to_signed(sr), to_signed(y_up)
        weigh = self.denoiser.weigher(y_up, g_y, look)
        weights: dict[int, Tensor] = {}

        def remembering(t: int, x: Tensor, x0: Tensor) -> Tensor:
            weights[t] = weigh(t, x, x0)
            return weights[t]

        denoise = self.denoiser.denoise(self.denoiser.condition(g_y, y_up), y_up)
        x = sample(denoise, self.denoiser.process, y_up, remembering, noise, self.eta)
        return to_unit(x), weights


@dataclass(frozen=True)
class Upscaled:
    """A picture (1, 3, H, W) in [0, 1], rounded to 8 bit, and what placed its noise.

    `maps`, each (1, 1, H, W), means over the channels: the residual |ŷ − y↑| of pictures in [0, 1] (ψ); the edges E
    and high frequencies H of a variant that takes them; the uncertainty W in [0, 1] (`mix`) and the weight w
    (`weight`) at the first step. `weights` is w along the steps, by t, of a variant in which it changes.
    """

    picture: Tensor
    maps: dict[str, Tensor]
    weights: dict[int, Tensor]


class Upscaler:
    """Upscales pictures of any size with the networks of one weights file: g alone (ATD), or UPSR.

    The same seed gives the same picture, whatever other files there are: all noise is cut from one field, which does
    not depend on the tile. Memory for the networks is bounded by the tile.
    """

    def __init__(self, atd: ATD, diffuser: Diffuser | None, *, device: str = "cpu", dtype: str = "fp32") -> None:
        self.scale, self.device, self.dtype = atd.scale, torch.device(device), DTYPES[dtype]
        if self.device.type == "cpu":
            keep_freed_memory()
        self.atd, self.diffuser = atd.to(device).to(memory_format=LAYOUT).eval(), diffuser

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str = "cpu", dtype: Literal["fp32", "bf16", "fp16"] = "fp32", steps: int = 0
    ) -> "Upscaler":
        """From a weights file, the folder that holds `weights.safetensors`, or `starter`, the project's own.

        `steps`: sample with fewer steps than the chain was trained with (0: all). Raises `CheckpointError`.
        """
        path = weights_file(path)
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
        denoiser.uncertainty.load_state_dict(_below(weights, "uncertainty."))
        multiple = cfg.window * 2 ** (len(cfg.channel_mult) - 1)
        diffuser = Diffuser(denoiser.to(device).to(memory_format=LAYOUT).eval(), chain.sampler_eta, multiple)
        return cls(atd, diffuser, device=device, dtype=dtype)

    def __call__(self, image: np.ndarray, *, seed: int = 0, tile: int = 128) -> np.ndarray:
        """(H, W, C) uint8 or uint16, C of 1 (grey), 3, 4 (alpha) -> (s·H, s·W, C) of the same kind."""
        return self._assemble(image, self._bands(_rgb(image), seed, tile))

    def with_maps(self, image: np.ndarray, *, seed: int = 0, tile: int = 128) -> tuple[np.ndarray, Upscaled]:
        """The picture as by calling, and its maps; these need memory for the whole picture."""
        bands = list(self._bands(_rgb(image), seed, tile))
        return self._assemble(image, bands), self._joined(bands)

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
        return self._joined(self._bands(lr, seed, tile))

    def _bands(self, lr: Tensor, seed: int, tile: int) -> Iterator[tuple[int, Tensor]]:
        """Bands of the picture and its maps; what is taken from the whole of y goes through the tiles beside it."""
        overlap = min(OVERLAP, tile // 4)
        if self.diffuser is None:
            return blend(lr, lambda part, *_: self._tile(part), scale=self.scale, tile=tile, overlap=overlap)
        look = self._look(self.diffuser, lr, tile, overlap)

        def run(part: Tensor, top: int, left: int) -> Tensor:
            return self._diffused_tile(part[:, :3], look._replace(maps=part[:, 3:]), top, left, seed)

        return blend(torch.cat([lr, look.maps.cpu()], 1), run, scale=self.scale, tile=tile, overlap=overlap)

    @torch.inference_mode()
    def _look(self, diffuser: Diffuser, lr: Tensor, tile: int, overlap: int) -> Look:
        """Of the whole picture; g runs over it once more where the weight is levelled to what g tells."""
        look, reference = diffuser.look(lr.to(self.device)), diffuser.denoiser.uncertainty.reference
        if reference is None:
            return look

        def share(part: Tensor, top: int, left: int) -> Tensor:
            y_up, sr = self._auxiliary(part, diffuser.multiple)
            height, width = (side * self.scale for side in part.shape[2:])
            return reference.share(to_signed(y_up), to_signed(sr)).mean(1, keepdim=True)[:, :, :height, :width]

        bands = [band for _, band in blend(lr, share, scale=self.scale, tile=tile, overlap=overlap)]
        return look._replace(share=torch.cat(bands, 2).mean().view(1, 1, 1, 1).to(self.device))

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def _auxiliary(self, lr: Tensor, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """y↑ and g(y) in [0, 1] of a tile, mirrored to a size that is a multiple."""
        lr = pad_to(lr, *(-(-side // multiple) * multiple for side in lr.shape[2:])).to(self.device)
        with self._precision():
            return upsample(lr, self.scale), self.atd(lr).float()

    @torch.inference_mode()
    def _tile(self, lr: Tensor) -> Tensor:
        """(1, 3, h, w) -> (1, 4, s·h, s·w): the picture of g alone, and ψ."""
        y_up, sr = self._auxiliary(lr)
        return torch.cat([sr.clamp(0, 1), (sr - y_up).abs().mean(1, keepdim=True)], 1)

    @torch.inference_mode()
    def _diffused_tile(self, lr: Tensor, look: Look, top: int, left: int, seed: int) -> Tensor:
        """(1, 3, h, w) -> (1, 4+K+N, s·h, s·w): the picture, ψ, K maps of y, and the weights of N steps."""
        assert self.diffuser is not None
        h, w, s = lr.shape[2], lr.shape[3], self.scale
        y_up, sr = self._auxiliary(lr, self.diffuser.multiple)
        height, width = sr.shape[2:]
        look = look._replace(maps=pad_to(look.maps, height // s, width // s).to(self.device))

        def noise(t: int) -> Tensor:
            return field(seed, t, top * s, left * s, height, width).to(self.device)

        with self._precision():
            picture, weights = self.diffuser(y_up, sr, noise, look)
        psi = (sr - y_up).abs().mean(1, keepdim=True)
        shown = [weights[t].mean(1, keepdim=True) for t in self._shown(self.diffuser)]
        return torch.cat([picture.clamp(0, 1), psi, enlarged(look.maps, y_up), *shown], 1)[:, :, : h * s, : w * s]

    @staticmethod
    def _shown(diffuser: Diffuser) -> list[int]:
        """The steps whose weights are kept: the first, and of those that bring another weight as many as fit."""
        steps = diffuser.denoiser.process.steps
        times = [steps, *diffuser.denoiser.uncertainty.times(steps)]
        return times[:: -(-len(times) // SHOWN)]

    def _joined(self, bands: Iterable[tuple[int, Tensor]]) -> Upscaled:
        whole = torch.cat([band for _, band in bands], dim=2)
        maps, weights = {"residual": whole[:, 3:4]}, {}
        if self.diffuser is not None:
            times, floor = self._shown(self.diffuser), self.diffuser.denoiser.uncertainty.floor
            weights = dict(zip(times, whole[:, -len(times) :].split(1, 1), strict=True))
            weight = weights[times[0]]
            looked = [x[:, None] for x in whole[:, 4 : -len(times)].unbind(1)]  # none, or both
            maps |= dict(zip(("edge", "frequency"), looked, strict=False))
            maps |= {"mix": (weight - floor) / (1 - floor)} if floor < 1 else {}
            maps |= {"weight": weight}
        return Upscaled(round8(whole[:, :3]), maps, weights if len(weights) > 1 else {})


def _rgb(image: np.ndarray) -> Tensor:
    rgb = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image, 3, axis=2)
    return to_tensor(np.ascontiguousarray(rgb))


def _below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
