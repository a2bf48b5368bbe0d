"""A web server on 127.0.0.1 that does what it is told, also wrong things."""

import hashlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Answer"], None]


class Answer(BaseHTTPRequestHandler):
    """Serves `Server.files`; the faults of a path are used up one by one, then it is a good server with ranges."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        faults = self.server.faults.get(self.path, [])
        if faults:
            faults.pop(0)(self)
        elif self.path in self.server.files:
            self.serve()
        else:
            self.send_error(404)

    def serve(self, *, ranges: bool = True, cut: int | None = None, lie: int = 0, body: bytes | None = None) -> None:
        """The file from where it was asked for; `cut`: only so many bytes; `lie`: added to the length it tells."""
        whole = self.server.files[self.path] if body is None else body
        mark = f'"{hashlib.sha256(whole).hexdigest()[:8]}"'
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        start = start if ranges and self.headers.get("If-Range") in (None, mark) else 0
        if start >= len(whole):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(whole) - start + lie))
        self.send_header("ETag", mark)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        self.wfile.write(whole[start:][:cut])
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.asked: list[tuple[str, str | None]] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"
