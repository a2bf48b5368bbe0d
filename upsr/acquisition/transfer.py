"""Downloads large files: resumes where a connection broke, tries mirrors, checks a file before renaming it."""

import hashlib
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import Retry

from upsr.files import DataError, full_disk_in_one_line, sha256

PARALLEL = 4
ATTEMPTS = 4  # consecutive attempts at one mirror without a new byte
PAUSE = 1.0  # seconds before the second of them, doubled each time
TIMEOUT = (20, 60)  # seconds to connect, and between two reads
BUSY = (429, 500, 502, 503, 504)
CHUNK = 1 << 16  # bytes; lost at most where a connection breaks


@dataclass(frozen=True)
class Remote:
    """A file on the web. With neither size nor hash, any complete answer is accepted."""

    name: str
    urls: tuple[str, ...]
    """The official address, then mirrors."""
    size: int | None
    sha256: str | None
    md5: str | None = None
    """Checked where no SHA-256 is published."""
    instead: "Remote | None" = None
    """Another file with the same contents, for when no address has this one. It has its own part: bytes never mix."""

    @property
    def forms(self) -> tuple["Remote", ...]:
        """This file, and those that may replace it, in the order in which they are tried."""
        return (self, *(self.instead.forms if self.instead else ()))


class _Broken(Exception):
    """An answer that is incomplete or wrong: worth another attempt."""


def download(files: Sequence[Remote], folder: Path, spare: int = 0) -> list[Path]:
    """Downloads files into `folder`, several at a time, and returns their paths: of each, the first form available.

    Complete files are kept, partial ones are resumed. `spare`: bytes of disk space that must remain afterwards. Raises
    `DataError` where the space is too small or a file cannot be downloaded; an older file of that name stays, and the
    part that arrived is kept for the next run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_complete(file, folder) for file in files]
    files = [file for file, path in zip(files, paths, strict=True) if not path]
    parts = [_size(_part(folder / file.name)) for file in files]
    _check_space(folder, sum(max((f.size or 0) - p, 0) for f, p in zip(files, parts, strict=True)) + spare)
    total = sum(f.size for f in files if f.size) if all(f.size for f in files) else None
    with (
        tqdm(total=total, initial=sum(parts), desc="fetch", unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(PARALLEL) as pool,
    ):
        fetched = iter(list(pool.map(lambda file: _download(file, folder, bar), files)))
    return [path or next(fetched) for path in paths]


def _complete(remote: Remote, folder: Path) -> Path | None:
    """The first form of a file that is in `folder`, with its published size and hash."""
    found = ((folder / form.name, form) for form in remote.forms)
    return next((path for path, form in found if path.is_file() and not _fault(path, form)), None)


def _download(remote: Remote, folder: Path, bar: tqdm) -> Path:
    """Downloads one file, in its first form that a mirror delivers, and returns its path."""
    faults = []
    for form in remote.forms:
        target = folder / form.name
        if target.is_file():
            faults.append(f"{target}: {_fault(target, form)}")
        for url in form.urls:
            try:
                _download_from(url, form, target, bar)
            except (_Broken, requests.RequestException) as error:
                faults.append(f"{url}: {_reason(error)}")
                bar.write(faults[-1])
            else:
                for other in remote.forms:
                    _remove_part(_part(folder / other.name))
                return target
    places = " or ".join(str(folder / form.name) for form in remote.forms)
    raise DataError(
        f"{remote.name}: download failed ({'; '.join(faults)}): run again to resume, or copy the file to {places}"
    )


def _download_from(url: str, remote: Remote, target: Path, bar: tqdm) -> None:
    """Downloads one file from one mirror, and retries while new bytes arrive."""
    part, idle, longest, restarts = _part(target), 0, _size(_part(target)), 0
    while True:
        continued = _size(part) > 0
        try:
            _stream(url, part, remote, bar)
            _check(part, remote)
            part.replace(target)
            return
        except (_Broken, requests.RequestException) as error:
            dropped = not part.exists() and not _is_final(error)  # the part was not the start of this file
            restarts += dropped
            idle = 0 if _size(part) > longest else idle + 1
            longest = 0 if dropped else max(longest, _size(part))
            if idle >= ATTEMPTS or restarts > continued or _is_final(error):
                raise
            time.sleep(PAUSE * 2**idle)


def _stream(url: str, part: Path, remote: Remote, bar: tqdm) -> None:
    """Appends the missing bytes to `part`; restarts where the server cannot resume, or its file has changed."""
    # request
    have, headers = _size(part), {"Accept-Encoding": "identity"}  # offsets in a compressed answer differ
    validator = _validator(part, url)
    if have and not (validator or remote.sha256 or remote.md5):
        have = _discard(part, bar)  # no validator shows that the rest belongs to this part
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    with _session() as session, session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        # status
        if answer.status_code == 416:  # no bytes beyond `have`: the part is complete, or of another file
            if have == remote.size:
                return
            _discard(part, bar)
            raise _Broken(f"has nothing beyond byte {have}")
        answer.raise_for_status()
        if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = _discard(part, bar)
        if answer.status_code == 206 and not have:
            raise _Broken("sent a range that was not requested")
        # contents
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        with full_disk_in_one_line(part):
            _version_file(part).write_text(f"{url}\n{version}")
            with part.open("ab") as file:
                for chunk in answer.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))


def _check(part: Path, remote: Remote) -> None:
    """Raises `_Broken` for a wrong size or hash. Removes the part, unless it is only too short and can be resumed."""
    if remote.size and (size := _size(part)) < remote.size:
        raise _Broken(f"ended after {size} of {remote.size} bytes")
    if fault := _fault(part, remote):
        part.unlink()
        raise _Broken(fault)


def _fault(path: Path, remote: Remote) -> str | None:
    """How a file differs from what is published; None if it does not, or nothing is published."""
    if remote.size and path.stat().st_size != remote.size:
        return f"has {path.stat().st_size} bytes, not {remote.size}"
    if remote.sha256 and sha256(path) != remote.sha256:
        return "has the wrong SHA-256"
    if remote.md5 and not remote.sha256 and _md5(path) != remote.md5:
        return "has the wrong MD5"
    return None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _session() -> requests.Session:
    """A session that retries when a server is busy. It waits as long as the server asks, at most a minute."""
    session = requests.Session()
    retry = Retry(3, status_forcelist=BUSY, backoff_factor=PAUSE, retry_after_max=60)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _is_final(error: Exception) -> bool:
    """True if retrying cannot help: 404, 403, ..., or a busy server, which the session has retried already."""
    return isinstance(error, requests.HTTPError | requests.exceptions.RetryError)


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.RetryError):
        return "busy after several retries"
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.ReadTimeout):
        return "timed out"
    if isinstance(error, requests.RequestException):
        return "the connection broke repeatedly"
    return str(error)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free: free some disk space"
        )


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _remove_part(part: Path) -> None:
    part.unlink(missing_ok=True)
    _version_file(part).unlink(missing_ok=True)


def _version_file(part: Path) -> Path:
    """File beside a part with its URL and the server's validator of that version."""
    return part.with_suffix(".from")


def _validator(part: Path, url: str) -> str:
    """The ETag or date of the version that a part belongs to; empty where the part is from another URL or has none.

    A weak ETag (W/...) does not promise equal bytes, so it is not used.
    """
    if not _version_file(part).is_file():
        return ""
    origin, _, validator = _version_file(part).read_text().partition("\n")
    return validator if origin == url and not validator.startswith("W/") else ""


def _discard(part: Path, bar: tqdm) -> int:
    bar.update(-_size(part))
    part.unlink(missing_ok=True)
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
