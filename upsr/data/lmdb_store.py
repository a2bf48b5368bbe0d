"""The training images in one LMDB: a key per image, readable by BasicSR, read lock-free by many workers."""

import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import cv2
import lmdb
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.files import DataError, by_stem, whole_folder

FIRST_MAP = 1 << 20  # bytes; doubled whenever the map is full
BATCH = 64  # images in memory, and per transaction
PNG = b"\x89PNG\r\n\x1a\n"
RAW = b"RGB8"  # followed by height and width (uint32, little-endian) and the pixels


Window = Callable[[int, int], tuple[slice, slice]]
"""(height, width) of an image -> the rows and columns to read."""


class Entry(NamedTuple):
    """One image as stored."""

    key: bytes
    value: bytes
    shape: tuple[int, ...]


def pack(folder: Path, out: Path, encoding: str) -> int:
    """Replaces the LMDB `out` by the images of `folder` as `png`, `webp` (lossless) or `raw`; returns how many.

    `out/meta_info.txt` has BasicSR's line for each, `STEM.png (height,width,3) 1`. `out/sha256` is the digest of all
    keys and values. Memory: `BATCH` images. Raises `DataError` for an empty folder and `ImageError` for an unreadable
    image or a missing folder; `out` then stays as it was.
    """
    table = by_stem(images.find(folder))
    if not table:
        raise DataError(f"{folder}: no images to pack: run the `crop` stage")
    paths = [table[stem] for stem in sorted(table, key=os.fsencode)]  # LMDB's order: appending keeps its pages full
    with (
        whole_folder(out) as new,
        ThreadPoolExecutor() as pool,
        open(new / "meta_info.txt", "w", encoding="utf-8", errors="surrogateescape") as meta,
        # No lock, so that the output has no lock.mdb. One sync at the end, before the folder is renamed.
        lmdb.open(str(new), map_size=FIRST_MAP, lock=False, sync=False) as env,
    ):
        digest = hashlib.sha256()
        for batch in _batches(tqdm(paths, desc="pack", disable=None)):
            entries = list(pool.map(partial(_entry, encoding=encoding), batch))
            _append(env, entries)
            digest.update(b"".join(e.key + e.value for e in entries))
            meta.writelines(f"{os.fsdecode(e.key)}.png ({','.join(map(str, e.shape))}) 1\n" for e in entries)
        env.sync(True)
        (new / "sha256").write_text(digest.hexdigest() + "\n")
    return len(paths)


class Reader:
    """The images of a packed LMDB, by number. Raises `DataError` where it is missing, broken or empty.

    The readers of one process share one environment. A reader can be pickled and sent to another process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        with self.transaction() as transaction:
            self.keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        if not self.keys:
            raise DataError(f"{path}: an LMDB without images: run the `pack` stage again")

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int, window: Window | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB, or its `window`; of `raw`, only the window is copied. Raises `ImageError`."""
        with self.transaction() as transaction:
            value = transaction.get(self.keys[index], b"")
            image = decode(value, f"{self.path}: {os.fsdecode(self.keys[index])}")
            rows, columns = window(*image.shape[:2]) if window else (slice(None), slice(None))
            return image[rows, columns].copy()

    @contextmanager
    def transaction(self) -> Iterator[lmdb.Transaction]:
        """Reads memory-mapped pages, valid in this block. Raises `DataError` for a damaged one."""
        try:
            with self._environment().begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise DataError(f"{self.path}: a damaged LMDB ({error}): run the `pack` stage again") from None

    def _environment(self) -> lmdb.Environment:
        self._opened = _open(self.path, os.getpid())  # a reference: the shared environment lives with its readers
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "keys": self.keys}


def encode(rgb: np.ndarray, encoding: str) -> bytes:
    """(H, W, 3) uint8 RGB -> `png`, `webp` (lossless) or `raw` bytes."""
    if encoding == "raw":
        return RAW + struct.pack("<II", *rgb.shape[:2]) + rgb.tobytes()
    if encoding == "png":
        return images.encode_png(rgb)
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101]  # above 100 means lossless
    return cv2.imencode(".webp", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), lossless)[1].tobytes()


def decode(value: bytes | memoryview, name: str) -> np.ndarray:
    """Stored bytes of any encoding -> (H, W, 3) uint8 RGB; of `raw`, a view. Raises `ImageError`."""
    if value[: len(RAW)] != RAW:
        return _decode_file(bytes(value), name)
    start = len(RAW) + 8
    try:
        height, width = struct.unpack_from("<II", value, len(RAW))
        return np.frombuffer(value, np.uint8, offset=start).reshape(height, width, 3)
    except (struct.error, ValueError):
        raise images.ImageError(f"{name}: cut or damaged: run the `pack` stage again") from None


def _decode_file(data: bytes, name: str) -> np.ndarray:
    """PNG or WebP -> (H, W, 3) uint8 RGB. By OpenCV: libvips, which reads all other files, hangs in a forked worker."""
    png, webp = data.startswith(PNG), data[8:12] == b"WEBP"
    if png and int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) > images.MAX_PIXELS:
        raise images.ImageError(f"{name}: more than {images.MAX_PIXELS / 1e6:.0f} megapixels: remove it")
    whole = webp or (png and b"IEND" in data[-12:])  # OpenCV fills what is missing
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if whole else None
    if image is None:
        raise images.ImageError(f"{name}: not a readable PNG or WebP: run the `pack` stage again")
    return image


def _batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    paths = iter(paths)
    while batch := list(islice(paths, BATCH)):
        yield batch


def verify(path: str | Path) -> int:
    """Reads every image of a store and compares the digest with `pack`'s; returns how many images there are.

    Every image of a store without a digest, such as BasicSR's, is decoded instead. Raises `DataError` where the digests
    differ, `ImageError` for a damaged image, and as `Reader` does.
    """
    reader, digest = Reader(path), hashlib.sha256()
    written = reader.path / "sha256"
    if not written.is_file():
        for index in range(len(reader)):
            reader.read(index)
        return len(reader)
    with reader.transaction() as transaction:
        for key, value in transaction.cursor():
            digest.update(key)
            digest.update(value)
    if digest.hexdigest() != written.read_text().strip():
        raise DataError(f"{path}: does not match its SHA-256: run `dvc repro -f -s pack`")
    return len(reader)


def _entry(path: Path, encoding: str) -> Entry:
    data = path.read_bytes()
    shape = _rgb_png(data)
    if encoding == "png" and shape:  # as `crop` writes them: the same after decoding and encoding
        return Entry(os.fsencode(path.stem), data, shape)
    rgb = images.as_rgb8(images.decode(data, path))
    return Entry(os.fsencode(path.stem), encode(rgb, encoding), rgb.shape)


def _rgb_png(data: bytes) -> tuple[int, ...] | None:
    """The shape of a PNG of 8-bit RGB if every chunk matches its checksum; None for anything else."""
    offset, header = len(PNG), b""
    if not data.startswith(PNG):
        return None
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        if data[end : end + 4] != struct.pack(">I", zlib.crc32(memoryview(data)[offset + 4 : end])):
            return None
        header = header or data[offset + 8 : end]
        offset = end + 4
        if kind == b"tRNS":
            return None
        if kind == b"IEND":
            width, height, depth, colour = struct.unpack_from(">IIBB", header)
            return (height, width, 3) if (depth, colour) == (8, 2) else None
    return None


def _append(env: lmdb.Environment, entries: list[Entry]) -> None:
    """One transaction, repeated with a map of twice the size while it does not fit."""
    while True:
        try:
            with env.begin(write=True) as transaction:
                for entry in entries:
                    transaction.put(entry.key, entry.value, append=True)
            return
        except lmdb.MapFullError:
            env.set_mapsize(2 * env.info()["map_size"])


# LMDB refuses to open one store twice in a process, so its readers share it.
_environments: WeakValueDictionary[tuple[Path, int], lmdb.Environment] = WeakValueDictionary()


def _open(path: Path, process: int) -> lmdb.Environment:
    env = _environments.get((path, process))
    if env is None:
        _close_inherited(path)
        env = _environments[path, process] = _open_checked(path)
    return env


def _close_inherited(path: Path) -> None:
    """After a fork the parent's environment is still registered in the child, which may not use it."""
    for (opened, _), env in list(_environments.items()):
        if opened == path:
            env.close()


def _open_checked(path: Path) -> lmdb.Environment:
    if not (path / "data.mdb").is_file():
        raise DataError(f"{path}: no such LMDB: run the `pack` stage")
    try:
        env = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise DataError(f"{path}: not a readable LMDB ({error}): run the `pack` stage again") from None
    # Reading a page beyond the end of the file would kill the process with a bus error.
    if (path / "data.mdb").stat().st_size < (env.info()["last_pgno"] + 1) * env.stat()["psize"]:
        raise DataError(f"{path}: the LMDB is truncated: run the `pack` stage again")
    return env
