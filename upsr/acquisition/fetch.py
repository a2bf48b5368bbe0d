"""Copies the photographs of a source into the project: training images, reserved images, and a manifest."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from upsr import images
from upsr.acquisition import sources
from upsr.acquisition.sources import Photo
from upsr.files import DataError, atomic, remove_temporary, report_corrupt

log = logging.getLogger(__name__)

TRAIN = "train"
"""The split of the images that are not reserved."""


class LeftOut(NamedTuple):
    """An image that is not trained on: the reason in one line, and whether it is unreadable, not a copy."""

    line: str
    corrupt: bool


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

    `reserved` maps the other splits, such as `holdout`, to names; no name is in two. Images with the pixels of a
    reserved one are left out of `train`. Returns the contents of `manifest.json` in the folder of `train`: an entry per
    image, and a line with the reason for each file left out. Identical files are not rewritten. Images of an earlier
    source are removed. Raises `DataError` for a source without images, wrong names, reserved images that cannot be
    used, and corrupt files where `on_corrupt` is `fail`.
    """
    if source == "folder":
        _check_folder(Path(str(folder)), folders.values())
    photos = sources.find(source, folder, reserved, downloads)
    not_images = sources.not_images(source, folder)
    splits = {name: split for split, names in reserved.items() for name in names}
    _check(photos, splits)
    for path in folders.values():
        remove_temporary(path)
    hold_out = partial(_hold_out, splits=splits, folders=folders, max_side=max_side, scale=scale)
    with ThreadPoolExecutor() as pool:
        held = list(pool.map(hold_out, [photo for photo in photos if photo.name in splits]))
        train = partial(_train, folder=folders[TRAIN], held=_by_pixels(held))
        others = [photo for photo in photos if photo.name not in splits]
        results = list(tqdm(pool.map(train, others), total=len(others), desc="download", disable=None))
    # manifest
    left = [r for r in results if isinstance(r, LeftOut)]
    lines = sorted([r.line for r in left] + not_images)
    entries = [entry for _, entry in held] + [r for r in results if not isinstance(r, LeftOut)]
    manifest = {"source": source, "left_out": lines, "pictures": entries}
    with atomic(folders[TRAIN] / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for copy in (r for r in left if not r.corrupt):
        log.warning("left out: %s", copy.line)
    report_corrupt([r.line for r in left if r.corrupt], on_corrupt)
    # images of an earlier source
    for split, path in folders.items():
        _prune(path, [e["file"] for e in entries if e["split"] == split])
    return manifest


def _check(photos: Sequence[Photo], splits: Mapping[str, str]) -> None:
    """Checks that no two images share a name, and that `splits` (name -> split) names images, but not all."""
    names = {photo.name: photo for photo in photos}
    for photo in photos:
        if (other := names[photo.name]) is not photo:
            same = f"its name would be {photo.name}, as that of {images.shown(other.path)}"
            raise DataError(f"{images.shown(photo.path)}: {same}: rename one")
    for name, split in splits.items():
        if name not in names:  # maybe because several are, and each is renamed
            alike = [f"{photo.name} ({images.shown(photo.path)})" for photo in photos if photo.path.stem == name]
            choices = ", ".join((alike or sorted(names))[:12])
            raise DataError(f"data.{split}: no image is named {name}: choose among {choices}")
    if names.keys() == splits.keys():
        keys = " and ".join(f"data.{split}" for split in sorted(set(splits.values())))
        raise DataError(f"{keys}: every image is named and none is left to train on: shorten the list")


def _check_folder(folder: Path, outputs: Collection[Path]) -> None:
    """Checks that the user's folder neither holds an output, whose images it would add, nor lies in one."""
    source = folder.resolve()
    for output in outputs:
        if output.resolve().is_relative_to(source) or source.is_relative_to(output.resolve()):
            raise DataError(f"data.folder: {folder} overlaps {output}, an output: move the images elsewhere")


def _hold_out(
    photo: Photo, *, splits: Mapping[str, str], folders: Mapping[str, Path], max_side: int, scale: int
) -> tuple[str, dict[str, Any]]:
    """Writes a reserved photograph, shrunk, as PNG; returns the hash of its pixels and its manifest entry."""
    split = splits[photo.name]
    try:
        _, whole = _read(photo)
    except images.ImageError as error:  # whatever `on_corrupt` is: its copies would be trained on
        raise DataError(f"data.{split}: {error}, or name another image") from None
    rgb = _shrink(whole, max_side, scale, f"data.{split}: {images.shown(photo.path)}")
    data = images.encode_png(rgb)
    target = folders[split] / f"{photo.name}.png"
    _write(target, data, None)
    return _pixels(whole), _entry(photo, target, data, rgb, split)


def _by_pixels(held: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Hash of the pixels -> which reserved image has them. Raises `DataError` where images of two splits are copies."""
    originals: dict[str, dict[str, Any]] = {}
    for pixels, entry in held:
        original = originals.setdefault(pixels, entry)
        if original["split"] != entry["split"]:
            raise DataError(
                f"data.{entry['split']}: {entry['file']} has the pixels of {original['file']}, "
                f"which data.{original['split']} names: name another image"
            )
    return {pixels: f"{entry['origin']}, which data.{entry['split']} names" for pixels, entry in originals.items()}


def _train(photo: Photo, *, folder: Path, held: Mapping[str, str]) -> dict[str, Any] | LeftOut:
    """Writes one photograph to train on, unchanged; returns its manifest entry, or why it is left out."""
    target = folder / f"{photo.name}{photo.path.suffix}"
    try:
        images.check_name(target)
        data, rgb = _read(photo)
    except images.ImageError as error:
        return LeftOut(str(error), corrupt=True)
    if original := held.get(_pixels(rgb)):
        return LeftOut(f"{images.shown(photo.path)}: has the pixels of {original}", corrupt=False)
    _write(target, data, photo.path if photo.linkable else None)
    return _entry(photo, target, data, rgb, TRAIN)


def _entry(photo: Photo, target: Path, data: bytes, rgb: np.ndarray, split: str) -> dict[str, Any]:
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
    path = images.shown(photo.path)
    try:
        data = photo.path.read_bytes()
    except OSError as error:
        raise images.ImageError(f"{path}: cannot be read ({error.strerror}): replace or remove it") from None
    if photo.sha256 and hashlib.sha256(data).hexdigest() != photo.sha256:
        raise images.ImageError(f"{path}: wrong SHA-256: reinstall the package it belongs to")
    return data, images.as_rgb8(images.decode(data, path))


def _pixels(rgb: np.ndarray) -> str:
    """The SHA-256 of (H, W, 3) uint8 and its size: the same in another container, another after any change."""
    digest = hashlib.sha256(str(rgb.shape).encode())
    digest.update(rgb.data)
    return digest.hexdigest()


def _shrink(rgb: np.ndarray, max_side: int, scale: int, where: str) -> np.ndarray:
    """(H, W, 3) shrunk as a whole to at most `max_side` per side; sides become multiples of `scale`."""
    factor = min(1, max_side / max(rgb.shape[:2]))
    height, width = (int(side * factor) // scale * scale for side in rgb.shape[:2])
    if not height or not width:
        raise DataError(
            f"{where} has {rgb.shape[1]}x{rgb.shape[0]} pixels, and is narrower than {scale} once its longest side has "
            f"at most {max_side}: name another image, or raise data.holdout_side"
        )
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
