"""Benchmarks on disk: pairs of an LR and an HR image, or LR images without a reference."""

import hashlib
import os
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from upsr import images
from upsr.data.known_benchmarks import KNOWN
from upsr.files import DataError, by_stem, check_regular, read_json, sha256

FOLDER = Path("data/benchmarks")  # of benchmarks given by a plain name
LAYOUTS = (("LRx{scale}", "HR"), ("lq", "gt"))  # names of the LR and HR folders: this project's, ResShift's


@dataclass(frozen=True)
class Pair:
    """One image of a benchmark; `hr` is None where there is no reference."""

    name: str
    lr: Path
    hr: Path | None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's images, sorted by name. `lr` says how the LR images were made. `files`: relative path -> (bytes,
    SHA-256)."""

    name: str
    pairs: tuple[Pair, ...]
    scale: int
    lr: str
    files: dict[str, tuple[int, str]]

    @property
    def digest(self) -> str:
        """SHA-256 of the names and hashes of all files, sorted by name."""
        lines = "".join(f"{name} {sha256}\n" for name, (_, sha256) in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def manifest(self) -> dict[str, Any]:
        """Identity of the benchmark, to be stored with its results as JSON."""
        known = KNOWN.get(self.name)
        return {
            "name": self.name,
            "scale": self.scale,
            "pictures": len(self.pairs),
            "known_pictures": known.images if known else None,
            "references": sum(pair.hr is not None for pair in self.pairs),
            "lr": self.lr,
            "sha256": self.digest,
            "files": {name: {"bytes": size, "sha256": sha} for name, (size, sha) in sorted(self.files.items())},
        }


def open_benchmark(folder: str | Path, scale: int) -> Benchmark:
    """Opens a folder with `HR/` and `LRx{scale}/`, `gt/` and `lq/`, RealSR's own layout, or LR images alone.

    How LR was made is read from the key `lr` of the folder's `manifest.json`, else from the table of known benchmarks.
    Raises `DataError` for an empty or missing folder, an image without its partner, and a manifest without `lr`, and
    `ImageError` for a file name that cannot be used.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: {_advice(folder)}")
    pairs = _realsr(folder, scale) or _in_folders(folder, scale)
    paths = [path for pair in pairs for path in (pair.lr, pair.hr) if path]
    for path in paths:
        images.check_name(path)
    files = {path.relative_to(folder).as_posix(): _size_and_hash(path) for path in paths}
    name = name_of(folder)
    return Benchmark(name, tuple(pairs), scale, _origin(folder, name, pairs), files)


def open_benchmarks(names: tuple[str, ...], scale: int) -> tuple[list[Benchmark], dict[str, str]]:
    """(available benchmarks of `evaluate.benchmarks`, {name of an absent one: why, and what to do}).

    Raises `DataError` where none is available or two have the same name.
    """
    found, absent = [], {}
    for name in tqdm(names, desc="benchmarks", disable=None):
        try:
            found.append(open_benchmark(locate(name), scale))
        except (DataError, images.ImageError) as error:
            absent[name] = str(error)
    if not found:
        raise DataError(f"evaluate.benchmarks: none of {', '.join(names)} is available: {'; '.join(absent.values())}")
    twice = {b.name for b in found if [c.name for c in found].count(b.name) > 1}
    if twice:
        raise DataError(f"evaluate.benchmarks: two are named {min(twice)}: rename the folder of one")
    return found, absent


def locate(name: str) -> Path:
    """Folder of an entry of `evaluate.benchmarks`: a plain name is below data/benchmarks, any other is a path."""
    return Path(name) if "/" in name else FOLDER / name


def name_of(folder: Path) -> str:
    """The name of the benchmark in a folder: the folder's own, also where it is a link to one of another name."""
    return Path(os.path.abspath(folder)).name


def _advice(folder: Path) -> str:
    if known := KNOWN.get(folder.name):
        return known.advice(folder)
    return "correct the name, or put HR/ and LRx4/ there"


def _in_folders(folder: Path, scale: int) -> list[Pair]:
    names = [(low.format(scale=scale), high) for low, high in LAYOUTS]
    low, high = next((pair for pair in names if any((folder / part).is_dir() for part in pair)), names[0])
    if not (folder / low).is_dir() and (folder / high).is_dir():
        raise DataError(f"{folder / low}: no such folder, but {folder / high} exists: add the LR images")
    lr = by_stem(images.find(folder / low if (folder / low).is_dir() else folder))
    if not lr:
        raise DataError(f"{folder}: a benchmark without images: put some in {low}/ or in the folder itself")
    hr = {}
    if (folder / high).is_dir():
        hr = by_stem(images.find(folder / high))
        _check_partners(folder, lr.keys(), hr.keys())
    return [Pair(name, lr[name], hr.get(name)) for name in sorted(lr)]


def _realsr(folder: Path, scale: int) -> list[Pair]:
    """Pairs in RealSR V3's layout: CAMERA/Test/SCALE/NAME_LR4.png beside NAME_HR.png. Empty for any other layout."""
    found = sorted(folder.glob(f"*/Test/{scale}/*_LR{scale}.png"))
    pairs = [(path.name.removesuffix(f"_LR{scale}.png"), path) for path in found]
    return [Pair(name, path, path.with_name(f"{name}_HR.png")) for name, path in sorted(pairs)]


def _check_partners(folder: Path, lr: Set[str], hr: Set[str]) -> None:
    for kind, missing in (("LR", hr - lr), ("HR", lr - hr)):
        if missing:
            raise DataError(f"{folder}: no {kind} image of {', '.join(sorted(missing))}: add it or remove its partner")


def _size_and_hash(path: Path) -> tuple[int, str]:
    try:
        check_regular(path)
        return path.stat().st_size, sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _origin(folder: Path, name: str, pairs: Sequence[Pair]) -> str:
    path = folder / "manifest.json"
    if path.is_file():
        try:
            return str(read_json(path)["lr"])
        except (DataError, KeyError, TypeError):
            raise DataError(f"{path}: has no key `lr`: add it and say how the LR images were made") from None
    if name in KNOWN:
        return KNOWN[name].lr
    return "not stated" if pairs[0].hr else "images as found, without a reference"
