"""The record of params.yaml, and the checks that concern two sections."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, Node

from upsr.config.data import Crop, Data, Pack
from upsr.config.degradation import Degradation
from upsr.config.diffusion import Diffusion, Uncertainty
from upsr.config.evaluation import Evaluate, Nightly
from upsr.config.flows import Jobs, Sweep
from upsr.config.networks import Atd, Unet
from upsr.config.section import ConfigError, Scale, Section, parse, short
from upsr.config.training import AtdRecipe, Train, UnetRecipe

MOST_NODES = 100_000  # of one YAML file


class Params(Section):
    """All of params.yaml. Its validators check what concerns two sections."""

    seed: Annotated[int, Field(ge=0)]
    """Seed of everything random; the same seed repeats a run."""
    scale: Scale
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
    def _patches_suffice_for_losses(self) -> Self:
        # the networks of the losses shrink what they see; the UNet's later two see 7 pixels less
        atd_least = 32 if self.atd.schedule == "x2_then_x4" else 16  # patches of ×2 have half the side
        unet = self.train_unet
        for name, patch, key, weight, least in (
            ("train_atd", self.train_atd.patch, "atd.lpips_weight", self.atd.lpips_weight, atd_least),
            ("train_unet", unet.patch, "train_unet.lpips_weight", unet.lpips_weight, 16),
            ("train_unet", unet.patch, "train_unet.lpips_alex_weight", unet.lpips_alex_weight, 38),
            ("train_unet", unet.patch, "train_unet.dists_weight", unet.dists_weight, 8),
        ):
            if weight and patch < least:
                raise ValueError(f"{name}.patch {patch} must be at least {least} for {key}: raise it, or set {key}: 0")
        return self

    @model_validator(mode="after")
    def _denoiser_fits(self) -> Self:
        check_denoiser(self.unet, self.diffusion, self.uncertainty)
        return self

    @model_validator(mode="after")
    def _student_is_one(self) -> Self:
        if self.train_unet.teacher and self.diffusion.steps > 2:
            raise ValueError(
                f"train_unet.teacher: a student has 1 or 2 steps, not {self.diffusion.steps}: set diffusion.steps: 1"
            )
        if self.train_unet.teacher and self.diffusion.predict == "epsilon":
            raise ValueError(
                "train_unet.teacher: a student's few steps do not correct an error of ε: set diffusion.predict: x0"
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


def check_denoiser(unet: Unet | None, diffusion: Diffusion | None, uncertainty: Uncertainty | None) -> None:
    """Raises `ValueError` where two sections of one denoiser contradict each other; None stands for a missing one."""
    if unet and uncertainty and unet.branches == 2 and uncertainty.variant == "isotropic":
        raise ValueError(
            "unet.branches is 2, but uncertainty.variant `isotropic` has no map to mix them by: set it to 1"
        )
    if unet and diffusion and unet.skip != "none" and diffusion.predict == "epsilon":
        raise ValueError(f"unet.skip `{unet.skip}` adds an image, but diffusion.predict is `epsilon`: set it to none")


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads a settings file. Raises `ConfigError`, in one line, for a missing file, invalid YAML or a wrong key."""
    return parse(Params, read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The plain values of a YAML file of keys, read as DVC reads it: YAML 1.2, in which 010 is 10 and `yes` a text.

    Raises `ConfigError`, in one line, for any other file.
    """
    try:
        loader = YAML(typ="safe", pure=True)  # libyaml crashes where the file is nested too deeply
        root = loader.compose(Path(path).read_text(encoding="utf-8"))
        if _written_out(root, {}) > MOST_NODES:
            raise ConfigError(f"{path}: has more than {MOST_NODES} values with its aliases written out: remove some")
        values = loader.constructor.construct_document(root) if root else None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run the command in the project folder") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid YAML: it is nested too deeply") from None
    except ConfigError:
        raise
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise ConfigError(f"{path}: {short(str(error.problem))} in line {line}: remove one") from None
    except (YAMLError, ValueError, LookupError, AttributeError) as error:  # month 13, `!!int ''`, no UTF-8
        raise ConfigError(f"{path}: not valid YAML: {short(str(error), 400)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: has no keys: write `key: value` lines")
    return values


def _written_out(node: Node | None, known: dict[int, int]) -> int:
    """The number of values below a node, with aliases written out: YAML copies them where it merges (`<<`)."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES  # met again below itself: it has no end
        children = node.value if isinstance(node, CollectionNode) else []
        pairs = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in pairs)
    return known[id(node)]
