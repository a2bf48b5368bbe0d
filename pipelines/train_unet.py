"""Stage `train_unet`: trains the denoiser with g frozen."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor

from pipelines.processes import on_all_devices
from pipelines.stage import run
from pipelines.training import LMDB, MODELS, WEIGHTS, begin, check_kept, finish, short_digest, train
from upsr.config import Atd, Diffusion, Params, load_params
from upsr.data.datasets import PatchDataset
from upsr.diffusion.denoiser import Denoiser, build_denoiser, upsample
from upsr.diffusion.diffuser import Diffuser
from upsr.diffusion.noise import field
from upsr.diffusion.uncertainty import load_edge_detector
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.models.widen import widen_unet
from upsr.pretrained import FILE, Pretrained, load_pretrained, save_pretrained, weights_file
from upsr.training.initial import initial_weights, initialise
from upsr.training.teacher import move_timesteps, prepare_student
from upsr.training.unet_objective import build_unet_objective

FOLDER = MODELS["unet"]
ATD = MODELS["atd"] / FILE
CALIBRATION = 256  # patches that the uncertainty variant is calibrated on, or fewer:
CALIBRATION_PIXELS = 2**20  # of all of them
EPSILON_STEPS = 100  # below this, ε-prediction is ill-posed


def main() -> None:
    params = load_params()
    begin(FOLDER)
    train_denoiser(params)
    finish(FOLDER)


def train_denoiser(params: Params, wrap: Callable[[nn.Module], nn.Module] = lambda g: g) -> None:
    """Trains the denoiser in the working directory, with `wrap(g)` in place of g.

    Raises `CheckpointError` for a g, initial weights or a teacher that cannot be used, and `TrainingError` as `train`.
    """
    recipe = params.train_unet
    teacher = weights_file(recipe.teacher) if recipe.teacher else None
    init = recipe.teacher or params.train.init
    detector = params.uncertainty.edge_weights if params.uncertainty.edges == "dexined" else None

    # auxiliary network
    atd_file = load_pretrained(ATD)
    atd_section = atd_file.section("atd", Atd)
    atd = wrap(atd_file.network("atd", lambda: build_atd(atd_section, params.scale)))
    settings = {
        "scale": params.scale,
        "atd": atd_section,
        "unet": params.unet,
        "diffusion": params.diffusion,
        "uncertainty": params.uncertainty,
    }

    # functions for `train`
    def build() -> Denoiser:
        denoiser, variant = fresh_denoiser(params), params.uncertainty.variant
        file = initialise(denoiser.network, "unet", params.unet, params.scale, init, widen_unet, variant)
        if file is not None:
            move_timesteps(denoiser, file)
        if objective.teacher is not None:
            prepare_student(denoiser, objective.teacher)
            return denoiser
        if detector is not None:
            load_edge_detector(denoiser.uncertainty, detector)
        if params.uncertainty.normalise == "energy" or params.uncertainty.unit == "training":
            patches = PatchDataset(LMDB, recipe.patch, params.seed)
            count = max(min(CALIBRATION, CALIBRATION_PIXELS // recipe.patch**2), 1)
            objective.calibrate(denoiser, torch.stack([patches[i] for i in range(count)]), params.seed)
        return denoiser

    def save(path: Path, denoiser: nn.Module) -> None:
        """Writes both networks to one file, which is enough to upscale."""
        denoiser = cast(Denoiser, denoiser)
        parts = {"atd": atd_file.parts["atd"], "unet": denoiser.network.state_dict()}
        save_pretrained(path, parts | {"uncertainty": denoiser.uncertainty.state_dict()}, settings)

    def upscale(denoiser: nn.Module, lr: Tensor) -> Tensor:
        diffuser = Diffuser(cast(Denoiser, denoiser), params.diffusion.sampler_eta, multiple=1)
        y_up, sr = upsample(lr, params.scale), atd(lr)
        noise = lambda t: field(0, t, 0, 0, *sr.shape[2:]).to(sr.device)  # noqa: E731
        return diffuser(y_up, sr, noise, diffuser.analyse(lr))[0]

    warn_of_epsilon(params.diffusion)
    objective = build_unet_objective(params, atd, WEIGHTS)
    if teacher:
        check_kept("train_unet.teacher", teacher)
        tell_of_another_g(teacher, atd_file)

    train(
        "train-unet",
        f"{params.uncertainty.variant}-{params.unet.dim}",
        FOLDER,
        build,
        objective,
        recipe=recipe,
        shared=params.train,
        seed=params.seed,
        settings={**settings, "degradation": params.degradation},
        inputs={"atd_weights": short_digest(ATD)}
        | ({"edge_weights": short_digest(Path(detector))} if detector else {})
        | ({"teacher": short_digest(teacher)} if teacher else {}),
        tags={"variant": params.uncertainty.variant, "width": str(params.unet.dim)},
        init=None if teacher else initial_weights("unet", params.unet.dim, init),
        save=save,
        upscale=upscale,
        lr_scales={"uncertainty": params.uncertainty.lr_scale},
    )


def fresh_denoiser(params: Params) -> Denoiser:
    """A denoiser of the settings, with random weights."""
    return build_denoiser(
        build_unet(params.unet, params.scale),
        unet=params.unet,
        diffusion=params.diffusion,
        uncertainty=params.uncertainty,
        scale=params.scale,
    )


def tell_of_another_g(path: Path, atd: Pretrained) -> None:
    """Prints a line where a teacher was trained with another g than `atd`'s, which it gets here."""
    theirs, ours = load_pretrained(path).parts.get("atd", {}), atd.parts["atd"]
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[k].float(), ours[k].float()) for k in ours):
        print(f"teacher: {path} was trained with another g than {atd.path}, which it gets here", flush=True)


def warn_of_epsilon(cfg: Diffusion) -> None:
    """Prints a warning where the network predicts ε on a chain with few timesteps."""
    if cfg.predict == "epsilon" and cfg.steps < EPSILON_STEPS:
        error = cfg.kappa * cfg.sqrt_eta_end / (1 - cfg.sqrt_eta_end**2)
        print(
            f"params.yaml: diffusion.predict `epsilon` with {cfg.steps} steps: an error of ε is {error:.0f} times "
            f"larger in x̂0 at t = {cfg.steps}, and few steps correct it: use x0, or {EPSILON_STEPS} steps or more",
            flush=True,
        )


if __name__ == "__main__":
    run(partial(on_all_devices, main, "train_unet"))
