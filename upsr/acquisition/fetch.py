"""Copies the photographs of a source into the project: training images, held-out images, and a manifest."""

import hashlib
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.acquisition import sources
from upsr.acquisition.sources import Photo
from upsr.files import DataError, atomic, report_corrupt


def fetch(
    source: str,
    folder: str | Path | None,
    out_dir: Path,
    *,
    holdout: Collection[str],
    holdout_dir: Path,
    max_side: int,
    scale: int,
    on_corrupt: str,
    downloads: Path = sources.ARCHIVES,
) -> dict[str, Any]:
    """Copies the source's files to `out_dir`, unchanged, and the held-out ones to `holdout_dir`, shrunk, as PNG.

    Returns the contents of `out_dir/manifest.json`: an entry per image, a message per corrupt file, and the names of
    the files that are not images. Identical files are not rewritten. Images of an earlier source are removed.
    Raises `DataError` for a source without images, a wrong `holdout`, and corrupt files where `on_corrupt` is `fail`,
    and `ImageError` where the source folder does not exist.
    """
    photos = sources.find(source, folder, holdout, downloads)
    _check(photos, holdout, out_dir, holdout_dir)
    store = partial(_store, out_dir=out_dir, holdout=holdout, holdout_dir=holdout_dir, max_side=max_side, scale=scale)
    with ThreadPoolExecutor() as pool:
        results = list(tqdm(pool.map(store, photos), total=len(photos), desc="download", disable=None))
    # manifest
    entries = [r for r in results if isinstance(r, dict)]
    corrupt = [r for r in results if isinstance(r, str)]
    manifest = {"source": source, "pictures": entries, "corrupt": corrupt, "ignored": sources.ignored(source, folder)}
    with atomic(out_dir / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    report_corrupt(corrupt, on_corrupt)
    # images of an earlier source
    _prune(out_dir, [e["file"] for e in entries if e["split"] == "train"])
    _prune(holdout_dir, [e["file"] for e in entries if e["split"] == "holdout"])
    return manifest


def _check(photos: Sequence[Photo], holdout: Collection[str], out_dir: Path, holdout_dir: Path) -> None:
    names = {photo.name for photo in photos}
    unknown = sorted(set(holdout) - names)
    if unknown:
        raise DataError(
            f"data.holdout: no image is named {', '.join(unknown)}: choose among {', '.join(sorted(names)[:12])}"
        )
    if names == set(holdout):
        raise DataError("data.holdout: names every image and leaves none to train on: shorten it")
    if {out_dir.resolve(), holdout_dir.resolve()} & {photo.path.parent.resolve() for photo in photos}:
        raise DataError(f"data.folder: {photos[0].path.parent} is an output of this stage: move the images elsewhere")


def _store(
    photo: Photo, *, out_dir: Path, holdout: Collection[str], holdout_dir: Path, max_side: int, scale: int
) -> dict[str, Any] | str:
    """Writes one photograph; returns its manifest entry, or the reason why it cannot be used."""
    try:
        data, rgb = _read(photo)
        target = out_dir / f"{photo.name}{photo.path.suffix}"
        if photo.name in holdout:
            rgb = _shrink(rgb, max_side, scale, photo)
            data, target = images.encode_png(rgb), holdout_dir / f"{photo.name}.png"
    except images.ImageError as error:
        return str(error)
    _write(target, data, photo.path if photo.linkable and target.parent == out_dir else None)
    return {
        "file": target.name,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": rgb.shape[1],
        "height": rgb.shape[0],
        "licence": photo.licence,
        "origin": photo.origin,
        "split": "holdout" if photo.name in holdout else "train",
    }


def _read(photo: Photo) -> tuple[bytes, np.ndarray]:
    try:
        data = photo.path.read_bytes()
    except OSError as error:
        raise images.ImageError(f"{photo.path}: cannot be read: {error.strerror}") from None
    if photo.sha256 and hashlib.sha256(data).hexdigest() != photo.sha256:
        raise images.ImageError(f"{photo.path}: wrong SHA-256: reinstall the package it belongs to")
    return data, images.as_rgb8(images.decode(data, photo.path))


def _shrink(rgb: np.ndarray, max_side: int, scale: int, photo: Photo) -> np.ndarray:
    """(H, W, 3) shrunk as a whole to at most `max_side` per side; sides become multiples of `scale`."""
    factor = min(1, max_side / max(rgb.shape[:2]))
    height, width = (int(side * factor) // scale * scale for side in rgb.shape[:2])
    if not height or not width:
        raise DataError(f"data.holdout: {photo.path} is narrower than {scale} pixels: choose another image")
    if factor == 1:
        return rgb[:height, :width]
    return cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)


def _write(path: Path, data: bytes, original: Path | None) -> None:
    """Writes `data`, or hard-links `original`, which holds the same bytes: DF2K would take its disk space twice."""
    if path.is_file() and path.read_bytes() == data:
        return
    with atomic(path) as temporary:
        if not (original and _link(temporary, original)):
            temporary.write_bytes(data)


def _link(path: Path, original: Path) -> bool:
    """Replaces `path` by a hard link to `original`; False where the file system has none."""
    path.unlink()
    try:
        path.hardlink_to(original)
    except OSError:
        return False
    return True


def _prune(folder: Path, keep: Collection[str]) -> None:
    """Removes the images of an earlier source."""
    for path in images.find(folder) if folder.is_dir() else []:
        if path.name not in keep:
            path.unlink()
