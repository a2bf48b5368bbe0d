"""Every setting of the project as frozen records, one per section of params.yaml.

An unknown key, a missing key or an invalid value raises a `ConfigError` that names its path.
"""

from upsr.config.data import Crop, Data, Pack
from upsr.config.degradation import Blur, Degradation, Noise, Resize, Round
from upsr.config.diffusion import Diffusion, Dynamic, Uncertainty
from upsr.config.evaluation import Evaluate, Judged, Nightly
from upsr.config.flows import Jobs, Sweep
from upsr.config.networks import ATD_TRAINING_KEYS, Atd, Unet
from upsr.config.params import Params, check_denoiser, load_params, read_yaml
from upsr.config.section import ConfigError, Scale, Section, parse, short
from upsr.config.training import AtdRecipe, MicroBatch, Rate, Recipe, Select, Train, UnetRecipe

__all__ = [
    "ATD_TRAINING_KEYS",
    "Atd",
    "AtdRecipe",
    "Blur",
    "ConfigError",
    "Crop",
    "Data",
    "Degradation",
    "Diffusion",
    "Dynamic",
    "Evaluate",
    "Jobs",
    "Judged",
    "MicroBatch",
    "Nightly",
    "Noise",
    "Pack",
    "Params",
    "Rate",
    "Recipe",
    "Resize",
    "Round",
    "Scale",
    "Section",
    "Select",
    "Sweep",
    "Train",
    "Uncertainty",
    "Unet",
    "UnetRecipe",
    "check_denoiser",
    "load_params",
    "parse",
    "read_yaml",
    "short",
]
