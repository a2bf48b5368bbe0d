"""Benchmarks on disk: pairs of an LR and an HR picture, or LR pictures that have no reference."""

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from upsr import images
from upsr.data import DataError, by_stem


@dataclass(frozen=True)
class Pair:
    """One picture of a benchmark; `hr` is None where there is no reference."""

    name: str
    lr: Path
    hr: Path | None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's pictures by name; `digest` is the SHA-256 of their names and contents."""

    name: str
    pairs: tuple[Pair, ...]
    scale: int
    digest: str


def open_benchmark(folder: str | Path, scale: int) -> Benchmark:
    """Opens a folder with `HR/` and `LRx{scale}/`, with `LRx{scale}/` alone, or with the LR pictures themselves.

    Raises `DataError` for an empty or missing folder and for a picture without its partner.
    """
    folder = Path(folder)
    low = folder / f"LRx{scale}"
    if not low.is_dir() and (folder / "HR").is_dir():
        raise DataError(f"{low}: no such folder, and {folder / 'HR'} is there: add the LR pictures")
    lr = by_stem(images.find(low if low.is_dir() else folder))
    if not lr:
        raise DataError(f"{folder}: a benchmark without pictures: put some in {low.name}/ or in the folder itself")
    hr = {}
    if (folder / "HR").is_dir():
        hr = by_stem(images.find(folder / "HR"))
        _check_partners(folder, lr.keys(), hr.keys())
    pairs = tuple(Pair(name, lr[name], hr.get(name)) for name in sorted(lr))
    return Benchmark(folder.resolve().name, pairs, scale, _digest(folder, [*lr.values(), *hr.values()]))


def _check_partners(folder: Path, lr: Set[str], hr: Set[str]) -> None:
    for there, missing in (("LR", hr - lr), ("HR", lr - hr)):
        if missing:
            raise DataError(
                f"{folder}: no {there} picture of {', '.join(sorted(missing))}: add it or remove its partner"
            )


def _digest(folder: Path, files: Sequence[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            part = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder).as_posix()} {part}\n".encode())
    return whole.hexdigest()
