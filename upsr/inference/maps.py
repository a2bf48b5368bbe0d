"""Maps of numbers as pictures: what the uncertainty and the noise weight look like."""

import cv2
import numpy as np
from torch import Tensor

from upsr.images import to_image

BAR = 12  # width of the scale bar


def heat_map(values: Tensor, low: float, high: float) -> np.ndarray:
    """(1, 1, H, W) -> (H, W + bar, 3) uint8 in viridis, with a scale bar from `low` (below) to `high` (above)."""
    gray = to_image((values - low) / (high - low))[:, :, 0]
    ramp = np.linspace(255, 0, gray.shape[0]).round().astype(np.uint8)[:, None].repeat(BAR, axis=1)
    picture = cv2.applyColorMap(np.concatenate([gray, ramp], axis=1), cv2.COLORMAP_VIRIDIS)
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    picture[:, gray.shape[1] : gray.shape[1] + 2] = 255
    if gray.shape[0] >= 64:
        for text, y in ((f"{high:g}", 12), (f"{low:g}", gray.shape[0] - 4)):
            place = (gray.shape[1] - 8 * len(text) - 2, y)
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return picture
