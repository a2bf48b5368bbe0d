"""The disk space of a run's data, estimated before anything is downloaded."""

import shutil
from pathlib import Path
from typing import NamedTuple

from upsr import images
from upsr.acquisition import archives, sources
from upsr.config import Params
from upsr.files import DataError

DATA = Path("data")
OUTPUTS = {"crop": DATA / "subimages", "pack": DATA / "train.lmdb"}
TYPICAL = (2040, 1356)  # width and height of an image of DF2K
SAMPLE = 10_000_000  # bytes of the bundled photographs
AS_PNG = 5  # bytes of a PNG per byte of a JPEG
STORED = {"png": 1.0, "webp": 7 / 8, "raw": 1.7}  # bytes in the LMDB per byte of a PNG


class Size(NamedTuple):
    """Bytes of a stage's outputs, and those of them that are not on the disk yet."""

    total: int
    missing: int


def data_sizes(params: Params, downloads: Path = sources.ARCHIVES) -> dict[str, Size]:
    """The sizes of `download`, `crop` and `pack`; DVC's cache links to the same files.

    Overlapping sub-images repeat pixels: 3.3 times with `crop.size` 480 and `crop.step` 240. Raises `DataError` for
    reserved images that DF2K does not have.
    """
    data, crop = params.data, params.crop
    if data.source == "df2k":
        wanted = archives.wanted(data.reserved)
        sizes = [_archive(archive, downloads) for archive in wanted]
        download = Size(sum(size.total for size in sizes), sum(size.missing for size in sizes))
        photos = sum(archive.unpacked for archive in archives.DF2K)
    else:
        found = images.find_below(Path(str(data.folder))) if data.source == "folder" else []
        copied = sum(path.stat().st_size for path in found) or SAMPLE
        download = Size(copied, max(copied - on_disk(DATA / "hr"), 0))
        photos = sum(path.stat().st_size * (1 if path.suffix == ".png" else AS_PNG) for path in found) or SAMPLE
    along = [-(-max(side - crop.size, 0) // crop.step) + 1 for side in TYPICAL]
    repeated = along[0] * along[1] * crop.size**2 / (TYPICAL[0] * TYPICAL[1])
    totals = {"crop": photos * repeated, "pack": photos * repeated * STORED[params.pack.encoding]}
    made = {
        stage: Size(round(total), max(round(total) - on_disk(OUTPUTS[stage]), 0)) for stage, total in totals.items()
    }
    return {"download": download, **made}


def check_space(sizes: dict[str, Size]) -> None:
    """Raises `DataError` where the disk of `data` cannot hold what is missing."""
    missing, free = sum(size.missing for size in sizes.values()), free_space()
    if missing > free:
        parts = ", ".join(f"{stage} {size.missing / 1e9:.1f}" for stage, size in sizes.items())
        raise DataError(
            f"{DATA}: {missing / 1e9:.1f} GB are needed ({parts}) and {free / 1e9:.1f} GB are free: "
            f"free some disk space, or let {DATA} be a link to a larger disk"
        )


def free_space() -> int:
    """Free bytes on the disk of `data`."""
    return shutil.disk_usage(DATA if DATA.exists() else ".").free


def _archive(archive: archives.Archive, folder: Path) -> Size:
    """Of an archive and its images. After unpacking, the archive may be deleted."""
    packed = archive.remote.size or archives.UNKNOWN_SIZE
    unpacked = folder / Path(archive.remote.name).stem
    if unpacked.is_dir() and len(images.find(unpacked)) == archive.pictures:
        return Size(packed + archive.unpacked, 0)
    if archives.in_folder(archive, folder):
        return Size(packed + archive.unpacked, archive.unpacked)
    here = sum(path.stat().st_size for path in folder.glob(f".{archive.remote.name}*") if path.is_file())
    return Size(packed + archive.unpacked, archive.unpacked + max(packed - here, 0))


def on_disk(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
