"""The weights that training starts from: bundled weights, another model's, or none (`train.init`)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn as nn
from torch import Tensor

from upsr.config import ATD_TRAINING_KEYS, Atd, Unet
from upsr.pretrained import (
    BUNDLED,
    REMEDY,
    CheckpointError,
    Pretrained,
    bundled,
    load_pretrained,
    load_weights,
    weights_file,
)
from upsr.training.state import differences

State = dict[str, Tensor]


def initial_weights(name: str, width: int, init: str) -> Path | None:
    """The weights file that `atd` or `unet` (`name`) starts from; None if it trains from scratch.

    For `starter`, it is the widest of the bundled weights whose width divides `width`; if none does, the widest.
    """
    if init != "starter":
        return None if init == "none" else weights_file(init)
    kind = {"atd": "atd", "unet": "upsr"}[name]
    widths = [int(found[1]) for known in bundled() if (found := re.fullmatch(rf"{kind}-(\d+)", known))]
    return weights_file(BUNDLED / f"{kind}-{max(widths, key=lambda w: (width % w == 0, w))}")


def initialise(
    network: nn.Module,
    name: str,
    cfg: Atd | Unet,
    scale: int,
    init: str,
    widen: Callable[[State, nn.Module], State],
    variant: str | None = None,
) -> Pretrained | None:
    """Loads the part `name` of `init`'s weights file into a network, and returns the file, if it has that part.

    `widen` makes weights for a network 2, 3, ... times as wide. A network that the bundled weights do not fit trains
    from scratch for `starter`. If the file was trained with another uncertainty than `variant`, the printed line names
    both. Raises `CheckpointError` where another file does not fit, is missing or is foreign.
    """
    path = initial_weights(name, cfg.dim, init)
    if path is None:
        return None
    file = load_pretrained(path)
    if name not in file.settings:
        print(f"{name}: trains from scratch: {path} has no {name}", flush=True)
        return None
    # compare settings
    wanted: dict[str, Any] = {"scale": scale, name: cfg.model_dump(mode="json", exclude=ATD_TRAINING_KEYS)}
    found = file.section(name, type(cfg)).model_dump(mode="json", exclude=ATD_TRAINING_KEYS)
    narrow = found["dim"]
    found |= {"dim": cfg.dim} if cfg.dim % narrow == 0 else {}
    if found.get("skip") != "edm":  # without it, `sigma_data` has no effect
        found |= {"sigma_data": wanted[name].get("sigma_data")} if name == "unet" else {}
    wrong = differences({"scale": file.scale, name: found}, wanted)
    if wrong and init == "starter":
        print(f"{name}: trains from scratch: the bundled weights do not fit ({'; '.join(wrong)})", flush=True)
        return None
    if wrong:
        raise CheckpointError(f"{path}: weights of another network ({'; '.join(wrong)}): use the values of the file")
    # load, widened where needed
    weights = dict(file.parts[name])
    if cfg.dim != narrow:
        try:
            weights = widen(weights, network)
        except (KeyError, ValueError, RuntimeError, ArithmeticError):
            raise CheckpointError(f"{path}: its weights do not fit its settings: {REMEDY}") from None
    load_weights(network, weights, path)
    notes = [f"widened from {narrow} to {cfg.dim}"] if cfg.dim != narrow else []
    before = file.settings.get("uncertainty", {}).get("variant")
    if variant not in (None, before):
        notes.append(f"trained with `{before}` noise, this run's is `{variant}`: compare only runs with the same start")
    print(", ".join([f"{name}: starts from {path}", *notes]), flush=True)
    return file
