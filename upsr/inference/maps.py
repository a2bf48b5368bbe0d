"""Maps of numbers as pictures: what the uncertainty and the noise weight look like."""

import cv2
import numpy as np
from torch import Tensor

from upsr.images import to_image
from upsr.inference.upscaler import Upscaled

BAR = 12  # width of the scale bar
GAP = 4  # between the maps of a strip
RESIDUAL_SHOWN = 0.1  # the paper's ψ_max


def map_images(upscaled: Upscaled) -> dict[str, np.ndarray]:
    """Every map as a colour picture, by name; `weights` is the strip of a weight that changes, from first to last."""
    found = {
        name: heat_map(values, 0, RESIDUAL_SHOWN if name == "residual" else 1) for name, values in upscaled.maps.items()
    }
    if upscaled.weights:
        found["weights"] = strip([labelled(heat_map(w, 0, 1), f"t={t}") for t, w in upscaled.weights.items()])
    return found


def heat_map(values: Tensor, low: float, high: float) -> np.ndarray:
    """(1, 1, H, W) -> (H, W + bar, 3) uint8 in viridis, with a scale bar from `low` (below) to `high` (above)."""
    gray = to_image((values - low) / (high - low))[:, :, 0]
    ramp = np.linspace(255, 0, gray.shape[0]).round().astype(np.uint8)[:, None].repeat(BAR, axis=1)
    picture = cv2.applyColorMap(np.concatenate([gray, ramp], axis=1), cv2.COLORMAP_VIRIDIS)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    picture[:, gray.shape[1] : gray.shape[1] + 2] = 255
    for text, y in ((f"{high:g}", 12), (f"{low:g}", gray.shape[0] - 4)):
        _write(picture, text, gray.shape[1] - 8 * len(text) - 2, y)
    return picture


def labelled(picture: np.ndarray, text: str) -> np.ndarray:
    _write(picture, text, 4, 14)
    return picture


def strip(parts: list[np.ndarray]) -> np.ndarray:
    """Pictures of one size side by side."""
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([p for part in parts for p in (gap, part)][1:], axis=1)


def _write(picture: np.ndarray, text: str, x: int, y: int) -> None:
    """White letters with a dark rim, in place; none on a picture that is too small for them."""
    if picture.shape[0] >= 64:
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width, cv2.LINE_AA)
