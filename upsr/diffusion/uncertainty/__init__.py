"""Uncertainty: how much noise each pixel gets. A variant turns an image into a noise weight w in [b, 1].

`contract.Variant` says what a variant provides; each variant is a file; `build_uncertainty` makes the one that the
settings name. docs/extending.md adds a variant, step by step.
"""

from upsr.diffusion.uncertainty.build import build_uncertainty, load_edge_detector
from upsr.diffusion.uncertainty.contract import Analysis, Measured, Variant, enlarged, no_analysis
from upsr.diffusion.uncertainty.dynamic import Dynamic
from upsr.diffusion.uncertainty.edge_frequency import EdgeFrequency
from upsr.diffusion.uncertainty.isotropic import Isotropic
from upsr.diffusion.uncertainty.residual import Residual

__all__ = [
    "Analysis",
    "Dynamic",
    "EdgeFrequency",
    "Isotropic",
    "Measured",
    "Residual",
    "Variant",
    "build_uncertainty",
    "enlarged",
    "load_edge_detector",
    "no_analysis",
]
