"""`upsr doctor`: which data is available, which is missing, and how to get it."""

import argparse
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from upsr.commands import extension, new

if TYPE_CHECKING:
    from upsr.commands import Commands
    from upsr.config import Params
    from upsr.data.known_benchmarks import KnownBenchmark

DATA = Path("data")


def add(commands: "Commands") -> None:
    command = new(commands, "doctor", run, "show which data is available, which is missing, and how to get it")
    command.add_argument("--verify", action="store_true", help="read the whole training LMDB and check it")
    command.add_argument("--plan", action="store_true", help="estimate disk space, memory and time of a run instead")


def run(options: argparse.Namespace) -> None:
    """Prints one line per item, marked `ok` or `--`, or the plan of a run. Raises `ConfigError` without params.yaml."""
    from upsr.config import load_params

    params = load_params()
    if options.plan:
        print(extension("plan")(params))
        return
    for title, lines in (
        ("machine", _machine(params)),
        (f"data (source: {params.data.source})", _data(params, options.verify)),
        ("benchmarks, each in data/benchmarks/NAME with HR/ and LRx4/", _benchmarks(params)),
    ):
        print(title)
        for good, text in lines:
            print(f"  {'ok' if good else '--'}  {text}")


def _machine(params: "Params") -> Iterator[tuple[bool, str]]:
    import torch

    from upsr.acquisition.space import data_sizes, free_space
    from upsr.inference.precision import fast_dtype

    missing = sum(size.missing for size in data_sizes(params).values())
    free = free_space()
    yield True, f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} CPU cores"
    needed = f"download, crop and pack need {missing / 1e9:.1f} GB"
    yield free >= missing, f"{free / 1e9:.1f} GB of disk space free, {needed}"
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    for gpu in gpus:
        yield True, f"GPU: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    name, why = fast_dtype(torch.device("cuda" if gpus else "cpu"))
    yield True, f"--dtype auto is {name} for the UNet: {why}"
    if not gpus:
        yield False, "no GPU: training at the paper's scale is not feasible"


def _data(params: "Params", verify: bool) -> Iterator[tuple[bool, str]]:
    if params.data.source == "df2k":
        yield from _archives(params)
    for name, stage in (("hr", "download"), ("validation", "download"), ("subimages", "crop")):
        count = _count(DATA / name)
        yield bool(count), f"data/{name}: " + (f"{count} images" if count else f"no images: run `dvc repro {stage}`")
    yield _store(verify)
    found = (DATA / "metric_weights" / "manifest.json").is_file()
    yield found, "data/metric_weights: " + ("available" if found else "missing: run `dvc repro download`")


def _archives(params: "Params") -> Iterator[tuple[bool, str]]:
    """The archives that `download` fetches: state, size, and where to put them by hand."""
    from upsr.acquisition import archives, sources

    for archive in archives.wanted(params.data.reserved):
        remote, folder = archive.remote, sources.ARCHIVES / Path(archive.remote.name).stem
        count = _count(folder)
        size = f"{remote.size / 1e9:.1f} GB" if remote.size else "about 20 GB"
        names = " or ".join(form.name for form in remote.forms)
        urls = " or ".join(url for form in remote.forms for url in form.urls)
        by_hand = f"or get {urls} by hand, into {sources.ARCHIVES}; or its {archive.pictures} images, into {folder}"
        state = "not unpacked" if archives.in_folder(archive, sources.ARCHIVES) else "missing"
        told = f"{count} images" if count else f"{state}: run `dvc repro download`, {by_hand}"
        yield count == archive.pictures, f"{names} ({size}): {told}"


def _store(verify: bool) -> tuple[bool, str]:
    from upsr.data import lmdb_store
    from upsr.files import DataError
    from upsr.images import ImageError

    try:
        count = lmdb_store.verify(DATA / "train.lmdb") if verify else len(lmdb_store.Reader(DATA / "train.lmdb"))
    except (DataError, ImageError) as error:
        return False, str(error)
    how = "digest verified" if (DATA / "train.lmdb/sha256").is_file() else "without a digest, every image decoded"
    return True, f"data/train.lmdb: {count} images" + (f", {how}" if verify else "")


def _benchmarks(params: "Params") -> Iterator[tuple[bool, str]]:
    from upsr.data.benchmarks import locate
    from upsr.data.known_benchmarks import KNOWN

    for name, known in KNOWN.items():
        yield _benchmark(name, known, params.scale)
    for name in params.evaluate.benchmarks:
        if Path(name).name not in KNOWN:
            found = locate(name).is_dir()
            state = "your own, available" if found else "listed in evaluate.benchmarks, but missing"
            yield found, f"{name}: {state}"


def _benchmark(name: str, known: "KnownBenchmark", scale: int) -> tuple[bool, str]:
    from upsr.data.benchmarks import locate, open_benchmark
    from upsr.files import DataError
    from upsr.images import ImageError

    folder = locate(name)
    if not folder.is_dir():
        kind = "pairs" if known.reference else "LR images"
        return False, f"{name}: absent ({known.images or 'some'} {kind}): {known.advice(folder)}"
    try:
        pairs = open_benchmark(folder, scale).pairs
    except (DataError, ImageError) as error:
        return False, f"{name}: {error}"
    if known.images and len(pairs) != known.images:
        return False, f"{name}: {len(pairs)} images, not {known.images}: {known.advice(folder)}"
    return True, f"{name}: {len(pairs)} images"


def _count(folder: Path) -> int:
    from upsr import images

    return len(images.find(folder)) if folder.is_dir() else 0
