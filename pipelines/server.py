"""The standing Prefect server that scheduled nights need: is it started, does it answer, how is it stopped?"""

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import requests

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PID_FILE = "server.pid"  # Prefect's, in its home, of a server that runs in the background
ANSWER_SECONDS = 5.0


class NoServer(RuntimeError):
    """The server does not answer, in one line that says what to do."""


def reach_loopback() -> None:
    """Keeps proxy variables away from the servers of this machine, for this process and its children.

    A proxy cannot reach them.
    """
    exceptions = getproxies_environment().get("no", "")
    if exceptions != "*":
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, (exceptions, *LOOPBACK)))


def start(url: str) -> None:
    """Starts a server in the background if none answers at `url`, which must be of this machine.

    It has a session of its own, so Ctrl-C does not reach it. Raises `NoServer` for the address of another machine.
    """
    address = urlsplit(url)
    if answers(url):
        return
    if address.hostname not in LOOPBACK:
        raise NoServer(f"{url}: no Prefect server answers, and it is not on this machine: start it there")
    where = ["--host", address.hostname, "--port", str(address.port or 80)]
    subprocess.run([sys.executable, "-m", "prefect", "server", "start", *where, "--background"], start_new_session=True)


def wait(url: str, seconds: float) -> None:
    """Waits until the server at `url` answers. Raises `NoServer` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        if time.monotonic() > deadline:
            raise NoServer(
                f"{url}: no Prefect server answers after {seconds:g} seconds: `prefect server stop` ends one that "
                "hangs and forgets one that died, then `prefect server start` shows why one does not start"
            )
        time.sleep(0.5)


def answers(url: str) -> bool:
    """True if a server answers at the API address `url`, and is well."""
    try:
        return requests.get(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS).ok
    except requests.RequestException:
        return False


def farewell(url: str, home: Path) -> str:
    """What the user should know of the server at `url` when the schedule ends. `home` is Prefect's."""
    if not answers(url):
        return f"The Prefect server at {url} does not answer any more."
    how = "`prefect server stop` ends it" if (home / PID_FILE).is_file() else "end it where it was started"
    return f"The Prefect server at {url} goes on: {how}."
