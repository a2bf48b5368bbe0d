"""The weights file: networks and the settings to rebuild them, in one safetensors file. Its only reader and writer.

A file holds parts: `atd`, and for UPSR also `unet` and `uncertainty`. Tensors are named PART.KEY. The metadata hold, as
JSON, the scale and one settings record for each part and for `diffusion`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from upsr.config import ConfigError, Section
from upsr.files import atomic

S = TypeVar("S", bound=Section)
Parts = Mapping[str, Mapping[str, Tensor]]
"""Part name -> state dict."""

BUNDLED = Path(__file__).parent / "bundled"
"""The bundled weights: one folder each, with a model card."""
STARTER = "atd-48"
"""The bundled weights that `starter` means."""
FILE = "weights.safetensors"


class CheckpointError(ValueError):
    """A weights file or training state that cannot be used, in one line that names the file."""


@dataclass(frozen=True)
class Pretrained:
    """The contents of a weights file."""

    path: Path
    parts: Parts
    settings: Mapping[str, Any]
    """Plain values by section; `section` returns one as a record."""

    @property
    def scale(self) -> int:
        """The factor of the upscaling."""
        return self.settings["scale"]

    def section(self, name: str, record: type[S]) -> S:
        """One section of the settings. Raises `CheckpointError` where it is missing or does not fit the record."""
        try:
            return record.model_validate(self.settings[name])
        except (KeyError, ValidationError, ConfigError):
            raise CheckpointError(
                f"{self.path}: its settings for `{name}` do not fit this version: train again"
            ) from None


def save_pretrained(path: str | Path, parts: Parts, settings: Mapping[str, Any]) -> None:
    """Writes state dicts and the settings to rebuild their networks, atomically.

    `settings`: `scale`, and for each part and `diffusion` a record or its plain values.
    """
    plain = {name: s.model_dump(mode="json") if isinstance(s, Section) else s for name, s in settings.items()}
    tensors = {
        f"{part}.{key}": value.detach().cpu().contiguous().clone()
        for part, state in parts.items()
        for key, value in state.items()
    }
    with atomic(path, durable=True) as temporary:
        save_file(tensors, temporary, metadata={"upsr": json.dumps(plain, sort_keys=True)})


def load_pretrained(path: str | Path) -> Pretrained:
    """Reads a weights file; executes no code. Raises `CheckpointError` for a missing file or another format."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file: correct the path, or use bundled weights: starter, {', '.join(bundled())}"
        )
    parts: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["upsr"])
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part, _, key = name.partition(".")
                parts.setdefault(part, {})[key] = file.get_tensor(name)
    except (SafetensorError, KeyError, json.JSONDecodeError):
        raise CheckpointError(f"{path}: not a weights file of this project: use one that it wrote") from None
    return Pretrained(path, parts, _completed(settings))


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a weights file with the keys that did not exist when it was written, at the values they had then."""
    later: dict[str, dict[str, Any]] = {
        "unet": {"sigma_data": 0.09, "hr_inputs": False, "placebo": False},
        "uncertainty": {"invert": False, "energy": 0.3, "lr_scale": 1, "unit": "image"},
    }
    settings = {k: later.get(k, {}) | v if isinstance(v, dict) else v for k, v in settings.items()}
    unet = settings.get("unet", {})
    if "global_skip" in unet:
        unet["skip"] = "condition" if unet.pop("global_skip") else "none"
    return settings


def bundled() -> list[str]:
    """The names of the bundled weights."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{FILE}"))


def weights_file(model: str | Path) -> Path:
    """The weights file of a model: bundled weights by name (`starter`: the default), a file, or its folder."""
    name = STARTER if model == "starter" else str(model)
    path = BUNDLED / name if name in bundled() else Path(model)
    return path / FILE if path.is_dir() or not path.suffix else path
