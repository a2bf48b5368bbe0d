"""Sources of photographs: files inside installed packages, DF2K's archives, or the user's own folder."""

import hashlib
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from upsr import images
from upsr.acquisition import archives
from upsr.files import DataError


@dataclass(frozen=True)
class Photo:
    """One photograph of a source. `name`: of its copy, without suffix. `sha256` is None where no hash is known."""

    name: str
    path: Path
    origin: str
    licence: str
    sha256: str | None
    linkable: bool = False
    """The file is the project's own copy, so a hard link to it is safe."""


@dataclass(frozen=True)
class Sample:
    """A photograph inside an installed package; `file` is relative to the package's folder."""

    name: str
    package: str
    file: str
    sha256: str
    origin: str
    licence: str


# Import name -> pip name of each package that contains samples.
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}

# Origins and licences are quoted from the packages' docstrings and README files.
SAMPLES = (
    Sample(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "Eileen Collins, NASA Great Images",
        "public domain",
    ),
    Sample(
        "coffee",
        "skimage",
        "data/coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
        "CC0",
    ),
    Sample(
        "chelsea",
        "skimage",
        "data/chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Stefan van der Walt",
        "CC0",
    ),
    Sample(
        "rocket",
        "skimage",
        "data/rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "Launch of DSCOVR, SpaceX Photos",
        "public domain",
    ),
    Sample(
        "hubble",
        "skimage",
        "data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "Hubble eXtreme Deep Field, NASA",
        "public domain",
    ),
    Sample(
        "ihc",
        "skimage",
        "data/ihc.png",
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "Immunohistochemical staining, Center for Microscopy and Molecular Imaging",
        "no known copyright restrictions",
    ),
    Sample(
        "retina",
        "skimage",
        "data/retina.jpg",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "Mikael Häggström, Wikimedia Commons",
        "CC0",
    ),
    Sample(
        "motorcycle_left",
        "skimage",
        "data/motorcycle_left.png",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        "Middlebury Stereo 2014, Scharstein et al., GCPR 2014",
        "none stated; carried by scikit-image",
    ),
    Sample(
        "motorcycle_right",
        "skimage",
        "data/motorcycle_right.png",
        "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
        "Middlebury Stereo 2014, Scharstein et al., GCPR 2014",
        "none stated; carried by scikit-image",
    ),
    Sample(
        "china",
        "sklearn",
        "datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "danielbuechele, Flickr 6061409035",
        "CC BY 2.0",
    ),
    Sample(
        "flower",
        "sklearn",
        "datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "vultilion, Flickr 6056698931",
        "CC BY 2.0",
    ),
    Sample(
        "grace_hopper",
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        "Grace Hopper, United States Navy",
        "public domain",
    ),
)


ARCHIVES = Path("data/archives")
"""Folder for DF2K's archives and their unpacked images."""


def find(
    source: str, folder: str | Path | None, reserved: Mapping[str, Collection[str]], downloads: Path = ARCHIVES
) -> list[Photo]:
    """The photographs of a source: `sample`, `df2k` (downloads its archives into `downloads`), or else `folder`.

    `reserved` maps a split to names: of DIV2K's validation set, only these images are returned. Raises `DataError`
    where there are none, a sample's package is not installed, or an archive cannot be downloaded.
    """
    if source == "sample":
        return [Photo(s.name, _locate(s), s.origin, s.licence, s.sha256) for s in SAMPLES]
    if source == "df2k":
        return _df2k(reserved, downloads)
    paths = images.find_below(Path(str(folder)))
    if not paths:
        raise DataError(f"{folder}: no such folder, or no images in it: correct data.folder")
    shared = Counter(path.stem for path in paths)
    return [
        Photo(_name(path, Path(str(folder)), shared), path, images.shown(path), "the user's own", None)
        for path in paths
    ]


def _name(path: Path, folder: Path, shared: Mapping[str, int]) -> str:
    """The name of the user's image. One that another has too, or that DVC cannot hold, gets a digest of its path."""
    try:
        images.check_name(path)
    except images.ImageError:
        pass
    else:
        if shared[path.stem] == 1:
            return path.stem
    place = path.relative_to(folder)
    readable = re.sub(r"[^\w-]+", "_", str(place.with_suffix("")))[-40:]
    return f"{readable}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:12]}"


def not_images(source: str, folder: str | Path | None) -> list[str]:
    """A line with the reason for each of the user's files and folders that is no image, or is not searched for any.

    Raises `DataError` for a folder that cannot be read.
    """
    if source != "folder":
        return []

    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}): make it readable or move it elsewhere")

    used, left = set(images.find_below(Path(str(folder)))), list[Path]()
    for parent, folders, names in os.walk(str(folder), onerror=unreadable):
        passed = [name for name in folders if name.startswith(".") or Path(parent, name).is_symlink()]
        left += [path for name in passed + names if (path := Path(parent, name)) not in used]
        folders[:] = [name for name in folders if name not in passed]
    return [f"{images.shown(path)}: {_reason(path)}" for path in sorted(left)]


def _reason(path: Path) -> str:
    if path.name.startswith("."):
        return "hidden"
    return "a link to a folder" if path.is_dir() else "not an image"


def _df2k(reserved: Mapping[str, Collection[str]], downloads: Path) -> list[Photo]:
    """The training images of DIV2K and Flickr2K, and the reserved ones of DIV2K's validation set."""
    wanted = archives.wanted(reserved)
    folders = archives.prepare(wanted, downloads)
    photos = [
        Photo(path.stem, path, archive.origin, archive.licence, None, linkable=True)
        for archive, folder in zip(wanted, folders, strict=True)
        for path in images.find(folder)
    ]
    unused = archives.VALIDATION - set[str]().union(*reserved.values())
    return [photo for photo in photos if photo.name not in unused]


def _locate(sample: Sample) -> Path:
    spec = importlib.util.find_spec(sample.package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"data.source: `sample` needs {sample.file}: pip install {DISTRIBUTIONS[sample.package]}")
    return Path(spec.submodule_search_locations[0], sample.file)
