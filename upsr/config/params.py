"""The record of params.yaml, and the checks that concern two sections."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import Field, model_validator

from upsr.config.data import Crop, Data, Pack
from upsr.config.degradation import Degradation
from upsr.config.diffusion import Diffusion, Uncertainty
from upsr.config.evaluation import Evaluate, Nightly
from upsr.config.flows import Jobs, Sweep
from upsr.config.networks import Atd, Unet
from upsr.config.section import ConfigError, Section, parse
from upsr.config.training import AtdRecipe, Train, UnetRecipe


class Params(Section):
    """All of params.yaml. Its validators check what concerns two sections."""

    seed: Annotated[int, Field(ge=0)]
    """Seed of everything random; the same seed repeats a run."""
    scale: Literal[2, 4]
    """s: upscaling factor per side."""
    data: Data
    """The images of training, validation and the benchmark `holdout` (stage `download`)."""
    crop: Crop
    """Cutting photographs into sub-images (stage `crop`)."""
    pack: Pack
    """The LMDB of training images (stage `pack`)."""
    degradation: Degradation
    """How LR images are made from HR images."""
    atd: Atd
    """The auxiliary network g."""
    unet: Unet
    """The denoiser's network."""
    diffusion: Diffusion
    """The diffusion process: noise schedule, prediction, sampler."""
    uncertainty: Uncertainty
    """The noise weight w: how much noise each pixel gets."""
    train: Train
    """What both trainings share."""
    train_atd: AtdRecipe
    """Training of ATD (stage `train_atd`)."""
    train_unet: UnetRecipe
    """Training of the UNet (stage `train_unet`)."""
    evaluate: Evaluate
    """Benchmarks and metrics (stage `evaluate`)."""
    jobs: Jobs
    """Where the flows run training and evaluation jobs."""
    nightly: Nightly
    """How the nightly flow judges figures and promotes a candidate."""
    sweep: Sweep
    """Experiments of the sweep flow."""

    @model_validator(mode="after")
    def _validation_images_suffice(self) -> Self:
        named, asked = len(set(self.data.validation)), self.train.validate_pictures
        if named < asked:
            raise ValueError(
                f"train.validate_pictures is {asked}, but data.validation names {named} images: lower it or name more"
            )
        return self

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        unet_step = self.scale * 2 ** (len(self.unet.channel_mult) - 1)
        for name, patch, step in (
            ("train_atd", self.train_atd.patch, self.scale),
            ("train_unet", self.train_unet.patch, unet_step),
        ):
            if patch % step or patch > self.crop.size:
                raise ValueError(
                    f"{name}.patch {patch} must be a multiple of {step}, at most crop.size {self.crop.size}"
                )
        return self

    @model_validator(mode="after")
    def _branches_have_a_map(self) -> Self:
        if self.unet.branches == 2 and self.uncertainty.variant == "isotropic":
            raise ValueError(
                "unet.branches is 2, but uncertainty.variant `isotropic` has no map to mix them by: set it to 1"
            )
        return self

    @model_validator(mode="after")
    def _skip_predicts_an_image(self) -> Self:
        if self.unet.skip != "none" and self.diffusion.predict == "epsilon":
            raise ValueError(
                f"unet.skip `{self.unet.skip}` adds an image, but diffusion.predict is `epsilon`: set it to none"
            )
        return self

    @model_validator(mode="after")
    def _edge_weights_exist(self) -> Self:
        path = self.uncertainty.edge_weights
        if self.uncertainty.edges == "dexined" and path and not Path(path).is_file():
            raise ValueError(f"uncertainty.edge_weights: {path}: no such file: download kornia's DexiNed, or use sobel")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.atd.schedule == "x2_then_x4" and self.scale != 4:
            raise ValueError(f"atd.schedule `x2_then_x4` needs scale 4, not {self.scale}: set atd.schedule: direct_x4")
        if self.atd.schedule == "x2_then_x4" and self.train.init != "none":
            raise ValueError(
                "atd.schedule `x2_then_x4` and train.init both set the initial ×4 weights: set train.init: none"
            )
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads a settings file. Raises `ConfigError`, in one line, for a missing file, invalid YAML or a wrong key."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run the command in the project folder") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse(Params, values, str(path))
