"""What MLflow serves: an encoded picture in, the larger picture as PNG out. MLflow finds this module by its name."""

from collections.abc import Mapping
from typing import Any

from upsr.images import decode, encode
from upsr.inference.upscaler import Upscaler


class Served:
    """A registered model. Its table has one column, `image`, with an encoded picture (PNG, JPEG, ...) a row."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.upscaler = upscaler

    def predict(self, table: Mapping[str, list[bytes]], params: dict[str, Any] | None = None) -> list[bytes]:
        """A PNG a row. `params`: `seed` and `tile`, as `upsr upscale` has them. Raises `ImageError`."""
        options = params or {}
        pictures = (decode(data, f"picture {number}") for number, data in enumerate(table["image"], 1))
        return [encode(self.upscaler(picture, **options), ".png") for picture in pictures]


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the weights file."""
    import torch

    return Served(Upscaler.from_pretrained(path, device="cuda" if torch.cuda.is_available() else "cpu"))
