"""`upsr bench`: how fast this machine cuts, packs, reads and degrades."""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.commands import device, new, positive

if TYPE_CHECKING:
    from upsr.commands import Commands

WIDTH = 2040  # of DF2K's pictures
PATCH = 256
CROP_SIZE, CROP_STEP = 480, 240
ROUNDS = 5  # in which each way is measured in turn, so that other work on the machine weighs on all alike


def add(commands: "Commands") -> None:
    be = new(commands, "bench", run, "measure the speed of the data's way into a training")
    be.add_argument("what", choices=["data", "degrade"], help="crop, pack and read; or degrade")
    be.add_argument("--pictures", type=positive, default=20, help="data: pictures of 2K, made of the samples")
    be.add_argument("--batch", type=positive, default=16, help="degrade: pictures of 256x256 at once")
    be.add_argument("--steps", type=positive, default=20, help="degrade: batches")
    be.add_argument("--device", help="degrade: cpu, cuda, ... (default: a GPU if there is one)")


def run(options: argparse.Namespace) -> None:
    """Prints figures; keeps nothing."""
    if options.what == "degrade":
        _degrade(options.batch, options.steps, device(options.device))
        return
    with tempfile.TemporaryDirectory(prefix="upsr-bench-") as folder:
        _data(Path(folder), options.pictures)


def make_pictures(folder: Path, count: int) -> None:
    """Sample photographs enlarged to 2K, with a grain of their own so that PNG finds no repetition."""
    from upsr.data import sources

    photos = [images.read_rgb(photo.path) for photo in sources.find("sample", None, ())]
    for number in tqdm(range(count), desc="make", disable=None):
        photo = photos[number % len(photos)]
        size = (WIDTH, round(photo.shape[0] * WIDTH / photo.shape[1]))
        large = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC))[:1440]
        grain = np.random.default_rng(number).integers(-4, 5, large.shape)
        images.write(folder / f"{number:04d}.png", np.clip(large + grain, 0, 255).astype(np.uint8))


def _data(folder: Path, count: int) -> None:
    from upsr.data.lmdb_store import pack
    from upsr.data.subimages import crop

    make_pictures(folder / "hr", count)
    half = folder / "half"
    half.mkdir()
    for path in images.find(folder / "hr")[: count // 2]:
        (half / path.name).symlink_to(path)
    for source in (half, folder / "hr"):
        start = time.perf_counter()
        cut = crop(
            source,
            folder / "sub",
            size=CROP_SIZE,
            step=CROP_STEP,
            threshold=0,
            min_gradient=0,
            on_corrupt="fail",
        )
        pack(folder / "sub", folder / "png.lmdb", "png")
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pictures = len(cut["cut"])
        print(f"crop + pack of {pictures}: {pictures / seconds:.2f} pictures/s, peak memory {peak:.0f} MB so far")
    _read(folder)


def _read(folder: Path) -> None:
    """Crops per second and core of each encoding, against files."""
    from upsr.data.datasets import PatchDataset
    from upsr.data.lmdb_store import pack

    cv2.setNumThreads(1)
    files, rng = images.find(folder / "sub")[:60], np.random.default_rng(0)
    few = folder / "few"
    few.mkdir()
    for path in files:
        (few / path.name).symlink_to(path)

    def from_file(_: int) -> np.ndarray:
        picture = images.read_rgb(files[rng.integers(len(files))])
        y, x = (rng.integers(max(side - PATCH, 0) + 1) for side in picture.shape[:2])
        return picture[y : y + PATCH, x : x + PATCH].copy()

    ways: dict[str, Callable[[int], object]] = {"files": from_file}
    bytes_each = {"files": sum(p.stat().st_size for p in files) / len(files)}
    for encoding in ("png", "webp", "raw"):
        store = folder / f"few-{encoding}.lmdb"
        pack(few, store, encoding)
        ways[encoding] = PatchDataset(store, PATCH, seed=0).__getitem__
        bytes_each[encoding] = (store / "data.mdb").stat().st_size / len(files)
    rates = _rates(ways, 40)
    for name, rate in rates.items():
        print(
            f"{name:6} {rate:7.0f} crops of {PATCH}x{PATCH} per second and core, {rate / rates['files']:.2f} of files; "
            f"{bytes_each[name] / 1e3:.0f} kB a sub-image"
        )


def _rates(ways: dict[str, Callable[[int], object]], calls: int) -> dict[str, float]:
    """Calls per second of processor time."""
    spent = dict.fromkeys(ways, 0.0)
    for turn in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            for call in range(calls):
                way(turn * calls + call)
            spent[name] += time.process_time() - start
    return {name: ROUNDS * calls / seconds for name, seconds in spent.items()}


def _degrade(batch: int, steps: int, place: str) -> None:
    import torch

    from upsr.config import load_params
    from upsr.data import sources
    from upsr.degradation.second_order import build_degradation

    degrade = build_degradation(load_params().degradation, 4)
    photos = [images.read_rgb(photo.path) for photo in sources.find("sample", None, ())]
    cuts = [images.to_tensor(photos[i % len(photos)][:PATCH, :PATCH]) for i in range(batch)]
    hr = torch.cat([images.pad_to(cut, PATCH, PATCH) for cut in cuts]).to(place)
    wait = torch.cuda.synchronize if hr.is_cuda else lambda: None
    seconds = []
    for step in range(-3, steps):  # the first three warm up
        wait()
        start = time.perf_counter()
        degrade(hr, (0, step + 3))
        wait()
        seconds += [time.perf_counter() - start] * (step >= 0)
    mean, median = np.mean(seconds), np.median(seconds)
    print(
        f"{place}: a batch of {batch} in {1e3 * mean:.1f} ms (median {1e3 * median:.1f}), {batch / mean:.0f} pictures/s"
    )
