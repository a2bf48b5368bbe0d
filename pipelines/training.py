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
from upsr.images import resize, to_image, write
from upsr.training.loop import clear, fit
from upsr.training.objectives import AtdObjective, Pairs, UnetObjective

WEIGHTS = Path("data/metric_weights")
LMDB = Path("data/train.lmdb")
PREVIEWS = 3  # pictures on a preview sheet


def build_pairs(cfg: Degradation, scale: int, recipe: Recipe) -> Pairs:
    return Pairs(build_degradation(cfg, scale), PairPool(recipe.pool, recipe.batch))


def train(
    experiment: str,
    name: str,
    folder: Path,
    build: Callable[[], nn.Module],
    objective: AtdObjective | UnetObjective,
    *,
    recipe: Recipe,
    shared: Train,
    seed: int,
    settings: Mapping[str, Section | int],
    inputs: dict[str, str],
    save: Callable[[Path, nn.Module], None],
    upscale: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    """Trains one network below `folder`: weights, log and previews, and one MLflow run, `name`.

    `settings` are what the network and its pairs are made of, `inputs` the digests of the other files it learns
    from; a state that belongs to other ones is refused. The last state stays until `finish`, so that a training that
    has ended is not repeated.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    dataset = PatchDataset(LMDB, recipe.patch, seed)
    inputs = inputs | {"data": _data_digest()}
    plain = {name: s.model_dump(mode="json") if isinstance(s, Section) else s for name, s in settings.items()}
    plain |= {"recipe": recipe.model_dump(mode="json"), "seed": seed}
    shared_results = shared.model_dump(exclude={"workers", "preview_every", "save_every", "max_bad_steps"})
    run_file = folder / "run_id"
    run_id = run_file.read_text() if run_file.is_file() and any(folder.glob("state-*.pt")) else None
    with tracking.start(experiment, name, plain | {"train": shared_results}, inputs, run_id=run_id) as tracker:

        def report(step: int, values: dict[str, float]) -> None:
            tracker.metrics(values, step)
            if tracker.run_id:  # unknown until the store was reached once
                run_file.write_text(tracker.run_id)

        network = fit(
            build(),
            objective,
            dataset,
            recipe=recipe,
            train=shared,
            seed=seed,
            folder=folder,
            identity=plain | {"train": shared_results} | inputs,
            report=report,
            preview=partial(_preview, folder, dataset, objective.pairs.degrade, upscale, tracker),
        )
        save(folder / "weights.safetensors", network)
        tracker.artifact(folder / "log.csv")


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


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


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
