"""Takes the pictures out of an archive, and nothing else: no path of the archive's own, no more than was announced."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from upsr import images
from upsr.files import DataError, whole_folder

CHUNK = 1 << 20


def extract(archive: Path, out: Path, *, wanted: str, pictures: int, most: int) -> None:
    """Fills the folder `out` anew with the pictures of a zip or tar whose path matches `wanted` (`*/HR/*.png`).

    Each goes by its last name, so that none can leave the folder; links and devices are passed over. Raises `DataError`
    for a broken archive, for other than `pictures` pictures, and before more than `most` bytes are written.
    """
    with whole_folder(out) as new:
        left = most
        try:
            for path, stream in tqdm(_members(archive, wanted), desc=archive.name, total=pictures, disable=None):
                target = new / PurePosixPath(path).name
                if target.exists():
                    raise DataError(f"{archive}: holds two pictures named {target.name}: not the archive it should be")
                left -= _copy(stream, target, left, archive)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
            raise DataError(f"{archive}: broken archive ({error}): remove it and run again") from None
        found = sum(1 for _ in new.iterdir())
        if found != pictures:
            raise DataError(f"{archive}: holds {found} pictures {wanted}, not {pictures}: remove it and run again")


def _members(archive: Path, wanted: str) -> Iterator[tuple[str, IO[bytes]]]:
    """The pictures inside, one after the other in the archive's order, each with its opened contents."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir() and _is_picture(info.filename, wanted):
                    with file.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            contents = tar.extractfile(member) if member.isreg() and _is_picture(member.name, wanted) else None
            if contents:
                yield member.name, contents


def _is_picture(path: str, wanted: str) -> bool:
    name = PurePosixPath(path).name
    return fnmatch(path, wanted) and not name.startswith(".") and Path(name).suffix.lower() in images.SUFFIXES


def _copy(stream: IO[bytes], target: Path, left: int, archive: Path) -> int:
    """Writes what the stream really holds, whatever its header says; returns the bytes."""
    with target.open("wb") as file:
        while file.tell() <= left and (chunk := stream.read(CHUNK)):
            file.write(chunk)
        if file.tell() > left:
            raise DataError(f"{archive}: unpacks to far more than it should: not the archive it should be")
        return file.tell()
