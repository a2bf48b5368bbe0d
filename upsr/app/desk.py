"""Upscales the images that users send, one at a time in the order of their arrival."""

import base64
import secrets
import shutil
import tempfile
import threading
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np

from upsr import images
from upsr.files import ImageError, one_line
from upsr.inference.batch import canvas, result_size
from upsr.inference.upscaler import Upscaler
from upsr.photo.formats import FORMATS
from upsr.photo.reading import Photo, decode
from upsr.photo.size import Size
from upsr.photo.writing import check_target, save

FORMS = ("png", "jpeg", "webp")  # which every browser shows
MOST_PIXELS = 2**22  # of an image that is sent: a browser must show 16 times as many
KEPT = 500  # results; older ones are removed
PREVIEW = 1280  # pixels: width of the parts that are shown while an image grows


class _Stopped(Exception):
    """The user is gone."""


@dataclass(frozen=True)
class Order:
    """What a user asks for."""

    name: str
    """Of the image's file."""
    model: str
    scale: str
    """As `upsr upscale --scale` takes it."""
    seed: int
    form: str
    """One of `FORMS`."""

    @property
    def target(self) -> PurePath:
        """The name of the result's file."""
        suffix = Size.parse(self.scale).suffix
        return PurePath(f"{PurePath(self.name).stem}{suffix}{FORMATS[self.form].suffixes[0]}")


@dataclass(frozen=True)
class Result:
    """The files of an upscaled image."""

    name: str
    before: Path
    """The image enlarged by Lanczos's kernel."""
    after: Path


@dataclass
class Job:
    """An order in the queue. `events` are JSON values for its user, first in first out."""

    order: Order
    events: deque[dict[str, Any]] = field(default_factory=deque)
    stopped: threading.Event = field(default_factory=threading.Event)
    future: "Future[None]" = field(default_factory=Future)


class Desk:
    """Takes orders and keeps their results in a temporary folder, which is removed at the end of the `with` block."""

    def __init__(self, models: Mapping[str, Upscaler], *, tile: int = 128) -> None:
        self.models, self.tile, self.results = models, tile, dict[str, Result]()
        self._queue: list[Job] = []
        self._worker = ThreadPoolExecutor(1)  # one network runs at a time

    def __enter__(self) -> "Desk":
        self._scratch = tempfile.TemporaryDirectory(prefix="upsr-app-")
        self.folder = Path(self._scratch.name)
        return self

    def __exit__(self, *_: object) -> None:
        for job in self._queue:
            self.stop(job)
        self._worker.shutdown()
        self._scratch.cleanup()

    def submit(self, order: Order, data: bytes) -> Job:
        """Puts an encoded image into the queue."""
        job = Job(order)
        job.future = self._worker.submit(self._run, job, data)
        self._queue.append(job)
        return job

    def ahead(self, job: Job) -> int:
        """How many images come before this one."""
        self._queue = [other for other in self._queue if not other.future.done()]
        return self._queue.index(job) if job in self._queue else 0

    def stop(self, job: Job) -> None:
        """Takes a job out of the queue; one that runs ends after its present tile."""
        job.stopped.set()
        job.future.cancel()

    def packed(self, results: Sequence[Result]) -> Iterator[bytes]:
        """A zip of results, in parts."""
        taken = set[str]()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            with zipfile.ZipFile(file, "w") as archive:  # without compression: the images have theirs
                for result in results:
                    name, path, number = result.name, PurePath(result.name), 2
                    while name in taken:
                        name, number = f"{path.stem}-{number}{path.suffix}", number + 1
                    taken.add(name)
                    archive.write(result.after, name)
            file.seek(0)
            yield from iter(partial(file.read, 2**16), b"")

    def result(self, token: str) -> Result:
        """A result by its token. Raises `ImageError` for one that is no longer kept."""
        if token not in self.results:
            raise ImageError("result: no longer kept: upscale the image again")
        return self.results[token]

    def _run(self, job: Job, data: bytes) -> None:
        folder = self.folder / secrets.token_urlsafe(16)
        try:
            self._upscale(job, data, folder)
        except Exception as error:  # the last image ends its job, nothing else
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, _Stopped):
                known = isinstance(error, ValueError | OSError)
                job.events.append({"error": one_line(error) if known else f"{job.order.name}: {error!r}"})

    def _upscale(self, job: Job, data: bytes, folder: Path) -> None:
        order, model = job.order, self.models[job.order.model]
        # the image, and what can be wrong with the order
        photo = decode(data, order.name, most=MOST_PIXELS)
        height, width = photo.pixels.shape[:2]
        size = result_size(order.name, height, width, Size.parse(order.scale), model.scale)
        check_target(order.target, size[1], size[0])
        tiles = model.tiles(photo, self.tile)
        # the network
        folder.mkdir()
        growth = _Growth(job, photo, model, self.tile, folder)
        job.events.append({"tiles": tiles, "width": size[1], "height": size[0], "original": _preview(photo)})
        larger = model.enlarge(photo, seed=order.seed, tile=self.tile, empty=growth.empty, tick=growth.tick)
        # the files
        suffix = order.target.suffix
        result = Result(str(order.target), folder / f"before{suffix}", folder / f"after{suffix}")
        save(result.before, photo.array(), size=size)
        save(result.after, larger, photo, size=size)
        self._keep(folder.name, result)
        job.events.append({"token": folder.name, "name": result.name, "bytes": result.after.stat().st_size})

    def _keep(self, token: str, result: Result) -> None:
        self.results[token] = result
        for old in list(self.results)[:-KEPT]:
            shutil.rmtree(self.results.pop(old).after.parent, ignore_errors=True)


class _Growth:
    """Tells the user of each finished tile, and shows each finished row of tiles; ends the job of one who is gone."""

    def __init__(self, job: Job, photo: Photo, model: Upscaler, tile: int, folder: Path) -> None:
        height, width = photo.pixels.shape[:2]
        rows, columns = model.grid(height, width, tile)
        self.job, self.photo, self.folder, self.columns = job, photo, folder, len(columns)
        self.edges = [row * model.scale for row in (*(row.start for row in rows), height)]
        self.tiles = self.shown = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        self.larger = canvas(self.folder)(shape, dtype)
        return self.larger

    def tick(self) -> None:
        if self.job.stopped.is_set():
            raise _Stopped
        self.tiles += 1
        self.job.events.append({"tile": self.tiles})
        whole = (self.tiles - 1) // self.columns  # rows of tiles: this tile's own is not in the image yet
        if self.shown < min(whole, len(self.edges) - 1):
            top, end = self.edges[self.shown : self.shown + 2]
            pixels = self.larger[top:end, :, : self.photo.pixels.shape[2]]
            band = _preview(replace(self.photo, pixels=pixels))
            self.job.events.append({"top": top / self.edges[-1], "share": (end - top) / self.edges[-1], "band": band})
            self.shown += 1


def _preview(photo: Photo) -> str:
    """The colours of an image, no wider than `PREVIEW`, as the address of a PNG."""
    rgb = images.as_rgb8(replace(photo, alpha=None).array())
    height, width = rgb.shape[:2]
    shrink = min(1, PREVIEW / width)
    size = (round(width * shrink), max(1, round(height * shrink)))
    png = images.encode_png(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA))
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
