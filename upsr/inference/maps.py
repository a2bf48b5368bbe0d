"""Uncertainty and weight maps as colour images."""

import cv2
import numpy as np
from torch import Tensor

from upsr.images import to_image
from upsr.inference.upscaler import Upscaled

BAR = 12  # width of the scale bar, in pixels
GAP = 4  # pixels between the maps of a strip
RESIDUAL_SHOWN = 0.1  # upper end of the residual's scale: the paper's ψ_max


def map_images(upscaled: Upscaled) -> dict[str, np.ndarray]:
    """Every map as (H, W + bar, 3) uint8, by name; `weights` is a strip over the timesteps where the weight changes."""
    result = {
        name: heat_map(values, 0, RESIDUAL_SHOWN if name == "residual" else 1) for name, values in upscaled.maps.items()
    }
    if upscaled.weights:
        result["weights"] = strip([labelled(heat_map(w, 0, 1), f"t={t}") for t, w in upscaled.weights.items()])
    return result


def heat_map(values: Tensor, low: float, high: float) -> np.ndarray:
    """(1, 1, H, W) -> (H, W + bar, 3) uint8 in viridis, with a scale bar from `low` (below) to `high` (above)."""
    gray = to_image((values - low) / (high - low))[:, :, 0]
    ramp = np.linspace(255, 0, gray.shape[0]).round().astype(np.uint8)[:, None].repeat(BAR, axis=1)
    image = cv2.applyColorMap(np.concatenate([gray, ramp], axis=1), cv2.COLORMAP_VIRIDIS)
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image[:, gray.shape[1] : gray.shape[1] + 2] = 255
    for text, y in ((f"{high:g}", 12), (f"{low:g}", gray.shape[0] - 4)):
        _write(image, text, gray.shape[1] - 8 * len(text) - 2, y)
    return image


def labelled(image: np.ndarray, text: str) -> np.ndarray:
    """Writes a label into the upper left corner of `image`, in place, and returns it."""
    _write(image, text, 4, 14)
    return image


def strip(parts: list[np.ndarray]) -> np.ndarray:
    """Images of equal height side by side, with white gaps."""
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([p for part in parts for p in (gap, part)][1:], axis=1)


def _write(image: np.ndarray, text: str, x: int, y: int) -> None:
    """White letters with a dark outline, in place; none on an image of fewer than 64 rows."""
    if image.shape[0] >= 64:
        for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, width, cv2.LINE_AA)
