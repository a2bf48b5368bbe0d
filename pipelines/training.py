"""Shared by the two training stages: pairs, previews, tracking, and the files below models/."""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from pipelines import tracking, views
from upsr.allocator import keep_freed_memory
from upsr.config import Recipe, Section, Train
from upsr.data.datasets import PatchDataset
from upsr.degradation.second_order import SecondOrder
from upsr.files import DataError, atomic, sha256
from upsr.images import find, resize, to_image, write
from upsr.pretrained import CheckpointError
from upsr.training.loop import fit
from upsr.training.memory import memory_errors_in_one_line
from upsr.training.pairs import Objective
from upsr.training.perceptual import Lpips
from upsr.training.state import alone, clear, is_main
from upsr.training.validation import Validation, held_out

WEIGHTS = Path("data/metric_weights")
LMDB = Path("data/train.lmdb")
VALIDATION = Path("data/validation")
MODELS = {"atd": Path("models/atd"), "unet": Path("models/unet")}  # what the stages train_atd and train_unet write
RUN_ID = "run_id"  # file in a model's folder: the id of its MLflow run, and a digest of the training
PREVIEWS = 3  # rows of a preview sheet
FIGURES = {"validation/psnr": 105, "validation/lpips": 105}  # columns of MLflow's table, and their widths in pixels
# Keys of `train` that change neither the weights nor the choice of the best: they may change when a training resumes.
CHANGEABLE = {"init", "workers", "checkpointing", "preview_every", "save_every", "keep", "max_bad_steps"}
# Of a recipe, `micro_batch` may: where memory runs out, it is lowered. The batch is the same, summed in other parts, so
# that rounding differs; with `lpips_share` below 1, LPIPS sees other samples of it too.
RECIPE_CHANGEABLE = {"micro_batch"}


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
    tags: dict[str, str],
    init: Path | None,
    save: Callable[[Path, nn.Module], None],
    upscale: Callable[[nn.Module, Tensor], Tensor],
    lr_scales: Mapping[str, float] | None = None,
) -> None:
    """Trains one network. Writes weights, log, checkpoints and previews to `folder`, and one MLflow run `name`.

    `settings` configure the network and its pairs, `inputs` are digests of other input files, and `init` is the
    initial weights file. A state with other values of these is rejected. `tags` are for MLflow's table of
    runs. The last state is kept until `finish`, so that a completed training is not repeated. Raises `TrainingError`
    for such a state, `Locked` where another process trains in `folder`, and `CheckpointError` as `check_kept`.
    """
    if init:
        check_kept("train.init", init)
    # data
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    dataset = PatchDataset(LMDB, recipe.patch, seed)
    validate, digest = validation(objective.pairs.degrade, shared, recipe, upscale)
    # identity of the training
    inputs = inputs | {"data": _data_digest(), "held_out": digest}
    inputs |= {"init": short_digest(init)} if init else {}
    plain = {name: s.model_dump(mode="json") if isinstance(s, Section) else s for name, s in settings.items()}
    plain |= {"recipe": recipe.model_dump(mode="json", exclude=RECIPE_CHANGEABLE), "seed": seed}
    plain |= {"train": shared.model_dump(exclude=CHANGEABLE)}
    # MLflow run, which a second training in the same folder must not end
    training = hashlib.sha256(json.dumps(plain | inputs, sort_keys=True).encode()).hexdigest()[:16]
    tags = tags | {"steps": str(recipe.steps), "seed": str(seed)}
    section = experiment.replace("-", "_")
    with (
        alone(folder),
        tracking.start(experiment, name, plain, inputs | tags, run_id=_run_id(folder, training)) as tracker,
        memory_errors_in_one_line(section, recipe.micro_batch, recipe.patch),
    ):
        tracker.view(views.VIEW, views.table(FIGURES))
        tracker.dataset(LMDB.name, inputs["data"], LMDB, "training")
        if not any(folder.glob("state-*.pt")):  # `fit` may refuse a state, and then its run's id must stay
            _keep_run_id(folder, tracker.run_id, training)

        def report(step: int, values: dict[str, float]) -> None:
            tracker.metrics(values, step)
            _keep_run_id(folder, tracker.run_id, training)

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
            lr_scales=lr_scales,
            preview=partial(_preview, folder, dataset, objective.pairs.degrade, upscale, tracker),
        )
        tracker.artifact(folder / "log.csv")
        tracker.artifact(folder / "checkpoints.csv")


def validation(
    degrade: SecondOrder, shared: Train, recipe: Recipe, upscale: Callable[[nn.Module, Tensor], Tensor]
) -> tuple[Validation, str]:
    """The validation that ranks checkpoints, and a digest of its images.

    Raises `DataError` where there are fewer than `validate_pictures`: unreadable ones may have been skipped.
    """
    images = find(VALIDATION)[: shared.validate_pictures]
    if len(images) < shared.validate_pictures:
        raise DataError(
            f"{VALIDATION}: has {len(images)} images, but train.validate_pictures is {shared.validate_pictures}: "
            "lower it, or name more images in data.validation"
        )
    digest = hashlib.sha256("".join(short_digest(path) for path in images).encode()).hexdigest()[:16]
    pairs = held_out(images, degrade, recipe.patch)
    return Validation(pairs, upscale, Lpips(WEIGHTS) if shared.select.lpips else None), digest


def begin(*folders: Path) -> None:
    """Parses the command line of a training stage, and prepares its process to train on the CPU if there is no GPU.

    `--fresh` removes the training states in `folders`. Raises `Locked` where another process trains there.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--fresh", action="store_true", help="remove the state of an unfinished training first")
    if parser.parse_args().fresh and is_main():
        for folder in filter(Path.is_dir, folders):
            with alone(folder):
                finish(folder)
    if not torch.cuda.is_available():
        keep_freed_memory()


def check_kept(key: str, path: Path) -> None:
    """Raises `CheckpointError` where the value of `key` is a file that a training overwrites."""
    for name, folder in MODELS.items():
        if path.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{key}: {path}: train_{name} overwrites it: copy it to another folder")


def finish(*folders: Path) -> None:
    """Removes the training states and MLflow run ids. Results stay."""
    for folder in folders:
        clear(folder)
        (folder / RUN_ID).unlink(missing_ok=True)


def _run_id(folder: Path, training: str) -> str | None:
    """The id of the MLflow run that recorded this training before it was interrupted; `training` is a digest."""
    path = folder / RUN_ID
    run_id, _, digest = path.read_text().partition(" ") if path.is_file() else ("", "", "")
    return run_id if digest == training else None


def _keep_run_id(folder: Path, run_id: str | None, training: str) -> None:
    if run_id and is_main():  # None until the store was reached once
        with atomic(folder / RUN_ID) as temporary:
            temporary.write_text(f"{run_id} {training}")


def _data_digest() -> str:
    """The digest of the training data, as `pack` wrote it; hashing 80 GB again would take too long."""
    return (LMDB / "sha256").read_text().strip()[:16]


def short_digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256, for MLflow tags and the identity of a state."""
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
    """Writes a preview sheet; each row has LR, bicubic, the network's output and HR."""
    device = next(network.parameters()).device
    hr = degrade.target(torch.stack([dataset[i] for i in range(PREVIEWS)]).to(device).float() / 255)
    lr = degrade(hr, (0,))
    size = hr.shape[2:]
    columns = [F.interpolate(lr, size, mode="nearest"), resize(lr, size), upscale(network, lr), hr]
    sheet = np.concatenate([np.concatenate([to_image(c[i]) for c in columns], axis=1) for i in range(PREVIEWS)])
    write(folder / "previews" / f"{step:06d}.png", sheet)
    tracker.image(f"previews/{step:06d}.png", sheet)
