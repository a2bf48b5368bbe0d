"""From the section `uncertainty` of the settings to a variant."""

from upsr.config import Uncertainty
from upsr.diffusion.detail import LearnedEdges, sobel
from upsr.diffusion.uncertainty.contract import Variant
from upsr.diffusion.uncertainty.dynamic import Dynamic
from upsr.diffusion.uncertainty.edge_frequency import EdgeFrequency
from upsr.diffusion.uncertainty.isotropic import Isotropic
from upsr.diffusion.uncertainty.residual import Residual


def build_uncertainty(cfg: Uncertainty) -> Variant:
    """The variant of the section. `load_edge_detector` gives a learned edge detector its weights.

    Raises `ValueError` where a learned edge detector needs kornia and it is not installed.
    """
    match cfg.variant:
        case "isotropic":
            return Isotropic()
        case "residual":
            return Residual(
                cfg.floor,
                cfg.psi_max,
                gray=cfg.channels == "gray",
                invert=cfg.invert,
                measured=cfg.normalise == "energy",
            )
        case "edge_frequency":
            return _edge_frequency(cfg)
        case "dynamic":
            return Dynamic(_edge_frequency(cfg), **dict(cfg.dynamic))


def _edge_frequency(cfg: Uncertainty) -> EdgeFrequency:
    return EdgeFrequency(
        sobel if cfg.edges == "sobel" else LearnedEdges(),
        floor=cfg.floor,
        invert=cfg.invert,
        cutoff=cfg.cutoff,
        softness=cfg.softness,
        percentile=cfg.percentile,
        mix=cfg.mix,
        learn_mix=cfg.learn_mix,
        one_unit=cfg.unit == "training",
        measured=cfg.normalise == "energy",
    )


def load_edge_detector(uncertainty: Variant, path: str) -> None:
    """Loads the weights of a learned edge detector, if there is one; a trained model's file includes them.

    Raises `FileNotFoundError`, or `ValueError` for another file.
    """
    for module in uncertainty.modules():
        if isinstance(module, LearnedEdges):
            module.load(path)
