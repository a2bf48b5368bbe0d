"""Uncertainty-guided diffusion super-resolution: UPSR (CVPR 2025, arXiv 2503.18512), extended."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upsr.inference.upscaler import Upscaler as Upscaler

__all__ = ["Upscaler", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `upsr --help` does not import torch."""
    if name == "Upscaler":
        from upsr.inference.upscaler import Upscaler

        return Upscaler
    if name == "__version__":
        from importlib.metadata import version

        return version("upsr")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
