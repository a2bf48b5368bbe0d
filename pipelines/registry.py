"""MLflow's model registry: the versions of `upsr`, their weights, and the alias of the champion.

Separate from tracking.py, which the training stages depend on: a change of this file makes no training stale.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import requires, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlparse
from urllib.request import url2pathname

from pipelines import tracking
from upsr.files import DataError, sha256
from upsr.pretrained import FILE, load_pretrained

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ROOT = Path(__file__).resolve().parents[1]
NAME = "upsr"
CHAMPION = "champion"
NIGHT = "night"
LICENCE = "Apache-2.0"
ABOUT = (
    "Upscales images. Input: a table with the column `image`, one encoded image (PNG, JPEG, WebP) per row, base64 in "
    "JSON. Output: one PNG per row. Parameters: `seed`, `tile`."
)


def register(
    tracker: tracking.Tracker, weights: Path, example: Path, figures: str = "", images: Sequence[str] = ()
) -> None:
    """Registers the weights as a new version of `upsr`, unless the newest version has the same weights.

    `example` becomes the input example. MLflow loads the weights file with this library's code, and no pickle. The
    version's page shows `figures`, in markdown, and `images`, artifacts of the tracker's run.
    """
    tracker.send(partial(_register, weights, example, figures, images))


def champion() -> "ModelVersion | None":
    """The version with the alias `champion`. While the store is down, raises an error for which `may_pass` is true."""
    store = tracking.client()
    known = store.search_registered_models(f"name = '{NAME}'")
    number = known[0].aliases.get(CHAMPION) if known else None
    return store.get_model_version(NAME, number) if number else None


def newest() -> "ModelVersion | None":
    """The version registered last. While the store is down, raises an error for which `may_pass` is true."""
    return _newest(tracking.client())


def promote(number: str) -> None:
    """Moves the alias `champion` to a version."""
    tracking.client().set_registered_model_alias(NAME, CHAMPION, number)


def tag_night(number: str, night: str) -> None:
    """Notes on a version in which night the figures were measured that it is held against as champion."""
    tracking.client().set_model_version_tag(NAME, number, NIGHT, night)


def weights_of(uri: str) -> Path:
    """The weights file at `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/ID/PATH`.

    From a local store it is the file itself, from a server a cached copy. Raises `ValueError` for another address,
    if MLflow cannot provide the file, and where it is not the file that was registered.
    """
    from mlflow.exceptions import MlflowException

    try:
        artifacts, key, digest = _artifacts(uri)
        url = urlparse(artifacts)
        local = Path(url2pathname(url.path)) if url.scheme in ("", "file") else _download(artifacts, key, digest)
    except DataError as error:
        raise ValueError(f"{uri}: {error}") from None
    except (MlflowException, OSError) as error:
        reason = tracking.one_line(error).rstrip(".")
        raise ValueError(
            f"{uri}: not available from MLflow at {tracking.store_address()[0]}: {reason}{_remedy(uri, error)}"
        ) from None
    found = sorted([local] if local.is_file() else local.rglob(FILE))
    if not found:
        raise ValueError(f"{uri}: {local} contains no {FILE}")
    if digest and sha256(found[0]) != digest:
        raise ValueError(f"{uri}: {found[0]} has other weights than were registered: restore the file")
    return found[0]


def _remedy(uri: str, error: Exception) -> str:
    """What to do where MLflow answers that there is no such model."""
    if getattr(error, "error_code", "") not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        return ""
    version = newest()
    if version is None:
        return ": `dvc repro` registers the model that it measures"
    champion = f"; `make nightly` gives the alias {CHAMPION} to a version that surpasses bicubic" if "@" in uri else ""
    return f": name a version, up to models:/{NAME}/{version.version}{champion}"


def _artifacts(uri: str) -> tuple[str, str, str | None]:
    """The address of the artifacts of `uri`, the cache key of a copy, and the weights' SHA-256 where it is known."""
    match = re.fullmatch(r"(?:models:/([^/@]+)(?:@(.+)|/(\d+)))|(?:runs:/([^/]+)/(.+))", uri)
    if not match:
        raise ValueError(f"{uri}: not an address: write models:/NAME@ALIAS, models:/NAME/VERSION or runs:/ID/PATH")
    store = tracking.client(create=False)
    name, alias, number, run, path = match.groups()
    if run:
        return f"{store.get_run(run).info.artifact_uri}/{path}", f"{run}-{path.replace('/', '-')}", None
    version = store.get_model_version_by_alias(name, alias) if alias else store.get_model_version(name, number)
    folder = store.get_model_version_download_uri(name, version.version)
    digest = version.tags.get("sha256")  # set by `register`
    return (f"{folder}/data/{FILE}", digest, digest) if digest else (folder, f"{name}-{version.version}", None)


def _download(address: str, key: str, digest: str | None) -> Path:
    """A copy of a server's file or folder, downloaded once; a file also where the copy has another SHA-256."""
    from mlflow.artifacts import download_artifacts

    target = Path.home() / ".cache" / "upsr" / key
    if digest and target.exists() and [sha256(path) for path in target.rglob(FILE)] != [digest]:
        shutil.rmtree(target)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download_artifacts(address, dst_path=folder, tracking_uri=tracking.store_address()[0])
            os.replace(folder, target)
            os.mkdir(folder)  # TemporaryDirectory removes it
    return target


def _newest(store: "MlflowClient") -> "ModelVersion | None":
    return max(store.search_model_versions(f"name = '{NAME}'"), key=lambda v: int(v.version), default=None)


def _register(
    weights: Path, example: Path, figures: str, images: Sequence[str], store: "MlflowClient", run: str
) -> None:
    digest = sha256(weights)
    latest = _newest(store)
    if latest and latest.tags.get("sha256") == digest:
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / FILE
        link.symlink_to(weights.resolve())
        _save(Path(folder) / "model", link, example)
        store.log_artifacts(run, f"{folder}/model", "model")
    if not store.search_registered_models(f"name = '{NAME}'"):
        store.create_registered_model(NAME, description=ABOUT)
    settings = load_pretrained(weights).settings
    tags = {"sha256": digest, "licence": LICENCE, "scale": str(settings["scale"])}
    if "unet" in settings:
        tags |= {"uncertainty.variant": settings["uncertainty"]["variant"], "unet.dim": str(settings["unet"]["dim"])}
    shown = [f"![{path}](get-artifact?{urlencode({'path': path, 'run_uuid': run})})" for path in images]
    page, source = "\n\n".join([figures, *shown]), f"{store.get_run(run).info.artifact_uri}/model"
    store.create_model_version(NAME, source, run, tags=tags, description=page)


def _save(folder: Path, weights: Path, example: Path) -> None:
    import pandas as pd
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    from pipelines import served

    code = folder.parent / "upsr"  # the library without its bundled weights
    shutil.copytree(ROOT / "upsr", code, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    inputs = Schema([ColSpec("binary", "image")])
    options = ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("tile", "long", 128)])
    pyfunc.save_model(
        folder,
        loader_module="served",
        data_path=str(weights),
        code_paths=[str(code), served.__file__],
        signature=ModelSignature(inputs, Schema([ColSpec("binary")]), options),
        input_example=pd.DataFrame({"image": [example.read_bytes()]}),
        pip_requirements=_requirements(),
        metadata={"licence": LICENCE},
    )
    shutil.copy(ROOT / "LICENSE", folder)


def _requirements() -> list[str]:
    """The library's dependencies, MLflow and pandas, with the installed versions."""
    library = [re.split(r"[^\w.-]", line)[0] for line in requires("upsr") or [] if "extra ==" not in line]
    return [f"{name}=={version(name)}" for name in [*library, "mlflow", "pandas"]]
