"""Speed of cropping, packing and reading images."""

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

WIDTH = 2040  # width of DF2K images in pixels
PATCH = 256
CROP_SIZE, CROP_STEP = 480, 240
ROUNDS = 5  # each measures every reader, so that other load on the machine affects all readers alike


def make_images(folder: Path, count: int) -> None:
    """Writes sample photographs enlarged to 2K; added noise keeps PNG from compressing the interpolation."""
    photos = [images.read_rgb(photo.path) for photo in sources.find("sample", None, {})]
    for number in tqdm(range(count), desc="make", disable=None):
        photo = photos[number % len(photos)]
        size = (WIDTH, round(photo.shape[0] * WIDTH / photo.shape[1]))
        large = np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_CUBIC))[:1440]
        grain = np.random.default_rng(number).integers(-4, 5, large.shape)
        images.write(folder / f"{number:04d}.png", np.clip(large + grain, 0, 255).astype(np.uint8))


def bench_data(folder: Path, count: int) -> None:
    """Prints the rates of cropping, packing and reading `count` 2K images, which it writes to the empty `folder`."""
    make_images(folder / "hr", count)
    # the same work on half and on all images shows whether memory grows
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
        done = len(cut["cut"])
        print(f"crop + pack of {done} images: {done / seconds:.2f} images/s, peak memory so far {peak:.0f} MB")
    _read(folder)


def _read(folder: Path) -> None:
    """Prints random crops per second and core: from PNG files, and from an LMDB in each encoding."""
    cv2.setNumThreads(1)
    files, rng = images.find(folder / "sub")[:60], np.random.default_rng(0)
    subset = folder / "few"
    subset.mkdir()
    for path in files:
        (subset / path.name).symlink_to(path)

    def from_file(_: int) -> np.ndarray:
        image = images.read_rgb(files[rng.integers(len(files))])
        y, x = (rng.integers(max(side - PATCH, 0) + 1) for side in image.shape[:2])
        return image[y : y + PATCH, x : x + PATCH].copy()

    readers: dict[str, Callable[[int], object]] = {"files": from_file}
    bytes_per_image = {"files": sum(p.stat().st_size for p in files) / len(files)}
    for encoding in ("png", "webp", "raw"):
        store = folder / f"few-{encoding}.lmdb"
        pack(subset, store, encoding)
        readers[encoding] = PatchDataset(store, PATCH, seed=0).__getitem__
        bytes_per_image[encoding] = (store / "data.mdb").stat().st_size / len(files)
    rates = _rates(readers, 40)
    for name, rate in rates.items():
        print(
            f"{name:6} {rate:7.0f} crops of {PATCH}x{PATCH} per second and core, {rate / rates['files']:.2f} x files; "
            f"{bytes_per_image[name] / 1e3:.0f} kB per sub-image"
        )


def _rates(readers: dict[str, Callable[[int], object]], calls: int) -> dict[str, float]:
    """Calls per second of CPU time, by reader."""
    spent = dict.fromkeys(readers, 0.0)
    for repeat in range(ROUNDS):
        for name, read in readers.items():
            start = time.process_time()
            for call in range(calls):
                read(repeat * calls + call)
            spent[name] += time.process_time() - start
    return {name: ROUNDS * calls / seconds for name, seconds in spent.items()}
