"""From photographs to training samples: sources, sub-images, the LMDB, the loader, and the benchmarks."""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

log = logging.getLogger(__name__)


class DataError(ValueError):
    """A mistake in the data or its settings, in one line: what, where, and what to do."""


def encode_png(rgb: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> PNG. OpenCV's own settings: naming a level, even its own, makes it three times slower."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`, which takes its name, and the place of what was there, if all goes well.

    What a run that was killed left there is removed; so one process at a time may write a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*/new"):
        shutil.rmtree(stale.parent)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        yield new
        if path.exists():
            path.rename(Path(scratch, "old"))
        new.rename(path)


def settle_corrupt(messages: Sequence[str], on_corrupt: str) -> None:
    """Names every unreadable picture: in a `DataError`, or in the log where `on_corrupt` is `skip`."""
    if messages and on_corrupt == "fail":
        raise DataError(f"{len(messages)} unreadable: {'; '.join(messages)} (or set data.on_corrupt to skip)")
    for message in messages:
        log.warning("skipped: %s", message)


def by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """Pictures by their name without suffix. Raises `DataError` where two would share it."""
    table: dict[str, Path] = {}
    for path in paths:
        if path.stem in table:
            raise DataError(f"{path}: has the name of {table[path.stem].name} but for the suffix: rename one")
        table[path.stem] = path
    return table
