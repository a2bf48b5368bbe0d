"""How fast images are cropped, packed and read."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.acquisition import sources
from upsr.data.datasets import PatchDataset
from upsr.data.lmdb_store import pack
from upsr.data.subimages import crop

WIDTH = 2040  # of DF2K's images
PATCH = 256
CROP_SIZE, CROP_STEP = 480, 240
ROUNDS = 5  # in which each way is measured in turn, so that other work on the machine affects all alike


def make_images(folder: Path, count: int) -> None:
    """Sample photographs enlarged to 2K, with a grain of their own so that PNG finds no repetition."""
    photos = [images.read_rgb(photo.path) for photo in sources.find("sample", None, ())]
    for number in tqdm(range(count), desc="make", disable=None):
        photo = photos[number % len(photos)]
        size = (WIDTH, round(photo.shape[0] * WIDTH / photo.shape[1]))
        large = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC))[:1440]
        grain = np.random.default_rng(number).integers(-4, 5, large.shape)
        images.write(folder / f"{number:04d}.png", np.clip(large + grain, 0, 255).astype(np.uint8))


def bench_data(folder: Path, count: int) -> None:
    """Prints the rates of cropping, packing and reading `count` images of 2K, made in the empty `folder`."""
    make_images(folder / "hr", count)
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
        print(f"crop + pack of {pictures}: {pictures / seconds:.2f} images/s, peak memory {peak:.0f} MB so far")
    _read(folder)


def _read(folder: Path) -> None:
    """Crops per second and core of each encoding, against files."""
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
