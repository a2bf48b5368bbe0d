"""Posts JSON to a webhook. Nothing that a webhook does raises or takes long: what it is told of stands."""

from threading import Thread
from typing import Any

import requests

SECONDS = 10.0  # for everything, however slowly the other side answers


def post(url: str, body: dict[str, Any]) -> str | None:
    """Posts `body` as JSON. Returns None if the webhook took it, otherwise why not.

    The reason leaves out `url`, whose path may be a secret.
    """
    reasons: list[str | None] = []
    # The timeout of requests starts again with each byte, so a thread is left behind instead.
    thread = Thread(target=lambda: reasons.append(_post(url, body)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return reasons[0] if reasons else f"no answer within {SECONDS:g} seconds"


def _post(url: str, body: dict[str, Any]) -> str | None:
    try:
        with requests.post(url, json=body, timeout=SECONDS, allow_redirects=False, stream=True) as answer:
            return None if answer.status_code < 300 else f"it answered {answer.status_code}"
    except Exception as error:  # of the network, or of an odd host name
        return type(error).__name__
