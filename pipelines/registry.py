"""MLflow's registry: the versions of `upsr`, which of them is the champion, and their weights.

Beside tracking.py, which the trainings depend on: a change here makes none of them stale.
"""

import os
import re
import shutil
import tempfile
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

from pipelines import tracking
from upsr.files import sha256
from upsr.pretrained import FILE, load_pretrained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ROOT = Path(__file__).resolve().parents[1]
NAME = "upsr"
CHAMPION = "champion"
LICENCE = "Apache-2.0"
ABOUT = (
    "Enlarges a picture. Input: a table with the column `image`, an encoded picture (PNG, JPEG, WebP) a row, as base64 "
    "in JSON; output: a PNG a row. Parameters: `seed`, `tile`."
)


def register(tracker: tracking.Tracker, weights: Path, example: Path) -> None:
    """The weights as a new version of `upsr`, from the tracker's run; not those that the newest version has.

    `example` is a picture to try it with. What MLflow loads is the weights file by this library's code, nothing that
    would be executed.
    """
    tracker.send(partial(_register, weights, example))


def champion() -> "ModelVersion | None":
    """The version with the alias. Raises what `tracking.may_pass` tells while the store is down."""
    store = tracking.client()
    known = store.search_registered_models(f"name = '{NAME}'")
    number = known[0].aliases.get(CHAMPION) if known else None
    return store.get_model_version(NAME, number) if number else None


def newest() -> "ModelVersion | None":
    """The version registered last."""
    return _newest(tracking.client())


def promote(number: str) -> None:
    """Makes a version the champion."""
    tracking.client().set_registered_model_alias(NAME, CHAMPION, number)


def weights_of(uri: str) -> Path:
    """The weights file of a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or of a run,
    `runs:/ID/PATH`. Of a store on this machine, the file itself; of a server, a copy. Raises `ValueError`.
    """
    from mlflow.exceptions import MlflowException

    try:
        folder, key = _artifacts(tracking.client(), uri)
        place = urlparse(folder)
        local = Path(url2pathname(place.path)) if place.scheme in ("", "file") else _fetched(folder, key)
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"{uri}: MLflow at {tracking.store_address()[0]} does not give it: {tracking.one_line(error)}"
        ) from None
    found = sorted([local] if local.is_file() else local.rglob(FILE))
    if not found:
        raise ValueError(f"{uri}: {local} holds no {FILE}")
    return found[0]


def _artifacts(store: "MlflowClient", uri: str) -> tuple[str, str]:
    """Where the artifacts of `uri` lie, and a name for their copy: the same name, the same weights."""
    named = re.fullmatch(r"(?:models:/([^/@]+)(?:@(.+)|/(\d+)))|(?:runs:/([^/]+)/(.+))", uri)
    if not named:
        raise ValueError(f"{uri}: write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/PATH")
    name, alias, number, run, path = named.groups()
    if run:
        return f"{store.get_run(run).info.artifact_uri}/{path}", f"{run}-{path.replace('/', '-')}"
    version = store.get_model_version_by_alias(name, alias) if alias else store.get_model_version(name, number)
    folder = store.get_model_version_download_uri(name, version.version)
    digest = version.tags.get("sha256")  # of what the stage `evaluate` registered
    return (f"{folder}/data/{FILE}", digest) if digest else (folder, f"{name}-{version.version}")


def _fetched(address: str, key: str) -> Path:
    """A copy of a server's file or folder, made once."""
    from mlflow.artifacts import download_artifacts

    target = Path.home() / ".cache" / "upsr" / key
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download_artifacts(address, dst_path=folder, tracking_uri=tracking.store_address()[0])
            os.replace(folder, target)
            os.mkdir(folder)  # for TemporaryDirectory to remove
    return target


def _newest(store: "MlflowClient") -> "ModelVersion | None":
    return max(store.search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version), default=None)


def _register(weights: Path, example: Path, store: "MlflowClient", run: str) -> None:
    digest = sha256(weights)
    latest = _newest(store)
    if latest and latest.tags.get("sha256") == digest:
        return
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / FILE
        named.symlink_to(weights.resolve())
        _save(Path(folder) / "model", named, example)
        store.log_artifacts(run, f"{folder}/model", "model")
    if not store.search_registered_models(f"name = '{NAME}'"):
        store.create_registered_model(NAME, description=ABOUT)
    settings = load_pretrained(weights).settings
    tags = {"sha256": digest, "licence": LICENCE, "scale": str(settings["scale"])}
    if "unet" in settings:
        tags |= {"uncertainty.variant": settings["uncertainty"]["variant"], "unet.dim": str(settings["unet"]["dim"])}
    store.create_model_version(NAME, f"{store.get_run(run).info.artifact_uri}/model", run, tags=tags)


def _save(folder: Path, weights: Path, example: Path) -> None:
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    code = folder.parent / "upsr"  # the library without the bundled weights
    shutil.copytree(ROOT / "upsr", code, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    given = Schema([ColSpec("binary", "image")])
    options = ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("tile", "long", 128)])
    pyfunc.save_model(
        folder,
        loader_module="upsr.inference.served",
        data_path=str(weights),
        code_paths=[str(code)],
        signature=ModelSignature(given, Schema([ColSpec("binary")]), options),
        input_example=pd.DataFrame({"image": [example.read_bytes()]}),
        pip_requirements=_requirements(),
        metadata={"licence": LICENCE},
    )
    shutil.copy(ROOT / "LICENSE", folder)


def _requirements() -> list[str]:
    """The library's own dependencies, and what a table and a server need, as they are here."""
    library = [re.split(r"[^\w.-]", line)[0] for line in requires("upsr") or [] if "extra ==" not in line]
    return [f"{name}=={version(name)}" for name in [*library, "mlflow", "pandas"]]
