"""Extracts the images of an archive safely: no path from the archive is used, and the size is limited."""

import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from upsr import images
from upsr.files import DataError, whole_folder

CHUNK = 1 << 20


def extract(archive: Path, out: Path, *, wanted: str, count: int, limit: int) -> None:
    """Replaces the folder `out` by the images of a zip or tar whose paths match `wanted` (such as `*/HR/*.png`).

    Only the file name of each path is used, so no file can leave the folder. Links and devices are skipped. Raises
    `DataError` for a broken archive, a number of images other than `count`, and more than `limit` bytes, and
    `ImageError` for a file name that cannot be used; `out` then stays as it was.
    """
    with whole_folder(out) as new:
        left = limit
        try:
            for path, stream in tqdm(_members(archive, wanted), desc=archive.name, total=count, disable=None):
                target = new / PurePosixPath(path).name
                images.check_name(archive / target.name)
                if target.exists():
                    raise DataError(f"{archive}: holds two images named {target.name}: remove it and run again")
                left -= _copy(stream, target, left, archive)
        except Exception as error:  # zipfile, tarfile and the decompressors raise a dozen types
            if isinstance(error, DataError | images.ImageError) or getattr(error, "errno", None):  # such as a full disk
                raise
            raise DataError(f"{archive}: broken archive ({error}): remove it and run again") from None
        found = sum(1 for _ in new.iterdir())
        if found != count:
            raise DataError(f"{archive}: holds {found} images {wanted}, not {count}: remove it and run again")


def _members(archive: Path, wanted: str) -> Iterator[tuple[str, IO[bytes]]]:
    """(path, open file) of each wanted image, in the archive's order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir() and _is_wanted(info.filename, wanted):
                    with file.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            contents = tar.extractfile(member) if member.isreg() and _is_wanted(member.name, wanted) else None
            if contents:
                yield member.name, contents


def _is_wanted(path: str, wanted: str) -> bool:
    name = PurePosixPath(path).name
    return fnmatch(path, wanted) and not name.startswith(".") and Path(name).suffix.lower() in images.SUFFIXES


def _copy(stream: IO[bytes], target: Path, left: int, archive: Path) -> int:
    """Copies at most `left` bytes and returns how many. Counts the real bytes: a header may lie about the size."""
    with target.open("wb") as file:
        while file.tell() <= left and (chunk := stream.read(CHUNK)):
            file.write(chunk)
        if file.tell() > left:
            raise DataError(f"{archive}: unpacks to more bytes than expected: remove it and run again")
        return file.tell()
