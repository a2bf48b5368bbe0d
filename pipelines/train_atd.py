"""Stage `train_atd`: trains the auxiliary network g at the final scale, optionally after a ×2 phase."""

from functools import partial
from pathlib import Path

import torch.nn as nn

from pipelines.processes import on_all_devices
from pipelines.stage import run
from pipelines.training import MODELS, WEIGHTS, begin, finish, short_digest, train
from upsr.config import Atd, AtdRecipe, Params, Recipe, Section, load_params
from upsr.models.atd import ATD, build_atd
from upsr.models.widen import widen_atd
from upsr.pretrained import FILE, load_pretrained, save_pretrained
from upsr.training.atd_objective import build_atd_objective
from upsr.training.initial import initial_weights, initialise
from upsr.training.state import TrainingError

FOLDER = MODELS["atd"]
X2 = FOLDER / "x2"


def main() -> None:
    params = load_params()
    recipe = params.train_atd
    begin(FOLDER, X2)
    body = None
    if params.atd.schedule == "x2_then_x4":
        _check_x2_state()
        train_atd(params, recipe_x2(recipe), 2, X2, None)
        body = X2 / FILE
    train_atd(params, own_recipe(recipe), params.scale, FOLDER, body)
    finish(FOLDER, X2)


def _check_x2_state() -> None:
    """Rejects a ×4 state of a training without a ×2 phase. `fit` would reject it only after the ×2 training."""
    if any(FOLDER.glob("state-*.pt")) and not any(X2.glob("state-*.pt")):
        raise TrainingError(
            f"{FOLDER}: contains the state of a training without a ×2 phase: finish it with atd.schedule: direct_x4, "
            "or start again with --fresh"
        )


def own_recipe(cfg: AtdRecipe) -> Recipe:
    """The recipe at the final scale, without the section `x2`."""
    return Recipe(**cfg.model_dump(exclude={"x2"}))


def recipe_x2(cfg: AtdRecipe) -> Recipe:
    """The recipe of the ×2 training. HR patches are half as large, so LR patches have the same size."""
    return own_recipe(cfg).model_copy(update=dict(cfg.x2) | {"patch": cfg.patch // 2})


def train_atd(params: Params, recipe: Recipe, scale: int, folder: Path, body: Path | None) -> None:
    """Trains ATD for one scale. `body` is the weights file of a ×2 network whose body it starts from."""
    settings: dict[str, Section | int] = {"scale": scale, "atd": params.atd}

    def build() -> ATD:
        atd = fresh_atd(params.atd, scale, body)
        initialise(atd, "atd", params.atd, scale, params.train.init, widen_atd)
        return atd

    def save(path: Path, atd: nn.Module) -> None:
        save_pretrained(path, {"atd": atd.state_dict()}, settings)

    train(
        "train-atd",
        f"{params.atd.flavour}-{params.atd.dim}-x{scale}",
        folder,
        build,
        build_atd_objective(params, scale, recipe, WEIGHTS),
        recipe=recipe,
        shared=params.train,
        seed=params.seed,
        settings={**settings, "degradation": params.degradation},
        inputs={"x2_weights": short_digest(body)} if body else {},
        tags={"width": str(params.atd.dim)},
        init=initial_weights("atd", params.atd.dim, params.train.init),
        save=save,
        upscale=lambda atd, lr: atd(lr),
    )


def fresh_atd(cfg: Atd, scale: int, body: Path | None) -> ATD:
    """A network with random weights; if the file `body` is given, all but the upsampler have its weights."""
    atd = build_atd(cfg, scale)
    if body is not None:
        file = load_pretrained(body)
        weights = file.network("atd", lambda: build_atd(cfg, file.scale)).state_dict()
        atd.load_state_dict(atd.state_dict() | {k: v for k, v in weights.items() if not k.startswith("upsample.")})
    return atd


if __name__ == "__main__":
    run(partial(on_all_devices, main, "train_atd"))
