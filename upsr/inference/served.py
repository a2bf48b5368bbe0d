"""The model that MLflow serves: encoded images in, upscaled PNGs out. MLflow finds this module by its name."""

from collections.abc import Mapping
from typing import Any

from upsr.images import decode, encode
from upsr.inference.upscaler import Upscaler


class Served:
    """A registered model. Its input has one column, `image`: bytes of a PNG, JPEG, ... in each row."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.upscaler = upscaler

    def predict(self, table: Mapping[str, list[bytes]], params: dict[str, Any] | None = None) -> list[bytes]:
        """A PNG per row. `params`: `seed` and `tile`, as in `upsr upscale`. Raises `ImageError` for bad bytes."""
        options = params or {}
        decoded = (decode(data, f"image {number}") for number, data in enumerate(table["image"], 1))
        return [encode(self.upscaler(image, **options), ".png") for image in decoded]


def _load_pyfunc(path: str) -> Served:
    """MLflow calls this with the path of the weights file."""
    import torch

    return Served(Upscaler.from_pretrained(path, device="cuda" if torch.cuda.is_available() else "cpu"))
