"""`upsr app`: a page that upscales images, in the browser of this machine."""

import argparse
import os
import threading
import webbrowser
from typing import TYPE_CHECKING

from upsr.commands import add_model_options, model_file, natural, new, open_device

if TYPE_CHECKING:
    import socket

    from upsr.commands import Commands

HOST = "127.0.0.1"  # this machine alone: the page has no passwords
MOST_CONNECTIONS = 64
GRACE = 5  # seconds that Ctrl-C leaves to running downloads


def add(commands: "Commands") -> None:
    command = new(commands, "app", run, "upscale images in the browser of this machine")
    add_model_options(command)
    command.add_argument("--port", type=natural, default=7860, help=f"port on {HOST}; 0 takes a free one")
    command.add_argument("--open", action="store_true", help="open the page in the browser")


def run(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C. Raises `ValueError` for a port that cannot be used, and as `upsr upscale` does."""
    import uvicorn

    from upsr.app.server import application
    from upsr.inference.upscaler import Upscaler
    from upsr.memory import free_memory
    from upsr.pretrained import NAMES, bundled, weights_file

    with listen(options.port) as listener:
        default = NAMES.get(options.model, options.model)
        files = {name: weights_file(name) for name in bundled()} | {default: model_file(default)}
        device = open_device(options.device)
        models = {
            name: Upscaler.from_pretrained(file, device=device, dtype=options.dtype) for name, file in files.items()
        }
        tile = options.tile or min(m.fitting_tile(free_memory(m.device)) for m in models.values())
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if options.open:  # a browser may block; a connection waits until the server takes it
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        config = uvicorn.Config(
            application(models, default, seed=options.seed, tile=tile, ending=lambda: server.should_exit),
            log_level="warning",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE,
        )
        server = uvicorn.Server(config)
        server.run(sockets=[listener])


def listen(port: int) -> "socket.socket":
    """A socket that listens on a port of this machine. Raises `ValueError` for a port that cannot be used."""
    import socket

    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "above 65535"
        raise ValueError(f"--port {port}: {reason}: choose another, such as --port 0 for a free one") from None
