"""What the two training stages share: pairs, previews, tracking, and what is left in the models' folder."""

import argparse
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from pipelines import tracking
from upsr.checkpoint import STARTERS, CheckpointError, load_weights, weights_file
from upsr.config import Degradation, Recipe, Section, Train
from upsr.data.datasets import PatchDataset
from upsr.degradation.pair_pool import PairPool
from upsr.degradation.second_order import SecondOrder, build_degradation
from upsr.images import find, resize, to_image, write
from upsr.models import ATD, UNet
from upsr.models.widen import widen_atd, widen_unet
from upsr.training.loop import fit
from upsr.training.memory import memory_errors_in_one_line
from upsr.training.objectives import AtdObjective, Pairs, UnetObjective
from upsr.training.perceptual import Lpips
from upsr.training.state import clear, differences
from upsr.training.validation import Validation, held_out

WEIGHTS = Path("data/metric_weights")
LMDB = Path("data/train.lmdb")
HELD_OUT = Path("data/benchmarks/holdout/HR")
PREVIEWS = 3  # pictures on a preview sheet
HOW_IT_IS_TRAINED = {"lpips_weight", "schedule"}  # what the section `atd` holds beside the network
# What changes neither the weights nor which are chosen: a state goes on under other values of these.
HOW_NOT_WHAT = {"init", "workers", "checkpointing", "preview_every", "save_every", "keep", "max_bad_steps"}


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
    inputs |= {"init": file_digest(init)} if init else {}
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
    digest = hashlib.sha256("".join(file_digest(path) for path in pictures).encode()).hexdigest()[:16]
    pairs = held_out(pictures, degrade, recipe.patch)
    return Validation(pairs, upscale, Lpips(WEIGHTS) if shared.select.lpips else None), digest


def initial_weights(name: str, width: int, init: str) -> Path | None:
    """The file that `atd` or `unet` begins from: of the starter weights the widest whose width divides this one's."""
    if init != "starter":
        return None if init == "none" else weights_file(init)
    kind = {"atd": "atd", "unet": "upsr"}[name]
    widths = [int(folder.name.removeprefix(f"{kind}-")) for folder in STARTERS.glob(f"{kind}-*")]
    return weights_file(STARTERS / f"{kind}-{max(widths, key=lambda w: (width % w == 0, w))}")


def initialise(network: nn.Module, name: str, cfg: Section, scale: int, init: str) -> None:
    """Gives a network the weights of that `name` in train.init, where there is one. Raises `CheckpointError`.

    Weights of a network whose width divides this one's are widened. The starter weights, of ATD and UNet, are for the
    networks they fit; any other starts from nothing.
    """
    ours: dict[str, Any] = {"scale": scale, name: cfg.model_dump(mode="json", exclude=HOW_IT_IS_TRAINED)}
    width = ours[name]["dim"]
    path = initial_weights(name, width, init)
    if path is None:
        return
    weights, theirs = load_weights(path)
    if name not in theirs:
        print(f"train.init: {path} holds no {name}, which starts from nothing", flush=True)
        return
    narrow = theirs[name]["dim"]
    fitting = {k: v for k, v in theirs[name].items() if k not in HOW_IT_IS_TRAINED}
    fitting |= {"dim": width} if width % narrow == 0 else {}
    wrong = differences({"scale": theirs["scale"], name: fitting}, ours)
    if wrong and init == "starter":
        print(f"{name}: starts from nothing; the starter weights are another network ({'; '.join(wrong)})", flush=True)
        return
    if wrong:
        raise CheckpointError(f"train.init: {path} is another network ({'; '.join(wrong)}): set the values of the file")
    own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
    if width != narrow:
        own = widen_atd(own, network) if isinstance(network, ATD) else widen_unet(own, cast(UNet, network))
    network.load_state_dict(own)
    print(f"{name}: starts from {path}" + f", widened from {narrow} to {width}" * (width != narrow), flush=True)


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
