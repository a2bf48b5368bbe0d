"""The networks of a weights file as ONNX files, for programs without torch. Needs the extra `export`.

torch's exporter describes sizes by symbols, and its time goes into reasoning about them. Multiples of a window keep
them simple: ATD is exported on whole windows, between a graph that extends an image and one that crops the result.
onnxscript's whole optimiser takes minutes more for ATD, so only its quick passes run (`_translated`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
import torch.nn as nn
import torch.nn.functional as F
from onnx.compose import add_prefix, merge_models
from onnxscript import ir, opset20, optimizer
from onnxscript.ir.passes import common as passes
from torch import Tensor
from torch.export import Dim

from upsr.config import Atd, Diffusion, Section, Uncertainty, Unet
from upsr.files import DataError, whole_folder
from upsr.images import mirrored
from upsr.models.atd import build_atd
from upsr.models.unet import Downsample, build_unet
from upsr.pretrained import Pretrained

Inputs = Mapping[str, Tensor]
Sides = tuple[Any, Any]
"""Height and width, as `torch.export` has them: `Dim`, or a multiple of one."""

LIMIT = 1e-3  # the largest difference from torch
TRIES = 4  # images of one size: in some, rounding puts a pixel of ATD into another category; a wrong graph fails all
LICENCE = "that of the weights file; of bundled weights: Apache-2.0"


def export_onnx(file: Pretrained, folder: Path, networks: Sequence[str] = ()) -> dict[Path, float]:
    """Writes the named networks (`atd`, `unet`; by default all that the file has) to a new folder as NAME.onnx.

    Returns each file with the largest difference between onnxruntime and torch on images of three sizes. Raises
    `DataError` for a folder that exists, a network that is missing or cannot be exported, and a difference above
    `LIMIT`; then nothing is written.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already: name a new folder")
    for name in networks:
        if name not in file.parts:
            raise DataError(f"{file.path}: has no network `{name}`: name weights that have one, such as starter")
    networks = networks or [name for name in EXPORTS if name in file.parts]
    with whole_folder(folder) as new:
        return {folder / f"{name}.onnx": EXPORTS[name](file, new / f"{name}.onnx") for name in networks}


# The networks


class Extend(nn.Module):
    """An image (1, 3, h, w) -> the same extended to whole windows, as ATD does it, and the image for `Crop`."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        whole = lr
        for axis in (2, 3):
            size = lr.shape[axis]
            stop = (size + self.window - 1) // self.window * self.window  # ONNX rounds a negative quotient to zero
            i = mirrored(2 * size, 0, stop, lr.device)  # in the image and its mirror image
            whole = whole.index_select(axis, torch.minimum(i, 2 * size - 1 - i))
        return whole, lr.clone()


class Crop(nn.Module):
    """The result for whole windows -> (1, 3, s·h, s·w), the result for `lr` (1, 3, h, w)."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, large: Tensor, lr: Tensor) -> Tensor:
        for axis in (2, 3):
            large = large.index_select(axis, torch.arange(self.scale * lr.shape[axis], device=lr.device))
        return large


def _export_atd(file: Pretrained, path: Path) -> float:
    cfg, scale = file.section("atd", Atd), file.scale
    window = cfg.window
    if window**2 % cfg.category_size:
        raise DataError(
            f"{file.path}: atd.category_size {cfg.category_size} does not divide the {window**2} pixels of a window, "
            "so no export is possible: train with one that does"
        )
    atd = file.network("atd", lambda: build_atd(cfg, scale)).eval()
    lr = _random(1, 3, 2 * window, 3 * window)
    sides, whole, large = (Dim("h"), Dim("w")), (window * Dim("rows"), window * Dim("columns")), (Dim("H"), Dim("W"))
    first, body, last = (
        add_prefix(part, f"{name}_", rename_inputs=False, rename_outputs=False)
        for name, part in {
            "extend": _translated(Extend(window), {"lr": lr}, {"lr": sides}, ["lr"], ["whole", "same"]),
            "atd": _translated(atd, {"lr": lr}, {"lr": whole}, ["whole"], ["large"]),
            "crop": _translated(
                Crop(scale), {"large": atd(lr), "lr": lr}, {"large": large, "lr": sides}, ["large", "same"], ["sr"]
            ),
        }.items()
    )
    model = merge_models(merge_models(first, body, [("whole", "whole")]), last, [(x, x) for x in ("large", "same")])
    about = {
        "lr": "(1, 3, h, w), RGB in [0, 1], of any size",
        "sr": f"(1, 3, {scale} h, {scale} w), RGB, about [0, 1]: clip it",
    }
    _save(model, path, file, {"atd": cfg}, about)
    sizes = ((2, 3), (1.5, 2.3), (0.3, 0.7))  # in windows: whole ones, cut ones, and a small image
    shapes = [(1, 3, int(a * window), int(b * window)) for a, b in sizes]
    return _difference(path, atd, [[{"lr": _random(*shape, seed=seed)} for seed in range(TRIES)] for shape in shapes])


class Halve(nn.Module):
    """The convolution of `Downsample` for even sizes: without the padding that no output sees, half is a product."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.conv.weight, self.conv.bias, stride=2)


def _export_unet(file: Pretrained, path: Path) -> float:
    cfg, scale = file.section("unet", Unet), file.scale
    unet, traced = (file.network("unet", lambda: build_unet(cfg, scale)).eval() for _ in range(2))
    for module in traced.modules():
        if isinstance(module, Downsample):
            module.op = Halve(module.op)  # type: ignore[assignment]
    multiple, pixels = cfg.window * unet.downscale, 3 * scale**2
    small = {"x": pixels, "condition": pixels * len(cfg.condition)}  # channels of inputs at LR size, then at HR size
    large = ({"detail": unet.conv_last.out_channels} if unet.smooth else {}) | ({"hr": 6} if cfg.hr_inputs else {})

    def inputs(rows: int, columns: int) -> Inputs:
        h, w = multiple * rows, multiple * columns
        x, condition = (_random(1, count, h, w) for count in small.values())
        more = {name: _random(1, count, scale * h, scale * w) for name, count in large.items()}
        return {"x": x, "t": torch.tensor([1]), "condition": condition, **more}

    rows, columns = multiple * Dim("rows"), multiple * Dim("columns")
    sides = dict.fromkeys(small, (rows, columns)) | dict.fromkeys(large, (scale * rows, scale * columns))
    example = inputs(2, 3)
    model = _translated(traced, example, sides, list(example), ["output"])
    about = {
        "x": f"(1, {pixels}, h, w), x_t / sqrt(energy kappa^2 eta_t + 1/4), pixel-unshuffled by {scale}; h and w are "
        f"multiples of {multiple}",
        "t": "(1,), the timestep of the whole chain, from 0",
        "condition": f"(1, {small['condition']}, h, w), {' and '.join(cfg.condition)} in [-1, 1], pixel-unshuffled by "
        f"{scale}; sr: what ATD makes of the image, bicubic: the image enlarged",
        "detail": f"(1, {large.get('detail')}, {scale} h, {scale} w), W in [0, 1]: the share of the detail branch",
        "hr": f"(1, 6, {scale} h, {scale} w), (x_t - sr) / sqrt(sigma_data^2 + kappa^2 eta_t w_t^2), and sr",
        "output": f"(1, {unet.conv_last.out_channels}, {scale} h, {scale} w), from which "
        "upsr/diffusion/denoiser.py computes x0",
    }
    settings = {"unet": cfg, "diffusion": file.section("diffusion", Diffusion)}
    settings |= {"uncertainty": file.section("uncertainty", Uncertainty)}
    _save(model, path, file, settings, {name: about[name] for name in (*example, "output")})
    return _difference(path, unet, [[inputs(*size)] for size in ((1, 1), (1, 2), (3, 1))])


EXPORTS = {"atd": _export_atd, "unet": _export_unet}


# Translation and check


def _sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort: ONNX's TopK takes the first of equal ones first. torch translates only the sort that is not."""
    size = opset20.Gather(opset20.Shape(x), opset20.Constant(value_ints=[dim]))
    return opset20.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def _remainder(x: Any, divisor: Any) -> Any:
    """The remainder of integers; torch's translation does not take a symbol as the divisor."""
    return opset20.Mod(x, divisor)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.sort.stable: _sort,
    torch.ops.aten.remainder.Scalar: _remainder,
}


def _translated(
    network: nn.Module, inputs: Inputs, sides: Mapping[str, Sides], names: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """A network as ONNX; `sides` are those of its inputs (1, C, H, W) that vary, `names` what ONNX calls the inputs."""
    shapes = {name: dict(enumerate(sides[name], 2)) if name in sides else None for name in inputs}
    # With gradients on, attention is products and a softmax, not torch's fused kernel, which ONNX lacks.
    with torch.enable_grad():
        program = torch.export.export(network, (), dict(inputs), dynamic_shapes=shapes)
    translated = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=20,
        input_names=names,
        output_names=outputs,
        custom_translation_table=TRANSLATIONS,
        optimize=False,
        verbose=False,
    )
    assert translated is not None
    model = translated.model
    passes.ClearMetadataAndDocStringPass()(model)  # lines of this project's code and the paths of its files
    passes.InlinePass()(model)
    optimizer.fold_constants(model, onnx_shape_inference=False)
    passes.CommonSubexpressionEliminationPass()(model)  # such as the windows, which each layer computes
    passes.RemoveUnusedNodesPass()(model)
    return ir.to_proto(model)


def _save(
    model: onnx.ModelProto, path: Path, file: Pretrained, settings: Mapping[str, Section], about: Mapping[str, str]
) -> None:
    """Writes a model; `about` describes its inputs and outputs."""
    del model.graph.value_info[:]  # each part has given sizes names of its own
    model.producer_name = "upsr"
    plain = {name: record.model_dump(mode="json") for name, record in settings.items()}
    metadata = {"scale": str(file.scale), "settings": json.dumps(plain), "licence": LICENCE, **about}
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def _difference(path: Path, network: nn.Module, examples: Sequence[Sequence[Inputs]]) -> float:
    """The largest difference between a file's and a network's output, over sizes; of each size's examples the least.

    Raises `DataError` above `LIMIT`.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def difference(inputs: Inputs) -> float:
        (got,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return (torch.from_numpy(got) - network(**inputs)).abs().max().item()

    largest = max(min(map(difference, tries)) for tries in examples)
    if not largest <= LIMIT:
        raise DataError(
            f"{path.name}: in onnxruntime it differs from torch by {largest:.2g}, above {LIMIT}, so it is not written: "
            "install the packages of requirements.lock"
        )
    return largest
