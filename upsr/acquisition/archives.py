"""The archives of DF2K: addresses, sizes, hashes, and unpacking them into folders of images."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from upsr import images
from upsr.acquisition.extract import extract
from upsr.acquisition.transfer import Remote, download
from upsr.files import DataError, atomic, read_json, sha256


@dataclass(frozen=True)
class Archive:
    """An archive of images. `remote.sha256` is None where no hash is published: see `prepare`."""

    remote: Remote
    wanted: str
    """Pattern of the member paths to unpack."""
    pictures: int
    """How many images match the pattern."""
    unpacked: int
    """Unpacked size in bytes, rounded up: the disk space required, and the limit while unpacking."""
    origin: str
    licence: str


RESEARCH = "for academic research; copyright stays with the photographers"

# Sizes and hashes of DIV2K are from TensorFlow Datasets (url_checksums/div2k.txt).
DIV2K_TRAIN = Archive(
    Remote(
        "DIV2K_train_HR.zip",
        ("https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",),
        3530603713,
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
    ),
    "DIV2K_train_HR/*.png",
    800,
    4_000_000_000,
    "DIV2K, Agustsson and Timofte, NTIRE 2017",
    RESEARCH,
)
DIV2K_VALID = Archive(
    Remote(
        "DIV2K_valid_HR.zip",
        ("https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",),
        448993893,
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
    ),
    "DIV2K_valid_HR/*.png",
    100,
    500_000_000,
    "DIV2K, Agustsson and Timofte, NTIRE 2017",
    RESEARCH,
)
# About 20 GB. The archive also holds LR images, which are not unpacked.
FLICKR2K = Archive(
    Remote(
        "Flickr2K.tar",
        ("https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",),  # no plain http: nothing could tell a swapped archive
        None,
        None,
    ),
    "Flickr2K/Flickr2K_HR/*.png",
    2650,
    15_000_000_000,
    "Flickr2K, Lim et al., NTIRE 2017",
    RESEARCH,
)
DF2K = (DIV2K_TRAIN, FLICKR2K)
VALIDATION = frozenset(f"{number:04d}" for number in range(801, 901))
"""Stems of DIV2K's validation images, which are never trained on."""
NAMES = frozenset(f"{n:04d}" for n in range(1, 901)) | frozenset(f"{n:06d}" for n in range(1, 2651))
"""Stems of all images in the three archives."""


def wanted(reserved: Mapping[str, Collection[str]]) -> list[Archive]:
    """The archives of DF2K, with DIV2K's validation set if `reserved` (split -> names) has images of it.

    Raises `DataError` for a name that is in no archive, before hours of downloading.
    """
    for split, names in reserved.items():
        if unknown := sorted(set(names) - NAMES):
            raise DataError(
                f"data.{split}: DF2K has no {', '.join(unknown)}: "
                "name images of DIV2K's validation set, '0801' to '0900'"
            )
    return [*DF2K, *([DIV2K_VALID] if VALIDATION & set[str]().union(*reserved.values()) else [])]


UNKNOWN_SIZE = 21_000_000_000  # bytes reserved for an archive of unpublished size


def prepare(archives: Collection[Archive], folder: Path, lock: Path) -> list[Path]:
    """Downloads and unpacks archives below `folder`, each once; returns the folders of images.

    An archive without a published hash is trusted on first use, if it unpacks correctly. Its hash is written to `lock`
    (JSON, name -> SHA-256) and required from then on, so commit `lock` to version control.
    Raises `DataError` where an archive cannot be downloaded or unpacked, or `lock` is unreadable.
    """
    pinned = _read_lock(lock)
    folders = [folder / Path(archive.remote.name).stem for archive in archives]
    known = [
        replace(a, remote=replace(a.remote, sha256=a.remote.sha256 or pinned.get(a.remote.name))) for a in archives
    ]
    missing = [(a, out) for a, out in zip(known, folders, strict=True) if len(_images(out)) != a.pictures]
    unknown = [a for a, _ in missing if not a.remote.size and not (folder / a.remote.name).is_file()]
    space = sum(a.unpacked for a, _ in missing) + UNKNOWN_SIZE * len(unknown)
    download([a.remote for a, _ in missing], folder, spare=space)
    for archive, out in missing:
        path = folder / archive.remote.name
        extract(path, out, wanted=archive.wanted, count=archive.pictures, limit=archive.unpacked)
        if archive.remote.sha256 is None:
            pinned[path.name] = sha256(path)
            print(f"{path.name}: no hash is published; trusted on first use: {pinned[path.name]}: commit {lock}")
            with atomic(lock) as temporary:
                temporary.write_text(json.dumps(pinned, indent=2, sort_keys=True) + "\n")
    return folders


def _images(folder: Path) -> list[Path]:
    return images.find(folder) if folder.is_dir() else []


def _read_lock(lock: Path) -> dict[str, str]:
    """Hashes of earlier downloads by file name."""
    hashes = read_json(lock) if lock.is_file() else {}
    if not isinstance(hashes, dict) or not all(re.fullmatch("[0-9a-f]{64}", str(h)) for h in hashes.values()):
        raise DataError(f"{lock}: not a table of file names and SHA-256: restore it from version control")
    return hashes
