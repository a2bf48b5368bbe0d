"""The weights file: networks and the settings to rebuild them, in one safetensors file. Its only reader and writer.

A file holds parts: `atd`, and for UPSR also `unet` and `uncertainty`. Tensors are named PART.KEY. The metadata hold, as
JSON, the scale and one settings record for each part and for `diffusion`. The tensor `settings.json` repeats this text
for programs that read tensors alone (`upsr/spandrel.py`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from upsr.config import Atd, ConfigError, Diffusion, Scale, Section, Uncertainty, Unet, check_denoiser, parse, short
from upsr.files import DataError, atomic, parse_json
from upsr.foreign import described

N = TypeVar("N", bound=nn.Module)
S = TypeVar("S", bound=Section)
Parts = Mapping[str, Mapping[str, Tensor]]
"""Part name -> state dict."""

BUNDLED = Path(__file__).parent / "bundled"
"""The bundled weights: one folder each, with a model card."""
NAMES = {"starter": "upsr-48", "light": "upsr-48-light"}
"""What they are called: for photographs as they are, and for images that were only shrunk or hardly degraded."""
FILE = "weights.safetensors"
SETTINGS = "settings.json"
"""The tensor that repeats the settings: the bytes of the JSON text."""
RECORDS: dict[str, type[Section]] = {"atd": Atd, "unet": Unet, "diffusion": Diffusion, "uncertainty": Uncertainty}
REMEDY = "use a file that this version wrote"


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

    @property
    def keeps_colours(self) -> bool:
        """True if the low frequencies of a sampled image are replaced by those of LR."""
        return self.settings.get("keeps_colours", False)

    def section(self, name: str, record: type[S]) -> S:
        """One section of the settings. Raises `CheckpointError` where it is missing or does not fit the record."""
        try:
            return parse(record, self.settings.get(name), name)
        except ConfigError as error:
            raise CheckpointError(
                f"{self.path}: its settings for `{name}` do not fit this version ({error}): train again"
            ) from None

    def network(self, part: str, build: Callable[[], N]) -> N:
        """The network that `build` makes, with the weights of a part. Raises `CheckpointError` as `restored` does."""
        return restored(build, self.parts.get(part, {}), self.path)


def save_pretrained(path: str | Path, parts: Parts, settings: Mapping[str, Any]) -> None:
    """Writes state dicts and the settings to rebuild their networks, atomically.

    `settings`: `scale`, and for each part and `diffusion` a record or its plain values.
    """
    plain = {name: s.model_dump(mode="json") if isinstance(s, Section) else s for name, s in settings.items()}
    text = json.dumps(plain, sort_keys=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in _joined(parts).items()}
    tensors[SETTINGS] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    with atomic(path, durable=True) as temporary:
        save_file(tensors, temporary, metadata={"upsr": text})


def load_pretrained(path: str | Path) -> Pretrained:
    """Reads a weights file and checks its settings; executes no code.

    Raises `CheckpointError` for a missing file, one of another project, and settings that are invalid or missing.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file: correct the path, or use bundled weights: {', '.join([*NAMES, *bundled()])}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            settings = parse_json((file.metadata() or {})["upsr"], path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, DataError, OSError):
        raise CheckpointError(f"{path}: {described(path)}") from None
    return _valid(path, _split(tensors), settings)


def from_tensors(tensors: Mapping[str, Tensor], path: Path) -> Pretrained:
    """The contents of a weights file whose tensors another program has read; `path` is its name in errors.

    The settings come from `settings.json`. The bundled weights are older than this tensor: they are recognised by their
    values. Raises `CheckpointError` for other weights without settings, and as `load_pretrained` does.
    """
    if SETTINGS not in tensors:
        for known in map(load_pretrained, map(weights_file, bundled())):
            own = _joined(known.parts)
            if own.keys() == tensors.keys() and all(torch.equal(own[k], v.to(own[k])) for k, v in tensors.items()):
                return known
        raise CheckpointError(f"{path}: has no tensor `{SETTINGS}`: write its file again (docs/operations.md says how)")
    try:
        settings = parse_json(tensors[SETTINGS].to("cpu", torch.uint8).numpy().tobytes(), path)
    except DataError:
        raise CheckpointError(f"{path}: its tensor `{SETTINGS}` is no JSON: {REMEDY}") from None
    return _valid(path, _split(tensors), settings)


def _joined(parts: Parts) -> dict[str, Tensor]:
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


def _split(tensors: Mapping[str, Tensor]) -> Parts:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name != SETTINGS:
            part, _, key = name.partition(".")
            parts.setdefault(part, {})[key] = value
    return parts


def _valid(path: Path, parts: Parts, settings: Any) -> Pretrained:
    """The contents of a file, whose settings are those of its parts and within their bounds."""
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: its settings are no table of keys: {REMEDY}")
    if not isinstance(scale := settings.get("scale"), int) or scale not in get_args(Scale):
        raise CheckpointError(
            f"{path}: its settings have no scale of {' or '.join(map(str, get_args(Scale)))}: {REMEDY}"
        )
    model = Pretrained(path, parts, _completed(settings))
    strange = model.settings.keys() - RECORDS.keys() - {"scale", "keeps_colours"} | parts.keys() - RECORDS.keys()
    if strange:
        raise CheckpointError(f"{path}: has an unknown part `{short(min(strange))}`: {REMEDY}")
    sections: dict[str, Any] = {
        name: model.section(name, record) for name, record in RECORDS.items() if name in settings
    }
    if lacking := sorted({"atd", "unet"} & (parts.keys() ^ settings.keys())):
        raise CheckpointError(f"{path}: has weights or settings for `{lacking[0]}`, but not both: {REMEDY}")
    if type(model.keeps_colours) is not bool:
        raise CheckpointError(f"{path}: its settings have `keeps_colours` that is neither true nor false: {REMEDY}")
    try:
        check_denoiser(sections.get("unet"), sections.get("diffusion"), sections.get("uncertainty"))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return model


def restored(build: Callable[[], N], state: Mapping[str, Tensor], path: Path, remedy: str = REMEDY) -> N:
    """The network that `build` makes, with the weights `state`, which come from the file `path`.

    Names and shapes are compared before memory is allocated. Raises `CheckpointError` as `load_weights` does.
    """
    with torch.device("meta"):
        _compare(build().state_dict(), state, path, remedy)
    network = build()
    load_weights(network, state, path, remedy)
    return network


def load_weights(network: nn.Module, state: Mapping[str, Tensor], path: Path, remedy: str = REMEDY) -> None:
    """Loads the weights `state`, which come from the file `path`, into a network.

    Raises `CheckpointError` where names, shapes or types differ, and for NaN, infinity, and wrong index tables.
    """
    own = network.state_dict()
    _compare(own, state, path, remedy)
    indices = {key: value.clone() for key, value in own.items() if value.dim() and not value.is_floating_point()}
    network.load_state_dict(state)
    for key, value in network.state_dict().items():
        if not (torch.equal(value, indices[key]) if key in indices else value.isfinite().all()):
            raise CheckpointError(f"{path}: `{key}` has values that no training gives, such as NaN: {remedy}")


def _compare(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, remedy: str) -> None:
    wrong = sorted({key for key, *_ in _kinds(own) ^ _kinds(state)})
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} weights are missing, unknown or of the wrong shape, such as `{short(wrong[0])}`: "
            f"{remedy}"
        )


def _kinds(state: Mapping[str, Tensor]) -> set[tuple[str, tuple[int, ...], bool]]:
    """Name, shape and whether it has real numbers; 8-bit ones do not count, no training uses them."""
    return {(k, tuple(v.shape), v.is_floating_point() and v.element_size() > 1) for k, v in state.items()}


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a weights file with the keys that did not exist when it was written, at the values they had then."""
    later: dict[str, dict[str, Any]] = {
        "unet": {"sigma_data": 0.09, "hr_inputs": False, "placebo": False},
        "uncertainty": {"invert": False, "energy": 0.3, "lr_scale": 1, "unit": "image"},
    }
    settings = {k: later.get(k, {}) | v if isinstance(v, dict) else v for k, v in settings.items()}
    unet = settings.get("unet")
    if isinstance(unet, dict) and "global_skip" in unet:
        unet["skip"] = "condition" if unet.pop("global_skip") else "none"
    return settings


def bundled() -> list[str]:
    """The names of the bundled weights."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{FILE}"))


def weights_file(model: str | Path) -> Path:
    """The weights file of a model: bundled weights by name (or `starter`, `light`), a file, or its folder."""
    name = NAMES.get(str(model), str(model))
    path = BUNDLED / name if name in bundled() else Path(model)
    return path / FILE if path.is_dir() or not path.suffix else path
