"""Our networks in spandrel, which decides what ComfyUI and others can load: call `install()` once, then use its loader.

Needs the extra `spandrel`. spandrel hands over the tensors of a file without its metadata (`pretrained.from_tensors`).
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling
from spandrel.util import KeyCondition
from torch import Tensor

from upsr.config import Atd, Diffusion, Uncertainty, Unet
from upsr.inference.upscaler import LAYOUT, Upscaler
from upsr.models.atd import ATD, build_atd
from upsr.official import read_atd
from upsr.pretrained import from_tensors, restored

State = dict[str, Tensor]

WHERE = Path("the state dict")  # in errors: spandrel does not hand over the file's name
CATEGORY_SIZE = 128  # the paper's: the authors' weights do not show it


class Upsr(nn.Module):
    """UPSR as one module: LR (B, 3, h, w) in [0, 1] -> SR (B, 3, s·h, s·w), rounded to 8 bit.

    All steps and tiles of `Upscaler` are inside, so `seed` alone decides the noise. Give it whole images: a tile cut
    outside gets the noise of the image's upper left corner, and its own maps of detail.
    """

    seed, tile = 0, 128

    def __init__(self, upscaler: Upscaler) -> None:
        super().__init__()
        assert upscaler.diffuser is not None
        self.upscaler, self.atd, self.denoiser = upscaler, upscaler.atd, upscaler.diffuser.denoiser

    def forward(self, lr: Tensor) -> Tensor:
        self.upscaler.device = lr.device  # the program moves the networks, with this module
        images = [self.upscaler.upscale(image[None], seed=self.seed, tile=self.tile).image for image in lr]
        return torch.cat(images).to(lr)


class AtdArch(Architecture[ATD]):
    """ATD alone: a weights file of this project, or the authors' `atd_real.pth`."""

    def __init__(self) -> None:
        official = KeyCondition.has_all("layers.0.residual_group.td", "layers.0.patch_embed.norm.weight")
        detect = KeyCondition.has_any(official, "atd.conv_first.weight")
        super().__init__(id="ATDReal", name="ATD real", detect=detect)

    def load(self, state_dict: State) -> ImageModelDescriptor[ATD]:
        """Raises `CheckpointError` for weights that do not fit their settings, and for ours without settings."""
        if "atd.conv_first.weight" in state_dict:
            file = from_tensors(state_dict, WHERE)
            cfg, scale, state = file.section("atd", Atd), file.scale, file.parts["atd"]
        else:
            (cfg, scale), state = read_atd(state_dict, CATEGORY_SIZE), state_dict
        atd = restored(lambda: build_atd(cfg, scale), state, WHERE)
        tags = [cfg.flavour, f"{cfg.dim}dim", f"{cfg.window}w", f"{cfg.category_size}cat"]
        return _described(self, atd, scale, tags, ModelTiling.SUPPORTED)


class UpsrArch(Architecture[Upsr]):
    """UPSR: a weights file of this project with ATD and UNet."""

    def __init__(self) -> None:
        detect = KeyCondition.has_all("atd.conv_first.weight", "unet.time_embed.0.weight")
        super().__init__(id="UPSR", detect=detect)

    def load(self, state_dict: State) -> ImageModelDescriptor[Upsr]:
        """Raises `CheckpointError` for weights that do not fit their settings, and for those without settings."""
        file = from_tensors(state_dict, WHERE)
        dim = file.section("unet", Unet).dim
        steps = file.section("diffusion", Diffusion).steps
        tags = [f"{dim}dim", f"{steps} steps", file.section("uncertainty", Uncertainty).variant]
        upsr = Upsr(Upscaler.from_pretrained(file))
        return _described(self, upsr, file.scale, tags, ModelTiling.INTERNAL)


def _described(
    architecture: Architecture[Any], model: nn.Module, scale: int, tags: list[str], tiling: ModelTiling
) -> ImageModelDescriptor[Any]:
    """The descriptor of a loaded network. Any image size fits.

    In half precision UPSR needs autocast, which spandrel lacks, and ATD puts pixels into other categories.
    """
    return ImageModelDescriptor(
        model.eval().to(memory_format=LAYOUT),
        model.state_dict(),
        architecture=architecture,
        purpose="SR",
        tags=tags,
        supports_half=False,
        supports_bfloat16=False,
        scale=scale,
        input_channels=3,
        output_channels=3,
        tiling=tiling,
    )


def install() -> None:
    """Adds both architectures to spandrel's main registry; a second call changes nothing."""
    MAIN_REGISTRY.add(
        ArchSupport.from_architecture(AtdArch(), before=("ATD",)),  # which would take the authors' `atd_real.pth`
        ArchSupport.from_architecture(UpsrArch(), before=("ATDReal",)),
        ignore_duplicates=True,
    )
