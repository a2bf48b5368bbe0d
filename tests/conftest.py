"""What several test files share."""

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors import safe_open
from services import prefect

from upsr.acquisition.metric_weights import prepare
from upsr.config import Params, parse
from upsr.diffusion.uncertainty import build_uncertainty
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.pretrained import FILE, save_pretrained

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
TINY = {  # the same chain and the same code, small enough for a test
    "data": {"holdout_side": 64},
    "degradation": {"plain": 0.0},  # otherwise chance decides which pictures are degraded
    "atd": {"dim": 16, "groups": 1, "layers": 2, "heads": 2, "window": 8, "category_size": 32, "tokens": 8},
    "unet": {
        "dim": 16,
        "channel_mult": [1, 2],
        "res_blocks": 1,
        "swin_dim": 32,
        "tail_dim": 16,
        "skip": "none",
        "hr_inputs": False,
    },
    "diffusion": {"steps": 2},
    "train": {"init": "none", "workers": 0, "log_every": 2, "save_every": 1, "preview_every": 4, "validate_every": 2},
    "train_atd": {"steps": 4, "batch": 2, "micro_batch": 2, "patch": 32, "warmup": 1, "pool": 4},
    "train_unet": {"steps": 4, "batch": 2, "micro_batch": 2, "patch": 32, "warmup": 1, "pool": 4, "rollout": 0},
    "evaluate": {"metrics": ["lpips"], "workers": 1},
}


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them changed."""
    return values | {k: merged(values[k], v) if isinstance(v, dict) else v for k, v in changes.items()}


def settings(**changes: Any) -> dict[str, Any]:
    """params.yaml at the tiny scale, as plain values."""
    return merged(merged(yaml.safe_load((ROOT / "params.yaml").read_text()), TINY), changes)


def documented(*starts: str) -> list[str]:
    """The lines of docs/operations.md that start with one of these, without comments."""
    lines = (ROOT / "docs" / "operations.md").read_text().splitlines()
    return [line.partition("  #")[0].rstrip() for line in lines if line.startswith(starts)]


def params(**changes: Any) -> Params:
    return parse(Params, settings(**changes), "test")


def save_model(folder: Path, p: Params) -> Path:
    """An untrained UPSR of these settings in `folder`, as a training leaves it."""
    torch.manual_seed(0)
    parts = {"atd": build_atd(p.atd, p.scale).state_dict(), "unet": build_unet(p.unet, p.scale).state_dict()}
    parts["uncertainty"] = build_uncertainty(p.uncertainty).state_dict()
    settings = {"scale": p.scale, "atd": p.atd, "unet": p.unet, "diffusion": p.diffusion, "uncertainty": p.uncertainty}
    save_pretrained(folder / FILE, parts, settings)
    return folder


def imports(path: Path, *packages: str) -> set[str]:
    """The modules that a file imports, anywhere in it: of some packages, or all."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "attr", getattr(called, "id", ""))
        assert name not in ("import_module", "__import__"), f"{path}:{node.lineno}: import it by a statement"
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: write the whole name of what is imported"
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if not packages or name.split(".")[0] in packages}


def fixture_file(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A parity file: the authors' configuration, their state dict, and the other tensors."""
    path = SHARED / "parity" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path}: the released code's numbers are absent")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads((file.metadata() or {}).get("config", "{}"))
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    return config, state, {k: v for k, v in tensors.items() if not k.startswith("state.")}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The metrics' weights: those of the stage `download`; where it has not run, the same again."""
    folder = ROOT / "data" / "metric_weights"
    if not (folder / "manifest.json").is_file():
        folder = tmp_path_factory.mktemp("weights") / "data" / "metric_weights"
    if reason := prepare(folder)["lpips-vgg"]:
        pytest.skip(f"the weights of LPIPS are unavailable here: {reason}")
    return folder


def processes_that_mention(text: str) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline", "status"])
    return [p for p in found if text in " ".join(p.info["cmdline"] or []) and p.info["status"] != "zombie"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real server; its address and a home of its own as environment variables."""
    home = tmp_path_factory.mktemp("prefect")
    environment = {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1"}
    with prefect(home, os.environ | environment) as service:
        yield environment | {"PREFECT_API_URL": service.address}


@pytest.fixture
def api(server: dict[str, str]) -> Iterator:
    """A client of the server, which flows called in this process use too."""
    from prefect import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    ours = {PREFECT_API_URL: server["PREFECT_API_URL"], PREFECT_HOME: server["PREFECT_HOME"]}
    with temporary_settings(updates=ours), get_client(sync_client=True) as client:
        yield client
