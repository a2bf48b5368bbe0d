"""Copies the photographs of a source into the project: training images, reserved images, and a manifest."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
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
from upsr.files import DataError, atomic, remove_temporary, report_corrupt

TRAIN = "train"
"""The split of the images that are not reserved."""


def fetch(
    source: str,
    folder: str | Path | None,
    folders: Mapping[str, Path],
    *,
    reserved: Mapping[str, Collection[str]],
    max_side: int,
    scale: int,
    on_corrupt: str,
    downloads: Path = sources.ARCHIVES,
) -> dict[str, Any]:
    """Copies a source's images to `folders` (split -> folder): of `train` unchanged, of the others shrunk, as PNG.

    `reserved` maps the other splits, such as `holdout`, to names; no name is in two. Returns the contents of
    `manifest.json` in the folder of `train`: an entry per image, a message per corrupt file, the names of other files.
    Identical files are not rewritten. Images of an earlier source are removed. Raises `DataError` for a source without
    images, wrong names, and corrupt files where `on_corrupt` is `fail`, `ImageError` for a missing source folder.
    """
    photos = sources.find(source, folder, reserved, downloads)
    splits = {name: split for split, names in reserved.items() for name in names}
    _check(photos, splits, folders)
    for path in folders.values():
        remove_temporary(path)
    store = partial(_store, splits=splits, folders=folders, max_side=max_side, scale=scale)
    with ThreadPoolExecutor() as pool:
        results = list(tqdm(pool.map(store, photos), total=len(photos), desc="download", disable=None))
    # manifest
    entries = [r for r in results if isinstance(r, dict)]
    corrupt = [r for r in results if isinstance(r, str)]
    manifest = {"source": source, "pictures": entries, "corrupt": corrupt, "ignored": sources.ignored(source, folder)}
    with atomic(folders[TRAIN] / "manifest.json") as temporary:
        text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # an ignored file's name: any bytes
    report_corrupt(corrupt, on_corrupt)
    # images of an earlier source
    for split, path in folders.items():
        _prune(path, [e["file"] for e in entries if e["split"] == split])
    return manifest


def _check(photos: Sequence[Photo], splits: Mapping[str, str], folders: Mapping[str, Path]) -> None:
    """Checks `splits` (name -> split) and that no image would be overwritten."""
    names = {photo.name for photo in photos}
    for name, split in splits.items():
        if name not in names:
            raise DataError(f"data.{split}: no image is named {name}: choose among {', '.join(sorted(names)[:12])}")
    if names == set(splits):
        keys = " and ".join(f"data.{split}" for split in sorted(set(splits.values())))
        raise DataError(f"{keys}: every image is named and none is left to train on: shorten the list")
    if {path.resolve() for path in folders.values()} & {photo.path.parent.resolve() for photo in photos}:
        raise DataError(f"data.folder: {photos[0].path.parent} is an output of this stage: move the images elsewhere")


def _store(
    photo: Photo, *, splits: Mapping[str, str], folders: Mapping[str, Path], max_side: int, scale: int
) -> dict[str, Any] | str:
    """Writes one photograph; returns its manifest entry, or the reason why it cannot be used."""
    split = splits.get(photo.name, TRAIN)
    suffix = photo.path.suffix if split == TRAIN else ".png"
    target = folders[split] / f"{photo.name}{suffix}"
    try:
        images.check_name(photo.path)
        data, rgb = _read(photo)
        if split != TRAIN:
            rgb = _shrink(rgb, max_side, scale, f"data.{split}: {photo.path}")
            data = images.encode_png(rgb)
    except images.ImageError as error:
        return str(error)
    _write(target, data, photo.path if photo.linkable and split == TRAIN else None)
    return {
        "file": target.name,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": rgb.shape[1],
        "height": rgb.shape[0],
        "licence": photo.licence,
        "origin": photo.origin,
        "split": split,
    }


def _read(photo: Photo) -> tuple[bytes, np.ndarray]:
    try:
        data = photo.path.read_bytes()
    except OSError as error:
        raise images.ImageError(f"{photo.path}: cannot be read: {error.strerror}") from None
    if photo.sha256 and hashlib.sha256(data).hexdigest() != photo.sha256:
        raise images.ImageError(f"{photo.path}: wrong SHA-256: reinstall the package it belongs to")
    return data, images.as_rgb8(images.decode(data, photo.path))


def _shrink(rgb: np.ndarray, max_side: int, scale: int, where: str) -> np.ndarray:
    """(H, W, 3) shrunk as a whole to at most `max_side` per side; sides become multiples of `scale`."""
    factor = min(1, max_side / max(rgb.shape[:2]))
    height, width = (int(side * factor) // scale * scale for side in rgb.shape[:2])
    if not height or not width:
        raise DataError(f"{where} is narrower than {scale} pixels: choose another image")
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
