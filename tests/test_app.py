"""`upsr app`: a real server in a process, asked over HTTP and by a browser."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import psutil
import pytest
import requests
from browser import browser, script
from conftest import params, save_model
from PIL import Image
from services import PATIENCE, until

from upsr import images
from upsr.__main__ import main

TILE = 16


class Server:
    """A server of its own folder for temporary files, with an untrained model as its default."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.model, self.temporary = save_model(folder / "tiny", params()), folder / "temporary"
        self.temporary.mkdir()
        command = [sys.executable, "-m", "upsr", "app", "--port", "0", "--tile", str(TILE), "--device", "cpu"]
        self.process = subprocess.Popen(
            [*command, "--model", str(self.model), *arguments],
            env=os.environ | {"TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.address = self.process.stdout.readline().split()[0]

    def ask(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"{self.address}{path}", headers=headers, timeout=PATIENCE)

    def send(self, data: bytes, headers: dict[str, str] | None = None, **order: str) -> HTTPResponse:
        """The answer to an order, a line of which can be read as soon as it comes."""
        query = {"name": "photo.jpg", "model": str(self.model), "scale": "4", "seed": "0", "format": "png"} | order
        connection = HTTPConnection(self.address.removeprefix("http://"), timeout=PATIENCE)
        connection.request("POST", f"/upscale?{urlencode(query)}", data, headers or {})
        return connection.getresponse()

    def upscaled(self, data: bytes, **order: str) -> dict[str, Any]:
        """The last event of an order."""
        return events(self.send(data, **order))[-1]

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def events(answer: HTTPResponse) -> list[dict[str, Any]]:
    return list(map(json.loads, answer))


def next_event(answer: HTTPResponse, key: str, value: int | None = None) -> dict[str, Any]:
    """The next event with a key, of any or one value."""
    return next(e for e in map(json.loads, answer) if key in e and value in (None, e[key]))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("app"))
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def photo(height: int = 40, width: int = 48, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8)).resize((width, height))


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# Orders


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_the_file_is_that_of_upsr_upscale(server: Server, tmp_path: Path, form: str):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6  # turned by a quarter
    data = encoded(photo(), "JPEG", exif=exif)
    (tmp_path / "photo.jpg").write_bytes(data)
    told = server.upscaled(data, scale="2.5", seed="7", format=form)
    result = server.ask(f"/results/{told['token']}/after")
    suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[form]
    assert told["name"] == f"photo_x2.5{suffix}" and told["name"] in result.headers["Content-Disposition"]
    options = ["--model", str(server.model), "--tile", str(TILE), "--seed", "7", "--scale", "2.5", "--device", "cpu"]
    main(["upscale", str(tmp_path / "photo.jpg"), "-o", str(tmp_path / f"large{suffix}"), *options])
    assert result.content == (tmp_path / f"large{suffix}").read_bytes()
    assert Image.open(io.BytesIO(result.content)).getexif()[0x010F] == "a camera"
    assert len(result.content) == told["bytes"]
    before = images.decode(server.ask(f"/results/{told['token']}/before").content, "before")
    assert before.shape == (120, 100, 3)  # upright


def test_finished_rows_of_tiles_are_shown_before_the_end(server: Server):
    rgba = photo(60, 40)
    rgba.putalpha(photo(60, 40, seed=1).convert("L"))  # which takes tiles of its own
    told = events(server.send(encoded(rgba)))
    (start,) = [event for event in told if "tiles" in event]
    assert [event["tile"] for event in told if "tile" in event] == list(range(1, start["tiles"] + 1))
    result = images.decode(server.ask(f"/results/{told[-1]['token']}/after").content, "result")
    assert result.shape == (240, 160, 4) == (start["height"], start["width"], 4)
    bands = [event for event in told if "band" in event]
    whole = np.concatenate([images.decode(png_of(band["band"]), "band") for band in bands])
    assert np.array_equal(whole, result[:, :, :3])
    tops = np.cumsum([0, *(band["share"] for band in bands)])
    assert [band["top"] for band in bands] == pytest.approx(tops[:-1]) and tops[-1] == pytest.approx(1)


def png_of(address: str) -> bytes:
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    return base64.b64decode(data)


def test_a_bad_image_is_one_line_and_the_next_one_is_upscaled(server: Server):
    good = encoded(photo())
    torn, text, many = good[: len(good) // 2], b"not an image", encoded(Image.new("1", (2100, 2100)))
    pages = encoded(photo(), "TIFF", save_all=True, append_images=[photo(seed=1)])
    for data, message in (
        (torn, "photo.jpg: not a readable image ("),
        (text, "photo.jpg: not a readable image ("),
        (pages, "photo.jpg: 2 frames or pages: save one as a file of its own"),
        (many, "photo.jpg: more than 4 megapixels: cut it into parts or remove it"),
        (bytes(2**25 + 1), "photo.jpg: more than 32 MB: make it smaller, or use `upsr upscale`"),
    ):
        error = server.upscaled(data)["error"]
        assert error.startswith(message) and "\n" not in error and "--" not in error
    assert "token" in server.upscaled(good)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"model": "/etc/passwd"}, "model /etc/passwd: not offered here: use atd-48, atd-48-light, "),
        ({"scale": "huge"}, "huge: give a factor such as 2 or 1.5, or a width such as 800x"),
        ({"scale": "9" * 400}, "9" * 400 + ": give a factor such as 2 or 1.5"),
        ({"scale": "5"}, "photo.jpg: 240x200 is more than 4 times its size: ask for less"),
        ({"seed": "-1"}, "seed -1: give a whole number from 0"),
        ({"seed": "9" * 5000}, "seed 9999"),
        ({"format": "exe"}, "format exe: use png, jpeg, webp"),
    ],
)
def test_a_bad_order_is_one_line(server: Server, order: dict[str, str], message: str):
    assert server.upscaled(encoded(photo()), **order)["error"].startswith(message)


def test_a_zip_has_every_result_under_its_own_name(server: Server):
    names = ["cat.png", "cat.jpg", "../../cat.png", "C:\\photos\\dog.png"]
    told = [server.upscaled(encoded(photo(seed=i)), name=name) for i, name in enumerate(names)]
    query = "&".join(f"token={event['token']}" for event in told)
    with zipfile.ZipFile(io.BytesIO(server.ask(f"/zip?{query}").content)) as archive:
        assert archive.namelist() == ["cat_x4.png", "cat_x4-2.png", "cat_x4-3.png", "dog_x4.png"]
        for event, name in zip(told, archive.namelist(), strict=True):
            assert archive.read(name) == server.ask(f"/results/{event['token']}/after").content
    missing = server.ask(f"/zip?{query}&token=other")
    assert missing.status_code == 400 and missing.json()["error"].startswith("result: no longer kept: upscale")


# Users


def test_users_come_in_turn_and_one_who_leaves_is_not_waited_for(server: Server):
    first = server.send(encoded(photo(600, 600)))
    tiles = next_event(first, "tiles")["tiles"]
    begun = time.monotonic()
    next_event(first, "tile", 20)
    whole = (time.monotonic() - begun) / 20 * tiles
    others = [server.send(encoded(photo())) for _ in range(2)]
    assert [next_event(other, "ahead")["ahead"] for other in others] == [1, 2]
    left = time.monotonic()
    first.close()
    assert all("token" in events(other)[-1] for other in others)
    assert time.monotonic() - left < whole / 2


def test_another_site_gets_nothing(server: Server):
    good, host = encoded(photo()), server.address.removeprefix("http://")
    token = server.upscaled(good)["token"]
    result = f"/results/{token}/after"
    port = host.split(":")[1]
    for headers in (
        {"Host": f"evil.example:{port}"},  # a name that was rebound to 127.0.0.1
        {"Host": "127.0.0.1.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another program of this machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        for path in (result, "/settings"):
            assert server.ask(path, **headers).status_code == 403, headers
        answer = server.send(good, headers)
        assert answer.status == 403 and events(answer)[0]["error"].startswith(next(iter(headers)))
    own = server.ask(result, Origin=server.address, **{"Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200
    assert own.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in own.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in own.headers
    assert server.ask("/settings", Host=f"localhost:{port}").status_code == 200  # by a tunnel, say


@pytest.mark.parametrize(
    "path",
    ["/../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd", "/results/..%2f..%2f..%2fetc/passwd",
     "/results/../after", "/zip?token=../../etc/passwd"],
)  # fmt: skip
def test_no_request_reads_a_file_by_its_path(server: Server, path: str):
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:  # a client would tidy the path
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(partial(raw.recv, 2**16), b""))
    assert answer.split()[1] in (b"400", b"404")
    assert b"root:" not in answer and b"import" not in answer


def test_only_this_machine_is_answered(server: Server):
    listening = [c for c in psutil.Process(server.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]


# The command


def test_open_shows_the_page_in_the_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{opened}.part" && mv "{opened}.part" "{opened}"\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    server = Server(tmp_path, "--open")
    until(opened.is_file)
    assert opened.read_text().strip().rstrip("/") == server.address.rstrip("/")
    assert server.end() == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_amid_an_image_leaves_nothing(tmp_path: Path, number: int):
    server = Server(tmp_path)
    answer = server.send(encoded(photo(600, 600)))
    next_event(answer, "tile", 2)
    assert len(list(server.temporary.glob("upsr-app-*"))) == 1
    assert server.end(number) == (130 if number == signal.SIGINT else -number)
    assert list(server.temporary.glob("upsr-app-*")) == []
    assert server.process.stderr and server.process.stderr.read() == ""


def test_a_taken_port_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]):
    port = server.address.split(":")[-1]
    with pytest.raises(SystemExit, match="2"):
        main(["app", "--port", port])
    remedy = "Address already in use: choose another, such as --port 0 for a free one"
    assert capsys.readouterr().err == f"error: --port {port}: {remedy}\n"


# In a browser


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not on PATH")
def test_browser_upscales_compares_and_tells_what_is_broken(server: Server, tmp_path: Path):
    for i, name in enumerate(("cat.png", "dog.png")):
        (tmp_path / name).write_bytes(encoded(photo(40, 240, seed=i)))
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with browser(tmp_path / "profile") as (call, errors):
        js = partial(script, call)

        call("Page.navigate", url=server.address)
        until(lambda: js("document.querySelector('[name=model]')?.value"))
        assert js("document.querySelector('[name=model]').value") == str(server.model)
        document = call("DOM.getDocument")["root"]["nodeId"]
        field = call("DOM.querySelector", nodeId=document, selector="input[type=file]")["nodeId"]
        files = [str(tmp_path / name) for name in ("cat.png", "broken.png", "dog.png")]
        call("DOM.setFileInputFiles", nodeId=field, files=files)
        js("document.querySelector('.start').click()")
        until(lambda: js("!document.querySelector('.zip').hidden"))

        told = js("[...document.querySelectorAll('[role=status]')].map(status => status.textContent)")
        assert told[0].startswith("960 × 160 pixels, ") and told[2].startswith("960 × 160 pixels, ")
        assert told[1].startswith("broken.png: not a readable image (")
        assert js("document.querySelectorAll('.wrong').length") == 1
        shown = "[...document.querySelectorAll('article')].map(card => !card.querySelector('.compare').hidden)"
        assert js(shown) == [True, False, True]
        assert js("document.querySelector('.after').naturalWidth") == 960
        assert js("document.querySelector('.download').download") == "cat_x4.png"
        assert js("fetch(document.querySelector('.zip').href).then(answer => answer.headers.get('Content-Type'))") == (
            "application/zip"
        )

        hidden = "parseFloat(getComputedStyle(document.querySelector('.after')).clipPath.split(' ').at(-1))"
        assert js(hidden) == 50
        js("document.querySelector('.compare input').focus()")
        for event in ("keyDown", "keyUp"):
            call("Input.dispatchKeyEvent", type=event, key="Home", code="Home", windowsVirtualKeyCode=36)
        assert js(hidden) == 0

        unnamed = (
            "[...document.querySelectorAll('main input, main select')].filter(x => !x.ariaLabel && !x.labels.length)"
        )
        assert js(f"{unnamed}.length") == 0
        call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=2, mobile=True)
        assert js("document.documentElement.scrollWidth") == 400
        assert errors == []
