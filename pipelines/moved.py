"""MLflow's local store in a checkout that was copied or moved: it holds the absolute addresses of its artifacts.

MLflow has no call that changes them, so they are changed in the database.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from upsr.files import DataError

ADDRESSES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def mend(database: Path, artifacts: Path) -> None:
    """Lets the experiments of a SQLite store write below `artifacts`, where other checkouts' addresses are found.

    Addresses of what exists already follow, but not to files that are only at the old place. Raises `DataError` where
    the database cannot be written.
    """
    try:
        with closing(sqlite3.connect(database, timeout=60)) as store, store:
            moved = {old for _, address in _addresses(store, "experiments", "artifact_location")
                     if (old := _elsewhere(address, artifacts))}  # fmt: skip
            for old in moved:
                _replace(store, old, artifacts)
    except sqlite3.Error as error:
        raise DataError(
            f"{database}: its checkout was copied or moved, and the addresses of artifacts in it cannot be changed "
            f"({error}): make it writable"
        ) from None


def _elsewhere(address: str, artifacts: Path) -> Path | None:
    """The folder of artifacts of another checkout that an experiment writes to."""
    parent = _path(address).parent
    return parent if parent.name == artifacts.name and parent.resolve() != artifacts.resolve() else None


def _replace(store: sqlite3.Connection, old: Path, new: Path) -> None:
    before, after = f"{old.as_uri()}/", f"{new.as_uri()}/"
    for table, column in (("experiments", "artifact_location"), *ADDRESSES):
        for row, address in _addresses(store, table, column):
            here = address.replace(before, after, 1)
            if address.startswith(before) and (table == "experiments" or _is_here(address, here)):
                store.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (here, row))


def _is_here(before: str, after: str) -> bool:
    """True unless the files are at the old place alone."""
    return _path(after).exists() or not _path(before).exists()


def _path(address: str) -> Path:
    return Path(url2pathname(urlparse(address).path))


def _addresses(store: sqlite3.Connection, table: str, column: str) -> list[tuple[int, str]]:
    return store.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} LIKE 'file:%'").fetchall()
