"""MLflow's registry: the versions of `upsr`, and which of them is the champion.

Beside tracking.py, which the trainings depend on: a change here makes none of them stale.
"""

import hashlib
import re
import shutil
import tempfile
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import tracking
from upsr.checkpoint import load_weights

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


def digest(weights: Path) -> str:
    """The SHA-256 of a weights file: what tells that two versions, or a file and a version, are the same."""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _newest(store: "MlflowClient") -> "ModelVersion | None":
    return max(store.search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version), default=None)


def _register(weights: Path, example: Path, store: "MlflowClient", run: str) -> None:
    sha256 = digest(weights)
    latest = _newest(store)
    if latest and latest.tags.get("sha256") == sha256:
        return
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / tracking.WEIGHTS
        named.symlink_to(weights.resolve())
        _save(Path(folder) / "model", named, example)
        store.log_artifacts(run, f"{folder}/model", "model")
    if not store.search_registered_models(f"name = '{NAME}'"):
        store.create_registered_model(NAME, description=ABOUT)
    _, settings = load_weights(weights)
    tags = {"sha256": sha256, "licence": LICENCE, "scale": str(settings["scale"])}
    if "unet" in settings:
        tags |= {"uncertainty.variant": settings["uncertainty"]["variant"], "unet.dim": str(settings["unet"]["dim"])}
    store.create_model_version(NAME, f"{store.get_run(run).info.artifact_uri}/model", run, tags=tags)


def _save(folder: Path, weights: Path, example: Path) -> None:
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    given = Schema([ColSpec("binary", "image")])
    options = ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("tile", "long", 128)])
    pyfunc.save_model(
        folder,
        loader_module="upsr.inference.served",
        data_path=str(weights),
        code_paths=[str(ROOT / "upsr")],
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
