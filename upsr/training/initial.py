"""The weights that a training starts from: bundled ones, another model's, or none (`train.init`)."""

from pathlib import Path
from typing import Any

import torch.nn as nn

from upsr.config import Atd, Unet
from upsr.models import ATD, UNet
from upsr.models.widen import widen_atd, widen_unet
from upsr.pretrained import BUNDLED, CheckpointError, bundled, load_pretrained, weights_file
from upsr.training.state import differences

NOT_OF_THE_NETWORK = {"lpips_weight", "schedule"}  # keys of the section `atd` that say how ATD is trained


def initial_weights(name: str, width: int, init: str) -> Path | None:
    """The file that `atd` or `unet` starts from, None for none.

    For `starter` it is the widest of the bundled weights whose width divides this network's.
    """
    if init != "starter":
        return None if init == "none" else weights_file(init)
    kind = {"atd": "atd", "unet": "upsr"}[name]
    widths = [int(known.removeprefix(f"{kind}-")) for known in bundled() if known.startswith(f"{kind}-")]
    return weights_file(BUNDLED / f"{kind}-{max(widths, key=lambda w: (width % w == 0, w))}")


def initialise(network: nn.Module, name: str, cfg: Atd | Unet, scale: int, init: str) -> None:
    """Gives a network the weights of the part `name` of `init`'s file, where there is one.

    A network 2, 3, ... times as wide as the file's starts from its weights widened. For `starter`, a network that the
    bundled weights do not fit starts from scratch; for any other file, raises `CheckpointError`.
    """
    path = initial_weights(name, cfg.dim, init)
    if path is None:
        return
    file = load_pretrained(path)
    if name not in file.settings:
        print(f"train.init: {path} holds no {name}, which trains from scratch", flush=True)
        return
    ours: dict[str, Any] = {"scale": scale, name: cfg.model_dump(mode="json", exclude=NOT_OF_THE_NETWORK)}
    theirs = {k: v for k, v in file.settings[name].items() if k not in NOT_OF_THE_NETWORK}
    narrow = theirs["dim"]
    theirs |= {"dim": cfg.dim} if cfg.dim % narrow == 0 else {}
    wrong = differences({"scale": file.scale, name: theirs}, ours)
    if wrong and init == "starter":
        print(f"{name}: trains from scratch: the bundled weights are another network ({'; '.join(wrong)})", flush=True)
        return
    if wrong:
        raise CheckpointError(f"train.init: {path} is another network ({'; '.join(wrong)}): set the values of the file")
    weights = dict(file.parts[name])
    if cfg.dim != narrow and isinstance(network, ATD):
        weights = widen_atd(weights, network)
    elif cfg.dim != narrow and isinstance(network, UNet):
        weights = widen_unet(weights, network)
    network.load_state_dict(weights)
    print(f"{name}: starts from {path}" + f", widened from {narrow} to {cfg.dim}" * (cfg.dim != narrow), flush=True)
