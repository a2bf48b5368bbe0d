"""Stage `train_atd`: the auxiliary network g, on pairs degraded as it learns."""

from pathlib import Path

import torch.nn as nn

from pipelines.stage import run
from pipelines.training import WEIGHTS, build_pairs, train
from upsr.checkpoint import save_weights
from upsr.config import load_params
from upsr.models import build_atd
from upsr.training.objectives import AtdObjective
from upsr.training.perceptual import PerceptualLoss

FOLDER = Path("models/atd")


def main() -> None:
    params = load_params()
    recipe = params.train_atd
    pairs = build_pairs(params.degradation, params.scale, recipe.pool)
    perceptual = PerceptualLoss(params.atd.lpips_weight, params.train.lpips_range, WEIGHTS)
    settings = {"scale": params.scale, "atd": params.atd}

    def save(path: Path, atd: nn.Module) -> None:
        save_weights(path, {f"atd.{k}": v for k, v in atd.state_dict().items()}, settings)

    train(
        "train-atd",
        FOLDER,
        lambda: build_atd(params.atd, params.scale),
        AtdObjective(pairs, perceptual),
        recipe=recipe,
        shared=params.train,
        seed=params.seed,
        settings={**settings, "degradation": params.degradation},
        inputs={},
        save=save,
        upscale=lambda atd, lr: atd(lr),
    )


if __name__ == "__main__":
    run(main)
