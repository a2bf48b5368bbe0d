"""All of params.yaml, and what must fit from section to section."""

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
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    scale: Literal[2, 4]
    data: Data
    crop: Crop
    pack: Pack
    degradation: Degradation
    atd: Atd
    unet: Unet
    diffusion: Diffusion
    uncertainty: Uncertainty
    train: Train
    train_atd: AtdRecipe
    train_unet: UnetRecipe
    evaluate: Evaluate
    jobs: Jobs
    nightly: Nightly
    sweep: Sweep

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
    def _branches_have_a_mix(self) -> Self:
        if self.unet.branches == 2 and self.uncertainty.variant == "isotropic":
            raise ValueError("unet.branches is 2, but uncertainty.variant `isotropic` has no map to mix them by: use 1")
        return self

    @model_validator(mode="after")
    def _skip_leads_to_a_picture(self) -> Self:
        if self.unet.global_skip and self.diffusion.predict == "epsilon":
            raise ValueError("unet.global_skip adds a picture, but diffusion.predict is `epsilon`: use false")
        return self

    @model_validator(mode="after")
    def _edge_weights_are_at_hand(self) -> Self:
        path = self.uncertainty.edge_weights
        if self.uncertainty.edges == "dexined" and path and not Path(path).is_file():
            raise ValueError(f"uncertainty.edge_weights: {path}: no such file: fetch kornia's DexiNed, or use sobel")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.atd.schedule == "x2_then_x4" and self.scale != 4:
            raise ValueError(f"atd.schedule `x2_then_x4` needs scale 4, not {self.scale}: set atd.schedule: direct_x4")
        if self.atd.schedule == "x2_then_x4" and self.train.init != "none":
            raise ValueError("atd.schedule `x2_then_x4` and train.init both tell where ×4 starts: set train.init: none")
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads the settings file. Raises `ConfigError` in one line for a missing file, broken YAML or any wrong key."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run the command in the project's folder") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse(Params, values, str(path))
