"""The model that MLflow serves: encoded images in, upscaled PNGs out.

A registered model contains this file and the library, and MLflow finds this module by its name.
"""

from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from upsr.images import ImageError, decode, encode
from upsr.inference.upscaler import Upscaler

MOST = {"tile": 1024, "seed": 2**63 - 1}  # a request may not ask for any amount of memory
MOST_PIXELS = 2**24


class Served:
    """A registered model. Its input has one column, `image`: bytes of a PNG, JPEG, ... in each row."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.upscaler = upscaler

    def predict(self, table: Mapping[str, list[bytes]], params: dict[str, Any] | None = None) -> list[bytes]:
        """A PNG per row. `params`: `seed` and `tile`, as in `upsr upscale`.

        Raises `MlflowException`, which the server answers with status 400, for bad bytes and bad parameters.
        """
        options = {"seed": 0, "tile": 128} | (params or {})
        for name, most in MOST.items():
            if options[name] is None or options[name] > most:
                raise MlflowException.invalid_parameter_value(f"{name} {options[name]}: give a number up to {most}")
        try:
            return [self._upscaled(data, f"image {number}", options) for number, data in enumerate(table["image"], 1)]
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _upscaled(self, data: Any, name: str, options: dict[str, Any]) -> bytes:
        if not isinstance(data, bytes):
            raise ImageError(f"{name}: no bytes: give an encoded image, in base64 where the request is JSON")
        return encode(self.upscaler(decode(data, name, MOST_PIXELS), **options), ".png")


def _load_pyfunc(path: str) -> Served:
    """MLflow calls this with the path of the weights file."""
    import torch

    return Served(Upscaler.from_pretrained(path, device="cuda" if torch.cuda.is_available() else "cpu"))
