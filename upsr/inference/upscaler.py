"""Upscales images with the networks of a weights file."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from upsr.config import Atd, Diffusion, Unet
from upsr.diffusion.denoiser import load_denoiser, upsample
from upsr.diffusion.diffuser import Diffuser
from upsr.diffusion.noise import field
from upsr.diffusion.uncertainty import Analysis, enlarged
from upsr.images import pad_to, round8
from upsr.inference.colours import with_colours_of
from upsr.inference.precision import Dtype, fast_dtype
from upsr.inference.tiling import Fields, Sliceable, blend, cuts, join
from upsr.memory import free_memory
from upsr.models.atd import ATD, build_atd
from upsr.models.unet import build_unet
from upsr.photo.alpha import fill, is_flat, limits
from upsr.photo.reading import ImageLike, Photo, as_photo, open_photo
from upsr.photo.writing import check_target, save, suited
from upsr.pretrained import Pretrained, load_pretrained, weights_file

Empty = Callable[[tuple[int, ...], np.dtype], np.ndarray]
Tick = Callable[[], None]

OVERLAP = 16  # LR pixels that neighbouring tiles share
LEAST_TILE = 16  # LR pixels; less would be mostly overlap and padding
TILES = (64, 128, 256)  # that `fitting_tile` chooses from; larger ones are hardly faster, and progress shows less often
ATD_BYTES, UNET_BYTES = 200, 25  # of memory: per LR pixel and channel of ATD; per HR pixel and last channel of the UNet
SHOWN = 6  # weight maps kept per image where the weight changes along the chain
LAYOUT = torch.channels_last  # convolutions are faster in it, above all in half precision
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _silent() -> None:
    pass


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

    def __init__(
        self,
        atd: ATD,
        diffuser: Diffuser | None,
        *,
        device: str = "cpu",
        dtype: Dtype = "fp32",
        keeps_colours: bool = False,
    ) -> None:
        self.scale, self.device, self.keeps_colours = atd.scale, torch.device(device), keeps_colours
        self.dtype = DTYPES[fast_dtype(self.device)[0] if dtype == "auto" else dtype]
        self.atd_dtype = DTYPES["fp32" if dtype == "auto" else dtype]
        self.atd, self.diffuser = atd.to(device).to(memory_format=LAYOUT).eval(), diffuser
        self.multiple = math.lcm(atd.window, diffuser.multiple if diffuser else 1)
        # Memory for a batch of tiles. A CPU gets tiles one by one: each keeps all its cores busy.
        self.batch_bytes = free_memory(self.device) / 4 if self.device.type != "cpu" else 0

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Pretrained = "starter",
        *,
        device: str = "cpu",
        dtype: Dtype = "fp32",
        steps: int = 0,
    ) -> "Upscaler":
        """Loads bundled weights by name (`starter`: the default), a weights file or its folder, or what was read.

        `dtype`: precision of both networks. `auto` is fp32 for ATD, which in less puts pixels into other categories and
        is no faster, and `fast_dtype` for the UNet. `steps`: number of sampling steps, at most the chain's; 0: all.
        Raises `CheckpointError` for a file that is missing or does not fit, and `ValueError` for more steps than the
        chain has, or any of a file without a UNet.
        """
        # ATD
        file = model if isinstance(model, Pretrained) else load_pretrained(weights_file(model))
        settings = file.section("atd", Atd)
        atd = file.network("atd", lambda: build_atd(settings, file.scale))
        if "unet" not in file.parts:
            if steps:
                raise ValueError(f"sampling steps: {steps}, but {file.path} does not sample: leave them out")
            return cls(atd, None, device=device, dtype=dtype)
        # UNet and diffusion
        cfg, chain = file.section("unet", Unet), file.section("diffusion", Diffusion)
        denoiser = load_denoiser(file, build_unet, steps)
        multiple = cfg.window * 2 ** (len(cfg.channel_mult) - 1)
        diffuser = Diffuser(denoiser.to(device).to(memory_format=LAYOUT).eval(), chain.sampler_eta, multiple)
        return cls(atd, diffuser, device=device, dtype=dtype, keeps_colours=file.keeps_colours)

    def __call__(self, image: ImageLike, *, seed: int = 0, tile: int = 128) -> np.ndarray:
        """A path, a PIL image or an array -> the upscaled array in sRGB, of the dtype and channels of `image`.

        An array is (H, W) or (H, W, C), uint8, uint16, or float in [0, 1]; C is 1 (grey), 2 (with alpha), 3, or 4 (with
        alpha). Raises `ValueError` for anything else, a tile below 16 or a negative seed, and `ImageError` for a file
        that cannot be read.
        """
        larger = self.enlarge(as_photo(image).plain(), seed=seed, tile=tile)
        return larger[:, :, 0] if isinstance(image, np.ndarray) and image.ndim == 2 else larger

    def upscale_file(self, source: str | Path, target: str | Path, *, seed: int = 0, tile: int = 128) -> np.ndarray:
        """Upscales an image file to `target`, in the format of its suffix, with the colours and metadata of the source.

        Returns the upscaled array in the colours of the source. Raises `ImageError` for a file that cannot be read or
        written.
        """
        target = Path(target)
        photo = suited(open_photo(source), target)
        height, width = (side * self.scale for side in photo.pixels.shape[:2])
        check_target(target, width, height)
        larger = self.enlarge(photo, seed=seed, tile=tile)
        save(target, larger, photo)
        return larger

    def enlarge(
        self, photo: Photo, *, seed: int = 0, tile: int = 128, empty: Empty = np.empty, tick: Tick = _silent
    ) -> np.ndarray:
        """An image -> (s·H, s·W, C) in its own dtype and colours, with alpha as the last channel if it has one.

        `empty(shape, dtype)` makes the array for the result; `tick` is called after each of `tiles(photo)`. Raises
        `ValueError` for a tile below 16 or a negative seed.
        """
        photo = _filled(photo)
        return self._painted(photo, self._bands(_Pixels(photo), seed, tile, tick), seed, tile, empty, tick)

    def with_maps(
        self, photo: Photo, *, seed: int = 0, tile: int = 128, tick: Tick = _silent
    ) -> tuple[np.ndarray, Upscaled]:
        """(the array as from `enlarge`, the maps). The maps need memory for the whole image."""
        photo = _filled(photo)
        bands = list(self._bands(_Pixels(photo), seed, tile, tick))
        larger = self._painted(photo, iter(bands), seed, tile, np.empty, tick)
        return larger, self._upscaled(join([band for _, band in bands]))

    def fitting_tile(self, free: int) -> int:
        """The tile for so many bytes of free memory: the largest of `TILES` that needs a quarter, or the least."""
        largest = math.sqrt(free / 4 / self._bytes_per_pixel())
        return max([tile for tile in TILES if tile <= largest], default=TILES[0])

    def together(self, tile: int) -> int:
        """How many tiles the networks get at once."""
        return max(int(self.batch_bytes / (self._bytes_per_pixel() * tile**2)), 1) if self.batch_bytes else 1

    def _bytes_per_pixel(self) -> int:
        """Memory of the networks per LR pixel."""
        need = ATD_BYTES * self.atd.get_parameter("conv_first.weight").shape[0]
        if self.diffuser is not None:
            tail = self.diffuser.denoiser.network.get_parameter("conv_last.weight").shape[1]
            need += UNET_BYTES * self.scale**2 * tail
        return need

    def grid(self, height: int, width: int, tile: int) -> tuple[list[slice], list[slice]]:
        """The rows and columns of tiles into which an LR image is cut."""
        rows, columns = (cuts(side, tile, overlap_of(tile), self.multiple) for side in (height, width))
        return rows, columns

    def tiles(self, photo: Photo, tile: int = 128) -> int:
        """How many tiles `enlarge` runs a network on."""
        height, width = photo.pixels.shape[:2]
        rows, columns = self.grid(height, width, tile)
        count = len(rows) * len(columns)
        return count if photo.alpha is None or is_flat(photo.alpha) else 2 * count

    def upscale(self, lr: Tensor, *, seed: int = 0, tile: int = 128) -> Upscaled:
        """(1, 3, h, w) in [0, 1] -> the upscaled image and its maps, on the CPU."""
        return self._upscaled(join([band for _, band in self._bands(lr, seed, tile)]))

    def _painted(
        self, photo: Photo, bands: Iterator[tuple[int, Fields]], seed: int, tile: int, empty: Empty, tick: Tick
    ) -> np.ndarray:
        """The upscaled image of the colours' bands; its alpha is upscaled here, as a grey image."""
        height, width, channels = photo.pixels.shape
        alpha, s = photo.alpha, self.scale
        out = empty((height * s, width * s, channels + (alpha is not None)), photo.pixels.dtype)
        for row, band in bands:
            rgb = _rgb(band)
            out[row : row + len(rgb), :, :channels] = photo.stored(rgb)
        if alpha is None:
            return out
        if is_flat(alpha):
            out[:, :, channels:] = alpha[0, 0]
            return out
        mask, bounds = Photo(alpha), limits(alpha)
        for row, band in self._bands(_Pixels(mask), seed, tile, tick):
            part = mask.stored(_rgb(band))
            rows = slice(row // s, (row + len(part)) // s)
            low, high = (bound[rows].repeat(s, axis=0).repeat(s, axis=1) for bound in bounds)
            out[row : row + len(part), :, channels:] = part.clip(low, high)
        return out

    def _bands(self, lr: Sliceable, seed: int, tile: int, tick: Tick = _silent) -> Iterator[tuple[int, Fields]]:
        """Bands of `image` and `residual`; with a diffuser also of the maps of y and of the weights w."""
        for name, value, least in (("tile", tile, LEAST_TILE), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name} {value}: give {least} or more")
        inputs: dict[str, Sliceable] = {"lr": lr}
        if (diffuser := self.diffuser) is not None:
            with torch.inference_mode():
                analysis = diffuser.analyse(lr[:, :, :, :].to(self.device))  # of the whole image
            inputs["analysis"] = analysis.maps.cpu()

        def run(part: Fields, top: int, lefts: list[int]) -> Fields:
            if diffuser is None:
                fields = self._tiles(part["lr"])
            else:
                whole = analysis._replace(maps=part["analysis"])
                fields = self._diffused_tiles(diffuser, part["lr"], whole, top=top, lefts=lefts, seed=seed)
            for _ in lefts:
                tick()
            return fields

        height, width = lr.shape[2:]
        rows, columns = self.grid(height, width, tile)
        together, overlap = self.together(tile), overlap_of(tile)
        return blend(inputs, run, rows=rows, columns=columns, overlap=overlap, scale=self.scale, together=together)

    def _precision(self, dtype: torch.dtype | None) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def _auxiliary(self, lr: Tensor, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """(y↑, g(y)) of tiles, nominally in [0, 1], padded by reflection to multiples of `multiple`."""
        lr = pad_to(lr, *(-(-side // multiple) * multiple for side in lr.shape[2:])).to(self.device)
        with self._precision(self.atd_dtype):
            return upsample(lr, self.scale), self.atd(lr).float()

    @torch.inference_mode()
    def _tiles(self, lr: Tensor) -> Fields:
        """The image of g alone, and its residual ψ."""
        y_up, sr = self._auxiliary(lr)
        return {"image": sr, "residual": (sr - y_up).abs().mean(1, keepdim=True)}

    @torch.inference_mode()
    def _diffused_tiles(
        self, diffuser: Diffuser, lr: Tensor, analysis: Analysis, *, top: int, lefts: list[int], seed: int
    ) -> Fields:
        """The sampled image, ψ, the maps of y, and w at each of the shown timesteps."""
        # prior
        h, w, s = lr.shape[2], lr.shape[3], self.scale
        y_up, sr = self._auxiliary(lr, diffuser.multiple)
        height, width = sr.shape[2:]
        analysis = analysis._replace(maps=pad_to(analysis.maps, height // s, width // s).to(self.device))

        def noise(t: int) -> Tensor:
            return torch.cat([field(seed, t, top * s, left * s, height, width) for left in lefts]).to(self.device)

        # sampling
        with self._precision(self.dtype):
            image, weights = diffuser(y_up, sr, noise, analysis)
        # maps
        fields = {"image": image, "residual": (sr - y_up).abs().mean(1, keepdim=True)}
        fields |= {_weight_name(t): weights[t].mean(1, keepdim=True) for t in _shown(diffuser)}
        names, maps = diffuser.denoiser.uncertainty.map_names, enlarged(analysis.maps, y_up)
        fields |= {name: x[:, None] for name, x in zip(names, maps.unbind(1), strict=True)}
        fields = {name: x[:, :, : h * s, : w * s] for name, x in fields.items()}
        return fields | ({"image": with_colours_of(lr, fields["image"])} if self.keeps_colours else {})

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


def overlap_of(tile: int) -> int:
    """The LR pixels that neighbouring tiles share, at least."""
    return min(OVERLAP, tile // 4)


def _filled(photo: Photo) -> Photo:
    return photo if photo.alpha is None else replace(photo, pixels=fill(photo.pixels, photo.alpha))


def _rgb(band: Fields) -> np.ndarray:
    """(H, W, 3) float32."""
    return band["image"][0].permute(1, 2, 0).contiguous().numpy()


class _Pixels:
    """The colours of a photo as (1, 3, H, W) float32, of which parts are made on demand."""

    def __init__(self, photo: Photo) -> None:
        self.photo, self.shape = photo, (1, 3, *photo.pixels.shape[:2])

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        return torch.from_numpy(self.photo.rgb(*index[2:])).permute(2, 0, 1)[None].contiguous()
