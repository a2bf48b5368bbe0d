"""Headless Chromium, driven by its debugging protocol."""

import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

Call = Callable[..., Any]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[tuple[Call, list[str]]]:
    """Chromium with one blank page: a function that calls its debugging protocol, and the errors so far."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]
    command = [shutil.which("chromium") or "chromium", *options, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening on" in line)
        with connect(address, max_size=None) as socket:
            numbers, errors = itertools.count(1), []

            def call(method: str, **params: Any) -> Any:
                number = next(numbers)
                message = {"id": number, "method": method, "params": params} | session
                socket.send(json.dumps(message))
                while True:
                    answer = json.loads(socket.recv(timeout=60))
                    if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                        errors.append(json.dumps(answer["params"]))
                    if answer.get("id") == number:
                        return answer["result"]

            session: dict[str, str] = {}
            target = call("Target.createTarget", url="about:blank")["targetId"]
            session = {"sessionId": call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
            for domain in ("Runtime", "Log"):
                call(f"{domain}.enable")
            yield call, errors
    finally:
        process.kill()
        process.wait()


def script(call: Call, text: str) -> Any:
    """Evaluates JavaScript in the page, and waits for its promise."""
    return call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)["result"].get("value")
