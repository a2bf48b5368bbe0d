"""The archives of DF2K: addresses, sizes, hashes, and unpacking them into folders of images."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from upsr import images
from upsr.acquisition.extract import extract
from upsr.acquisition.transfer import Remote, download
from upsr.files import DataError


@dataclass(frozen=True)
class Archive:
    """An archive of images."""

    remote: Remote
    wanted: str
    """Pattern of the member paths to unpack, in every form of the archive."""
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
# Addresses, from the official one on. The tar, of about 20 GB, also holds LR images such as 000001x2.png, which are not
# unpacked; the zip, of 11.6 GB, holds the HR images alone.
# tar: the authors' address (github.com/limbee/NTIRE2017, issue 25, where it is also reported dead in 2024). torchSR
# (torchsr/datasets/flickr2k.py) and Catalyst's ESRGAN publish its MD5.
# zip: a user's copy; its page on Hugging Face, datasets/goodfellowliu/Flickr2K, publishes its SHA-256.
FLICKR2K = Archive(
    Remote(
        "Flickr2K.tar",
        ("https://cv.snu.ac.kr/research/EDSR/Flickr2K.tar",),
        None,
        None,
        md5="5d3f39443d5e9489bff8963f8f26cb03",
        instead=Remote(
            "Flickr2K.zip",
            ("https://huggingface.co/datasets/goodfellowliu/Flickr2K/resolve/main/Flickr2K.zip",),
            None,
            "401a5b1d247d18d1114b77b069e3c7bf235c80f06b8b9caaef0086d07f1d42a3",
        ),
    ),
    "*" + "[0-9]" * 6 + ".png",
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


def prepare(archives: Collection[Archive], folder: Path) -> list[Path]:
    """Downloads and unpacks archives below `folder`, each once; returns the folders of images.

    An archive whose folder has all images is neither downloaded nor missed. Raises `DataError` where an archive cannot
    be downloaded or unpacked.
    """
    folders = [folder / Path(archive.remote.name).stem for archive in archives]
    missing = [(a, out) for a, out in zip(archives, folders, strict=True) if len(_images(out)) != a.pictures]
    unknown = [a for a, _ in missing if not a.remote.size and not in_folder(a, folder)]
    space = sum(a.unpacked for a, _ in missing) + UNKNOWN_SIZE * len(unknown)
    paths = download([a.remote for a, _ in missing], folder, spare=space)
    for (archive, out), path in zip(missing, paths, strict=True):
        extract(path, out, wanted=archive.wanted, count=archive.pictures, limit=archive.unpacked)
    return folders


def in_folder(archive: Archive, folder: Path) -> bool:
    """True if `folder` has a file with the name of the archive, in any of its forms."""
    return any((folder / form.name).is_file() for form in archive.remote.forms)


def _images(folder: Path) -> list[Path]:
    return images.find(folder) if folder.is_dir() else []
