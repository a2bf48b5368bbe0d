"""Brings large files from web servers: goes on where a connection broke, tries mirrors, checks before it renames."""

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

from upsr.files import DataError, sha256

PARALLEL = 4
ATTEMPTS = 4  # in a row, at one mirror, that bring nothing new
PAUSE = 1.0  # seconds before the second of them, doubled each time
TIMEOUT = (20, 60)  # seconds to connect, and to wait for the next bytes
BUSY = (429, 500, 502, 503, 504)
CHUNK = 1 << 16  # bytes; what is lost where a connection breaks


@dataclass(frozen=True)
class Remote:
    """A file on the web. Without `size` and `sha256` whatever a server calls whole is taken."""

    name: str
    urls: tuple[str, ...]
    """The official address, then mirrors."""
    size: int | None
    sha256: str | None


class _Broken(Exception):
    """An answer that ended early, or is not what was asked for: worth another attempt."""


def download(files: Sequence[Remote], folder: Path, spare: int = 0) -> None:
    """Brings each file into `folder`, several at once; what is there and right stays, what is half there goes on.

    `spare` bytes must be left on the disk afterwards. Raises `DataError` in one line where a file cannot be had: what
    was there under its name stays, and what arrived is kept for the next run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for file in files if not _is_right(folder / file.name, file)]
    parts = [_size(_part(folder / file.name)) for file in files]
    _check_space(folder, sum(max((f.size or 0) - p, 0) for f, p in zip(files, parts, strict=True)) + spare)
    total = sum(f.size for f in files if f.size) if all(f.size for f in files) else None
    with (
        tqdm(total=total, initial=sum(parts), desc="fetch", unit="B", unit_scale=True, disable=None) as bar,
        ThreadPoolExecutor(PARALLEL) as pool,
    ):
        list(pool.map(lambda file: _bring(file, folder / file.name, bar), files))


def _bring(remote: Remote, target: Path, bar: tqdm) -> None:
    """One file from the first mirror that has it whole."""
    faults = []
    for url in remote.urls:
        try:
            _from(url, remote, target, bar)
            return
        except (_Broken, requests.RequestException) as error:
            faults.append(f"{url}: {_reason(error)}")
    raise DataError(
        f"{remote.name}: cannot be had ({'; '.join(faults)}): run it again to go on from what arrived, "
        f"or put the file at {target} by hand"
    )


def _from(url: str, remote: Remote, target: Path, bar: tqdm) -> None:
    """One file from one mirror: attempt after attempt, as long as they bring something new."""
    part, idle, most, restarts = _part(target), 0, _size(_part(target)), 0
    while True:
        continued = _size(part) > 0
        try:
            _stream(url, part, remote, bar)
            _check(part, remote)
            part.replace(target)
            _stamp(part).unlink(missing_ok=True)
            return
        except (_Broken, requests.RequestException) as error:
            dropped = not part.exists() and not _refused(error)  # what was there was not the file's beginning
            restarts += dropped
            idle = 0 if _size(part) > most else idle + 1
            most = 0 if dropped else max(most, _size(part))
            if idle >= ATTEMPTS or restarts > continued or _refused(error):
                raise
            time.sleep(PAUSE * 2**idle)


def _stream(url: str, part: Path, remote: Remote, bar: tqdm) -> None:
    """Appends to `part` what is missing of it; from nothing where the server does not continue, or the file changed."""
    have, headers = _size(part), {"Accept-Encoding": "identity"}  # a compressed answer has other ranges
    mark = _mark(part, url)
    if have and not (mark or remote.sha256):
        have = _discard(part, bar)  # nothing tells whether the rest would belong to it
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": mark} if mark else {})
    with _session() as session, session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # there is no rest: it was whole, or it is another file
            if have == remote.size:
                return
            _discard(part, bar)
            raise _Broken(f"has nothing beyond byte {have}")
        answer.raise_for_status()
        if have and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = _discard(part, bar)
        if answer.status_code == 206 and not have:
            raise _Broken("sent another range than asked for")
        _stamp(part).write_text(f"{url}\n{answer.headers.get('ETag') or answer.headers.get('Last-Modified') or ''}")
        with part.open("ab") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))


def _check(part: Path, remote: Remote) -> None:
    """Removes a file that is too long or has other bytes than it should; one that is too short may yet go on."""
    size = _size(part)
    if remote.size and size < remote.size:
        raise _Broken(f"ended after {size} of {remote.size} bytes")
    if remote.size and size > remote.size:
        part.unlink()
        raise _Broken(f"has {size} bytes, not {remote.size}")
    if remote.sha256 and sha256(part) != remote.sha256:
        part.unlink()
        raise _Broken("has other bytes than it should (SHA-256)")


def _session() -> requests.Session:
    """A session that waits and asks again where a server is busy, as long as the server says, within a minute."""
    session = requests.Session()
    retry = Retry(3, status_forcelist=BUSY, backoff_factor=PAUSE, retry_after_max=60)
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _refused(error: Exception) -> bool:
    """Would asking again be in vain? (404, 403, ...; a busy server has been asked again already)"""
    return isinstance(error, requests.HTTPError | requests.exceptions.RetryError)


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.RetryError):
        return "busy, however often asked"
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.ReadTimeout):
        return "no answer in time"
    if isinstance(error, requests.RequestException):
        return "the connection broke, again and again"
    return str(error)


def _is_right(path: Path, remote: Remote) -> bool:
    """Is the file there, as far as is known of it?"""
    if not path.is_file() or (remote.size and path.stat().st_size != remote.size):
        return False
    return remote.sha256 is None or sha256(path) == remote.sha256


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free: make room first")


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _stamp(part: Path) -> Path:
    """Beside a part: where it comes from, and the server's mark of that version."""
    return part.with_suffix(".from")


def _mark(part: Path, url: str) -> str:
    """The mark of the version that a part belongs to; empty where it is another address's, or has none.

    A weak mark (W/...) does not promise equal bytes, so it is not used.
    """
    if not _stamp(part).is_file():
        return ""
    origin, _, mark = _stamp(part).read_text().partition("\n")
    return mark if origin == url and not mark.startswith("W/") else ""


def _discard(part: Path, bar: tqdm) -> int:
    bar.update(-_size(part))
    part.unlink(missing_ok=True)
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
