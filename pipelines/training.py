"""What the two training stages share: pairs, previews, tracking, and what is left in the models' folder."""

import argparse
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from pipelines import tracking
from upsr.config import Degradation, Recipe, Section, Train
from upsr.data.datasets import PatchDataset
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import SecondOrder, build_degradation
from upsr.files import sha256
from upsr.images import find, resize, to_image, write
from upsr.training.loop import fit
from upsr.training.memory import memory_errors_in_one_line
from upsr.training.pairs import Objective, Pairs
from upsr.training.perceptual import Lpips
from upsr.training.state import clear
from upsr.training.validation import Validation, held_out

WEIGHTS = Path("data/metric_weights")
LMDB = Path("data/train.lmdb")
HELD_OUT = Path("data/benchmarks/holdout/HR")
PREVIEWS = 3  # images on a preview sheet
# What changes neither the weights nor which are chosen: a state goes on under other values of these.
HOW_NOT_WHAT = {"init", "workers", "checkpointing", "preview_every", "save_every", "keep", "max_bad_steps"}


def build_pairs(cfg: Degradation, scale: int, recipe: Recipe) -> Pairs:
    return Pairs(build_degradation(cfg, scale), PairPool(recipe.pool, recipe.batch))


def train(
    experiment: str,
    name: str,
    folder: Path,
    build: Callable[[], nn.Module],
    objective: Objective,
    *,
    recipe: Recipe,
    shared: Train,
    seed: int,
    settings: Mapping[str, Section | int],
    inputs: dict[str, str],
    init: Path | None,
    save: Callable[[Path, nn.Module], None],
    upscale: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """Trains one network below `folder`: weights, log, table of checkpoints, previews, and one MLflow run, `name`.

    `settings` are what the network and its pairs are made of, `inputs` the digests of the other files it learns
    from, `init` the weights file it begins from; a state that belongs to other ones is refused. The last state stays
    until `finish`, so that a training that has ended is not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    dataset = PatchDataset(LMDB, recipe.patch, seed)
    validate, digest = validation(objective.pairs.degrade, shared, recipe, upscale)
    inputs = inputs | {"data": _data_digest(), "held_out": digest}
    inputs |= {"init": short_digest(init)} if init else {}
    plain = {name: s.model_dump(mode="json") if isinstance(s, Section) else s for name, s in settings.items()}
    plain |= {"recipe": recipe.model_dump(mode="json"), "seed": seed}
    plain |= {"train": shared.model_dump(exclude=HOW_NOT_WHAT)}
    run_file = folder / "run_id"
    run_id = run_file.read_text() if run_file.is_file() and any(folder.glob("state-*.pt")) else None
    section = experiment.replace("-", "_")
    with (
        tracking.start(experiment, name, plain, inputs, run_id=run_id) as tracker,
        memory_errors_in_one_line(section, recipe.micro_batch, recipe.patch),
    ):

        def report(step: int, values: dict[str, float]) -> None:
            tracker.metrics(values, step)
            if tracker.run_id:  # unknown until the store was reached once
                run_file.write_text(tracker.run_id)

        fit(
            build(),
            objective,
            dataset,
            recipe=recipe,
            train=shared,
            seed=seed,
            folder=folder,
            identity=plain | inputs,
            validate=validate,
            save=save,
            report=report,
            preview=partial(_preview, folder, dataset, objective.pairs.degrade, upscale, tracker),
        )
        tracker.artifact(folder / "log.csv")
        tracker.artifact(folder / "checkpoints.csv")


def validation(
    degrade: SecondOrder, shared: Train, recipe: Recipe, upscale: Callable[[nn.Module, Tensor], Tensor]
) -> tuple[Validation, str]:
    """What checkpoints are chosen by, and the digest of its pictures."""
    pictures = find(HELD_OUT)[: shared.validate_pictures]
    digest = hashlib.sha256("".join(short_digest(path) for path in pictures).encode()).hexdigest()[:16]
    pairs = held_out(pictures, degrade, recipe.patch)
    return Validation(pairs, upscale, Lpips(WEIGHTS) if shared.select.lpips else None), digest


def begin(*folders: Path) -> None:
    """Reads the command line of a training stage: with `--fresh`, what earlier trainings left to go on from goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fresh", action="store_true", help="start anew: remove the state of an unfinished training")
    if parser.parse_args().fresh:
        finish(*folders)


def finish(*folders: Path) -> None:
    """Removes what a training goes on from; its results stay."""
    for folder in folders:
        clear(folder)
        (folder / "run_id").unlink(missing_ok=True)


def _data_digest() -> str:
    """What the store holds, as `pack` noted it: nobody wants to hash 80 GB again."""
    return (LMDB / "sha256").read_text().strip()[:16]


def short_digest(path: Path) -> str:
    """Enough of a file's SHA-256 to tell inputs apart, in MLflow's tags and in a state's identity."""
    return sha256(path)[:16]


@torch.inference_mode()
def _preview(
    folder: Path,
    dataset: PatchDataset,
    degrade: SecondOrder,
    upscale: Callable[[nn.Module, Tensor], Tensor],
    tracker: tracking.Tracker,
    step: int,
    network: nn.Module,
) -> None:
    """One sheet a time: a row per picture of LR, bicubic, what the network makes of it, and HR."""
    device = next(network.parameters()).device
    hr = torch.stack([dataset[i] for i in range(PREVIEWS)]).to(device).float() / 255
    lr = degrade(hr, (0,))
    size = hr.shape[2:]
    columns = [F.interpolate(lr, size, mode="nearest"), resize(lr, size), upscale(network, lr), hr]
    sheet = np.concatenate([np.concatenate([to_image(c[i]) for c in columns], axis=1) for i in range(PREVIEWS)])
    write(folder / "previews" / f"{step:06d}.png", sheet)
    tracker.picture(f"previews/{step:06d}.png", sheet)
