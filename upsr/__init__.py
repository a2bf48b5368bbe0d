"""Uncertainty-guided diffusion super-resolution: UPSR (CVPR 2025, arXiv 2503.18512), extended."""

import os
from typing import TYPE_CHECKING, Any

# Before torch is imported: how often its threads look for each other's work before they sleep. By default that is so
# often that a thread beside another busy process keeps the others waiting: 40 times slower, with this 6 times.
if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"

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
