"""Converts the authors' checkpoints, `atd_real.pth` and `upsr.pth`, to this project's weights and settings.

Widths, depths, windows, heads and the scale follow from the shapes, so other sizes can be read too. `lr_size` follows
from the UNet's masks. The chain and the uncertainty have the paper's values; ATD's `category_size` is an argument. The
authors' LPIPS weight is unknown: it is set to 0 and not used in upscaling.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from upsr.config import Atd, Diffusion, Dynamic, Scale, Section, Uncertainty, Unet
from upsr.config.networks import MOST_PIXELS_OF_A_CATEGORY
from upsr.foreign import is_compressed, read
from upsr.models.atd import build_atd
from upsr.models.unet import build_unet
from upsr.pretrained import CheckpointError, restored

State = dict[str, Tensor]

DERIVED = ("relative_position_index", "attn_mask")
"""Buffers of the official UNet that are computed from its settings."""

DIFFUSION = Diffusion(steps=5, kappa=2.5, min_noise=0.2, sqrt_eta_end=0.99, power=0.2, predict="x0", sampler_eta=0)
UNCERTAINTY = Uncertainty(
    variant="residual",
    floor=0.4,
    invert=False,
    normalise="none",
    energy=0.3,
    lr_scale=1,
    psi_max=0.1,
    channels="rgb",
    # The keys below belong to other variants and are not used.
    edges="sobel",
    edge_weights=None,
    cutoff=0.3,
    softness=0.2,
    percentile=98,
    unit="image",
    mix=0.5,
    learn_mix=False,
    dynamic=Dynamic(source="x0_hat", smoothing=0.5, intervals=(0.05, 0.03, 0.01)),
)
REMEDY = "give the authors' file"
LR_SIZE = 64  # where the UNet has no mask


def convert(atd: Path, unet: Path | None, category_size: int) -> tuple[dict[str, State], dict[str, Section | int]]:
    """(parts, settings) for `save_pretrained`: of ATD alone, or of ATD and the UNet. Executes no code from the files.

    Raises `CheckpointError` for a file that does not fit, and `ValueError` for a `category_size` out of bounds.
    """
    if not 1 <= category_size <= MOST_PIXELS_OF_A_CATEGORY:
        raise ValueError(f"--category-size {category_size}: give 1 to {MOST_PIXELS_OF_A_CATEGORY} (the paper's: 128)")
    # ATD
    state = load_official(atd)
    with _shape_errors(atd, "an ATD: give the authors' `atd_real.pth`"):
        cfg, scale = read_atd(state, category_size)
    if scale not in get_args(Scale):
        raise CheckpointError(f"{atd}: is for scale {scale}: give one for {' or '.join(map(str, get_args(Scale)))}")
    parts = {"atd": restored(lambda: build_atd(cfg, scale), state, atd, REMEDY).state_dict()}
    if unet is None:
        return parts, {"scale": scale, "atd": cfg}
    # UNet
    state = load_official(unet)
    with _shape_errors(unet, "UPSR's UNet: give the authors' `upsr.pth`"):
        unet_cfg, unet_scale = read_unet(state)
    if unet_scale != scale:
        raise CheckpointError(f"{unet}: is for scale {unet_scale}, {atd} for {scale}: give two of the same scale")
    state = {k: v for k, v in state.items() if not k.endswith(DERIVED)}
    parts |= {
        "unet": restored(lambda: build_unet(unet_cfg, scale), state, unet, REMEDY).state_dict(),
        "uncertainty": {},
    }
    chain = {"diffusion": DIFFUSION, "uncertainty": UNCERTAINTY}
    return parts, {"scale": scale, "atd": cfg, "unet": unet_cfg, **chain}


def load_official(path: str | Path) -> State:
    """Reads a published `.pth` or its `.safetensors` (weights under `params_ema`, `params` or at the top level).

    Executes no code. Raises `CheckpointError` for a missing file and for anything but plain weights.
    """
    if is_compressed(Path(path)):
        raise CheckpointError(f"{path}: its weights are larger than the file: give the authors' file")
    try:
        state = read(Path(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file: correct the path") from None
    except Exception:  # torch raises a dozen exception types, for malicious and for broken files
        raise CheckpointError(f"{path}: not a plain weights file: give the authors' file") from None
    for key in ("params_ema", "params"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state or not all(_is_weight(k, v) for k, v in state.items()):
        raise CheckpointError(f"{path}: holds no weights of a network: give the authors' file")
    # Tensors can repeat one value, or share their values: no real weights are larger than their file.
    if sum(v.nbytes for v in state.values()) > Path(path).stat().st_size:
        raise CheckpointError(f"{path}: its weights are larger than the file: give the authors' file")
    return {k.removeprefix("module."): v for k, v in state.items()}


def _is_weight(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def read_atd(state: State, category_size: int) -> tuple[Atd, int]:
    """(settings, scale) of an official ATD. Another network's weights raise `KeyError`, `ValueError` or similar."""
    layer = "layers.0.residual_group.layers.0"
    reduced_dim, dim = state[f"{layer}.attn_atd.wq.weight"].shape
    table = state[f"{layer}.attn_win.relative_position_bias_table"]
    cfg = Atd(
        dim=dim,
        flavour="real" if "layers.0.patch_embed.norm.weight" in state else "classical",
        groups=len(_numbered(state, r"layers\.(\d+)\.conv\.weight")),
        layers=len(_numbered(state, r"layers\.0\.residual_group\.layers\.(\d+)\.wqkv\.weight")),
        heads=table.shape[1],
        window=_window(table),
        category_size=category_size,
        tokens=len(state[f"{layer}.attn_atd.scale"]),
        reduced_dim=reduced_dim,
        ffn_kernel=state[f"{layer}.convffn.dwconv.depthwise_conv.0.weight"].shape[2],
        mlp_ratio=len(state[f"{layer}.convffn.fc1.weight"]) / dim,
        lpips_weight=0,
        schedule="direct_x4",
    )
    return cfg, math.isqrt(len(state["upsample.0.weight"]) // 3)


def read_unet(state: State) -> tuple[Unet, int]:
    """(settings, scale) of an official UNet. Another network's weights raise `KeyError`, `ValueError` or similar."""
    dim = len(state["input_blocks.0.0.weight"])
    widths = [len(bias) for bias in _numbered(state, r"input_blocks\.(\d+)\.0\.in_layers\.2\.bias")]
    levels = len(_numbered(state, r"input_blocks\.(\d+)\.0\.op\.weight")) + 1
    stage = "input_blocks.1.1.blocks"
    table = state[f"{stage}.0.attn.relative_position_bias_table"]
    hidden, swin_dim = state[f"{stage}.0.mlp.fc1.weight"].shape[:2]
    mask = state.get(f"{stage}.1.attn_mask")  # one entry per window of an `lr_size` map
    cfg = Unet(
        dim=dim,
        channel_mult=tuple(width // dim for width in widths[:: len(widths) // levels]),
        res_blocks=len(widths) // levels,
        swin_dim=swin_dim,
        swin_depth=len(_numbered(state, r"input_blocks\.1\.1\.blocks\.(\d+)\.attn\.qkv\.weight")),
        window=_window(table),
        head_dim=swin_dim // table.shape[1],
        mlp_ratio=hidden / swin_dim,
        tail_dim=state["conv_last.weight"].shape[1],
        condition=("sr", "bicubic"),
        lr_size=LR_SIZE if mask is None else math.isqrt(len(mask)) * _window(table),
        branches=1,
        placebo=False,
        skip="none",
        sigma_data=0.09,  # not used
        hr_inputs=False,
        official_mask=True,
    )
    return cfg, 4 if "conv_up2.weight" in state else 2


def _numbered(state: State, pattern: str) -> list[Tensor]:
    """The weights whose names match a pattern with one number, sorted by that number."""
    found = {int(match[1]): weight for name, weight in state.items() if (match := re.fullmatch(pattern, name))}
    return [found[number] for number in sorted(found)]


def _window(table: Tensor) -> int:
    """The window size: a table of relative position biases has (2·window−1)² rows."""
    return (math.isqrt(len(table)) + 1) // 2


@contextmanager
def _shape_errors(path: Path, what: str) -> Iterator[None]:
    """Turns errors of missing weights or impossible shapes into a `CheckpointError`: it is another network's file."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError):
        raise CheckpointError(f"{path}: not the weights of {what}") from None
