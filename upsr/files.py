"""Files and folders: atomic writes, SHA-256, and errors in one line."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TEMPORARY = ".upsr-"  # start of the names that `atomic` writes under: short, because a file name has at most 255 bytes
FULL = (errno.ENOSPC, errno.EDQUOT)


class DataError(ValueError):
    """Files that cannot be used, in one line: which, why, and what to do."""


class ImageError(ValueError):
    """An image that cannot be read or written, in one line that names the file."""


@contextlib.contextmanager
def atomic(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file is renamed to `path` when the block ends without an error.

    `durable` syncs the contents to the disk before renaming: without it, a power cut may leave an empty file. A kill
    leaves the temporary file: `remove_temporary`. Raises `DataError` where the disk is full.
    """
    path = Path(path)
    with full_disk_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with full_disk_in_one_line(path):
            yield temporary
            if durable:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Removes the files below `folder` that killed processes left in `atomic`. Nobody else may write there now."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        if path.is_file():
            path.unlink()


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which replaces `path` when the block ends without an error.

    What a killed run left is removed first, so only one process at a time may write a folder. Raises `DataError` where
    the disk is full.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    new, old = scratch / "new", scratch / "old"
    try:
        with full_disk_in_one_line(path):
            _restore(path, scratch)
            new.mkdir(parents=True)
            yield new
            if path.exists():
                path.rename(old)
            new.rename(path)
    finally:
        _restore(path, scratch)


def _restore(path: Path, scratch: Path) -> None:
    """Removes the scratch folder; `path` is put back where it was moved away and not yet replaced."""
    if (scratch / "new").exists() and (scratch / "old").exists() and not path.exists():
        (scratch / "old").rename(path)
    if scratch.exists():
        shutil.rmtree(scratch)


@contextlib.contextmanager
def full_disk_in_one_line(path: Path) -> Iterator[None]:
    """Turns the error of a full disk, which each library words in its own way, into a `DataError` that names `path`."""
    try:
        yield
    except ValueError:  # already one line
        raise
    except Exception as error:
        if getattr(error, "errno", None) in FULL or _is_full(path.parent):
            raise DataError(f"{path}: the disk is full: free some disk space and run again") from error
        raise


def one_line(error: Exception) -> str:
    """The text of a user's error on one line; of a full disk, with the remedy."""
    text = " ".join(str(error).split())
    return f"{text}: free some disk space and run again" if getattr(error, "errno", None) in FULL else text


def _is_full(folder: Path) -> bool:
    """True if a MiB cannot be written. Its free space would not tell: a quota may be used up."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(2**20))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno in FULL
    return False


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits. Raises `OSError` for a file that cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their stem, the name without suffix. Raises `DataError` where two share one."""
    table: dict[str, Path] = {}
    for path in paths:
        if path.stem in table:
            raise DataError(f"{path}: {table[path.stem].name} has the same name without suffix: rename one")
        table[path.stem] = path
    return table


def report_corrupt(messages: Sequence[str], on_corrupt: str) -> None:
    """Logs a message per unreadable image where `on_corrupt` is `skip`; raises `DataError` where it is `fail`."""
    if messages and on_corrupt == "fail":
        raise DataError(f"{len(messages)} unreadable: {'; '.join(messages)}, or set data.on_corrupt to skip")
    for message in messages:
        log.warning("skipped: %s", message)


def check_regular(path: str | Path) -> None:
    """Raises `OSError` where a path is a folder, a pipe or a device: reading a pipe may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a file", str(path))


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `DataError` for another file, and `OSError` for one that cannot be read."""
    return parse_json(path.read_bytes(), path)


def parse_json(text: str | bytes, path: Path) -> Any:
    """The value of the JSON in the file `path`. Raises `DataError` for other text, and for values nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path}: invalid JSON (nested too deeply): restore it or make it again") from None
    except ValueError as error:  # also of a number of too many digits, and of bytes that are no text
        raise DataError(f"{path}: invalid JSON ({' '.join(str(error).split())}): restore it or make it again") from None
