"""The registry: a model that is registered answers a picture with a picture, and is known by its alias."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, merged, params
from services import free_port, listens, until
from test_images import large_png

from pipelines import registry, tracking
from upsr import images
from upsr.__main__ import main
from upsr.models.atd import build_atd
from upsr.pretrained import save_pretrained

CHAMPION = "models:/upsr@champion"


def painter(path: Path, grey: float) -> Path:
    """Weights of a small network that paints everything in one grey, in [0, 1]."""
    settings = params().atd
    network = build_atd(settings, 4)
    last = network.upsample[0]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 2 * grey - 1)
    save_pretrained(path, {"atd": network.state_dict()}, {"scale": 4, "atd": settings})
    return path


def register(weights: Path, example: Path) -> str:
    """A new version's number."""
    with tracking.start("evaluate", "registers", {}, {}) as tracker:
        registry.register(tracker, weights, example)
    version = registry.newest()
    assert version
    return str(version.version)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "lr.png"
    images.write(path, np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8))
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


@pytest.mark.slow
def test_the_champion_is_served_and_upscales(store: Path, picture: Path) -> None:
    weights = painter(store / "weights.safetensors", 0.25)
    assert registry.champion() is None and registry.newest() is None
    assert register(weights, picture) == "1"
    registry.promote("1")
    assert register(weights, picture) == "1", "the same weights made a second version"
    assert register(painter(store / "other.safetensors", 0.5), picture) == "2"
    champion = registry.champion()
    assert champion and str(champion.version) == "1" and champion.tags["licence"] == "Apache-2.0"
    assert registry.weights_of(CHAMPION).read_bytes() == weights.read_bytes()

    main(["upscale", str(picture), "-o", str(store / "sr.png"), "--model", CHAMPION, "--seed", "3"])
    made = images.read(store / "sr.png")
    assert made.shape == (36, 44, 3) and (made == 64).all()

    port = free_port()
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "-m", CHAMPION, "--env-manager", "local"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)  # the model brings its code
    server = subprocess.Popen(
        [*serve, "--host", "127.0.0.1", "--port", str(port)], cwd=store, env=environment, start_new_session=True
    )
    try:
        until(partial(listens, port))
        data = base64.b64encode(picture.read_bytes()).decode()
        asked = {"dataframe_split": {"columns": ["image"], "data": [[data]]}, "params": {"seed": 3}}
        (answer,) = ask(port, asked)["predictions"]
        assert (images.decode(base64.b64decode(answer), "answer") == made).all()
        if shutil.which("curl"):
            shutil.copy(picture, store / "photo.jpg")  # named so in the document; the content tells the format
            subprocess.run(["bash", "-c", asked_by_curl(port)], cwd=store, env=environment, check=True)
            assert (images.read(store / "large.png") == made).all()
        example = json.loads(next(store.rglob("serving_input_example.json")).read_text())
        assert len(ask(port, example)["predictions"]) == 1
        for bad, says in BAD_REQUESTS:
            refuses(port, merged(asked, bad), says)
        refuses(port, {"dataframe_split": {"columns": ["picture"], "data": [[data]]}}, "image")
        assert len(ask(port, asked)["predictions"]) == 1
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def asked_by_curl(port: int) -> str:
    """The documented question, of three lines."""
    _, start, rest = (ROOT / "docs/operations.md").read_text().partition('echo "{\\"dataframe_split')
    command, end, _ = (start + rest).partition("> large.png\n")
    assert "5001" in command
    return (command + end).replace("5001", str(port))


def rows(*encoded: object) -> dict:
    return {"dataframe_split": {"columns": ["image"], "data": [[image] for image in encoded]}}


LARGE = base64.b64encode(large_png(12_000, 12_000)).decode()
BAD_REQUESTS = [  # what replaces a part of a good request, and what the answer says
    ({"params": {"tile": 0}}, "tile 0: give 16 or more"),
    ({"params": {"tile": -8}}, "tile -8: give 16 or more"),
    ({"params": {"tile": 10**9}}, "tile 1000000000: give a number up to 1024"),
    ({"params": {"tile": 2**70}}, "tile"),
    ({"params": {"tile": "large"}}, "tile"),
    ({"params": {"seed": -1}}, "seed -1: give 0 or more"),
    ({"params": {"seed": "first"}}, "seed"),
    ({"params": {"seed": 2**70}}, "seed"),
    ({"params": {"seed": 1.5}}, "seed"),
    ({"params": {"tile": None}}, "tile None: give a number up to 1024"),
    ({"params": [1]}, "Parameters must be a dictionary"),
    (rows(base64.b64encode(b"text").decode()), "image 1: not a readable"),
    (rows(""), "image 1: not a readable"),
    (rows(LARGE), "image 1: more than 17 megapixels"),
    (rows("no base64!"), "image"),
    (rows(None), "image"),
    (rows(7), "image"),
]


def refuses(port: int, question: dict, says: str) -> None:
    """The server answers that the request is at fault, in words, and without a traceback."""
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(port, question)
    answer = error.value.read().decode()
    assert error.value.code == 400 and says in json.loads(answer)["message"] and "Traceback" not in answer, answer


def ask(port: int, question: dict) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        (CHAMPION, "mlflow.db: no MLflow store"),
        ("models:/upsr/7", "mlflow.db: no MLflow store"),
        ("models:/upsr", "write models:/NAME"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(
    uri: str, says: str, store: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["upscale", str(picture), "-o", str(store / "sr.png"), "--model", uri])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {uri}: ") and says in line


def test_no_champion_yet_says_how_there_comes_one(store: Path, picture: Path) -> None:
    with pytest.raises(ValueError, match=r"mlflow\.db: no MLflow store: go to a checkout with runs"):
        registry.weights_of(CHAMPION)
    assert {path.name for path in store.iterdir()} == {picture.name}, "reading made a store"
    with tracking.start("train-atd", "first", {}, {}):
        pass
    with pytest.raises(ValueError, match="`dvc repro` registers the model that it measures"):
        registry.weights_of(CHAMPION)
    register(painter(store / "weights.safetensors", 0.25), picture)
    with pytest.raises(ValueError, match=r"up to models:/upsr/1; `make nightly` gives the alias champion"):
        registry.weights_of(CHAMPION)
    with pytest.raises(ValueError, match=r": name a version, up to models:/upsr/1$"):
        registry.weights_of("models:/upsr/7")


@pytest.mark.parametrize("old_place", ["stays", "goes"])
def test_a_copy_and_a_move_of_the_checkout_have_their_own_files(
    old_place: str, store: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = store / "old", store / "new"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{old}/mlflow.db")
    weights = painter(store / "weights.safetensors", 0.25)
    register(weights, picture)
    shutil.copytree(old, new)
    if old_place == "goes":
        shutil.rmtree(old)
    before = set(old.rglob("*"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/mlflow.db")
    assert registry.weights_of("models:/upsr/1").is_relative_to(new)
    with tracking.start("evaluate", "after", {}, {}) as tracker:
        tracker.artifact(weights)
    assert list(new.glob(f"mlartifacts/evaluate/{tracker.run_id}/artifacts/{weights.name}"))
    assert set(old.rglob("*")) == before


def test_other_weights_than_were_registered_are_refused(store: Path, picture: Path) -> None:
    number = register(painter(store / "weights.safetensors", 0.25), picture)
    stored = registry.weights_of(f"models:/upsr/{number}")
    painter(stored, 0.5)
    with pytest.raises(ValueError, match=r"weights\.safetensors has other weights than were registered: restore"):
        registry.weights_of(f"models:/upsr/{number}")


def test_a_server_that_is_down_is_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(ValueError, match="not available from MLflow"):
        registry.weights_of(CHAMPION)
