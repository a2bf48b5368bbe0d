"""Locks on files and folders. For POSIX systems only: what upscales does not import this module."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from upsr.files import DataError

_held: set[int] = set()  # descriptors


def _close_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# A forked child, such as a data worker, outlives its killed parent by seconds: it must not keep the lock.
os.register_at_fork(after_in_child=_close_held)


class Locked(DataError):
    """A file or folder that another process has locked."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock on a file or folder for the block; the kernel releases it when this process dies.

    Raises `Locked` where another process holds it, and `OSError` where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks no file that cannot be written
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"{path}: another process is at work here: wait for it, or stop it") from None
        except OSError as error:
            raise OSError(error.errno, f"cannot be locked ({error.strerror})", str(path)) from None
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)
