"""The two networks: ATD (the auxiliary network g) and the Swin UNet (the denoiser's network)."""

from upsr.models.atd import ATD, build_atd
from upsr.models.unet import UNet, build_unet

__all__ = ["ATD", "UNet", "build_atd", "build_unet"]
