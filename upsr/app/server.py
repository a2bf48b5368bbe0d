"""The page's HTTP server: it answers its own page on this machine alone, and reads no file that a request names."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from upsr.app.desk import FORMS, Desk, Order
from upsr.files import ImageError, one_line
from upsr.inference.upscaler import Upscaler
from upsr.photo.size import Size

PAGE = Path(__file__).parent / "page"
MOST_BYTES = 2**25  # of an image that is sent
MOST_SEED = 2**63 - 1
POLL = 0.05  # seconds
HOSTS = ("127.0.0.1", "localhost")  # another name that leads here is a page's that rebinds its DNS name
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def application(
    models: Mapping[str, Upscaler], default: str, *, seed: int, tile: int, ending: Callable[[], bool]
) -> ASGIApp:
    """The ASGI application for some models by name; the page shows `default` and `seed` at first.

    `ending`: whether the server is about to end; orders then end too.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[dict[str, object]]:
        with Desk(models, tile=tile) as desk:
            yield {"desk": desk, "ending": ending}

    async def settings(_: Request) -> Response:
        scales = {name: model.scale for name, model in models.items()}
        return JSONResponse(
            {"models": scales, "model": default, "seed": seed, "forms": FORMS, "megabytes": MOST_BYTES >> 20}
        )

    routes = [
        Route("/settings", settings),
        Route("/upscale", _upscale, methods=["POST"]),
        Route("/results/{token}/{side}", _result),
        Route("/zip", _zip),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    errors = {ValueError: _error}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=errors, middleware=[Middleware(_Guard)])


class _Guard:
    """Refuses what another site's page or another host name asks for, and lets no other site use an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif reason := _foreign(Headers(scope=scope), scope["path"]):
            await JSONResponse({"error": reason}, 403)(scope, receive, closed)
        else:
            await self.app(scope, receive, closed)


def _foreign(headers: Headers, path: str) -> str | None:
    """Why a request is refused; None for one of the page's own or of a program on this machine."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if urlsplit(f"//{host}").hostname not in HOSTS:
        return f"Host {host}: not this machine's own name: open http://127.0.0.1 and the port"
    if origin is not None and origin != f"http://{host}":
        return f"Origin {origin}: another site: open http://{host} itself"
    if path != "/" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return f"Sec-Fetch-Site: another site's page asks: open http://{host} itself"
    return None


async def _upscale(request: Request) -> Response:
    """An image as the body, the order as the query -> lines of JSON, as they come."""
    try:
        order = _order(request.query_params, request.state.desk)
        data = await _body(request, order.name)
    except ClientDisconnect:
        return Response(status_code=400)
    return StreamingResponse(_events(request, order, data), media_type="application/jsonl")


async def _events(request: Request, order: Order, data: bytes) -> AsyncIterator[str]:
    """What happens to an order, until its end; it is stopped where nobody listens any more."""
    desk: Desk = request.state.desk
    job, told = desk.submit(order, data), None
    try:
        while not (request.state.ending() or (job.future.done() and not job.events)):
            if (ahead := desk.ahead(job)) != told:
                told = ahead
                yield json.dumps({"ahead": ahead}) + "\n"
            while job.events:
                yield json.dumps(job.events.popleft()) + "\n"
            await asyncio.sleep(POLL)
    finally:
        desk.stop(job)


async def _result(request: Request) -> Response:
    result = request.state.desk.result(request.path_params["token"])
    if request.path_params["side"] == "before":
        return FileResponse(result.before)
    return FileResponse(result.after, filename=result.name)


async def _zip(request: Request) -> Response:
    desk: Desk = request.state.desk
    results = [desk.result(token) for token in request.query_params.getlist("token")]
    headers = {"Content-Disposition": "attachment; filename=upsr.zip"}
    return StreamingResponse(desk.packed(results), headers=headers, media_type="application/zip")


async def _error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": one_line(error)}, 400)


def _order(query: Mapping[str, str], desk: Desk) -> Order:
    name = PurePosixPath(query.get("name", "").replace("\\", "/")).name or "image"
    model, scale = query.get("model", ""), query.get("scale", "")
    seed, form = query.get("seed", "0"), query.get("format", "png")
    if model not in desk.models:
        raise ValueError(f"model {model}: not offered here: use {', '.join(desk.models)}")
    if not (seed.isascii() and seed.isdecimal() and len(seed) < 20 and int(seed) <= MOST_SEED):
        raise ValueError(f"seed {seed}: give a whole number from 0 to {MOST_SEED}")
    if form not in FORMS:
        raise ValueError(f"format {form}: use {', '.join(FORMS)}")
    Size.parse(scale)
    return Order(name, model, scale, int(seed), form)


async def _body(request: Request, name: str) -> bytes:
    """The body, read to its end so that the answer arrives. Raises `ImageError` for a large one, which is not kept."""
    data, length = bytearray(), 0
    async for chunk in request.stream():
        length += len(chunk)
        if length <= MOST_BYTES:
            data += chunk
    if length > MOST_BYTES:
        raise ImageError(f"{name}: more than {MOST_BYTES >> 20} MB: make it smaller, or use `upsr upscale`")
    return bytes(data)
