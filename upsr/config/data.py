"""Photographs, sub-images and their store: `data`, `crop`, `pack`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Section


class Data(Section):
    source: Literal["sample", "df2k", "folder"]
    """`sample`: photographs that installed packages carry; `df2k`: DIV2K and Flickr2K, downloaded; `folder`: the user's
    own."""
    folder: str | None
    """The folder of photographs that `source: folder` reads."""
    holdout: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names (without suffix) kept for evaluation, never trained on."""
    holdout_side: Positive
    """Held-out pictures are shrunk to at most this side, so that a sample-scale run stays short."""
    on_corrupt: Literal["fail", "skip"]
    """What an unreadable picture does: stop the stage, or be left out, named and counted."""

    @model_validator(mode="after")
    def _folder_is_named(self) -> Self:
        if self.source == "folder" and not self.folder:
            raise ValueError("data.source is `folder`, so data.folder must name one")
        return self


class Crop(Section):
    size: Positive
    """Side of a sub-image in HR pixels."""
    step: Positive
    """Distance between two sub-images; smaller than `size` means overlap."""
    threshold: Annotated[int, Field(ge=0)]
    """A rest narrower than this many pixels is not worth a sub-image of its own."""
    min_gradient: Annotated[float, Field(ge=0)]
    """A sub-image whose gradient energy (mean square of the differences of neighbouring grey levels, 0..255) is below
    this is flat and dropped; 0 keeps all."""


class Pack(Section):
    encoding: Literal["png", "webp", "raw"]
    """How a picture is stored in the LMDB. `png`: `crop`'s own files, packed as they are, which BasicSR reads too;
    `webp` (lossless): an eighth smaller, and 80 times as long to pack; `raw`: 1.7 times as large, and ten times the
    training crops per second and core, since only the crop is read: for a GPU that waits for its loader."""
