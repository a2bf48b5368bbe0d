"""Records of the photographs, the sub-images and the training store: `data`, `crop`, `pack`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Section


class Data(Section):
    """Where the training images come from, and which are held out."""

    source: Literal["sample", "df2k", "folder"]
    """`sample`: photographs bundled with installed packages; `df2k`: DIV2K and Flickr2K, downloaded; `folder`: your
    own."""
    folder: str | None
    """Folder of photographs for `source: folder`; unused otherwise."""
    holdout: Annotated[tuple[str, ...], Field(min_length=1)]
    """File names (without suffix) reserved for evaluation and never trained on."""
    holdout_side: Positive
    """Longest side of a held-out image in pixels; larger ones are shrunk. Smaller is faster to evaluate."""
    on_corrupt: Literal["fail", "skip"]
    """Unreadable images: `fail` stops the stage; `skip` leaves them out, and names and counts them."""

    @model_validator(mode="after")
    def _folder_is_named(self) -> Self:
        if self.source == "folder" and not self.folder:
            raise ValueError("data.source is `folder`, but data.folder is empty: set it to the folder of photographs")
        return self


class Crop(Section):
    """How images are cut into sub-images."""

    size: Positive
    """Side of a square sub-image in HR pixels."""
    step: Positive
    """Distance between neighbouring sub-images in pixels; less than `size` makes them overlap."""
    threshold: Annotated[int, Field(ge=0)]
    """Pixels that may be left over at an image's edge; more than this adds a sub-image flush with the edge."""
    min_gradient: Annotated[float, Field(ge=0)]
    """Sub-images whose gradient energy is below this are dropped as flat; 0 keeps all. Gradient energy: mean squared
    difference of neighbouring grey levels, 0..255."""


class Pack(Section):
    """How sub-images are stored in the training LMDB."""

    encoding: Literal["png", "webp", "raw"]
    """How the LMDB stores an image. `png`: the files of `crop`, unchanged, also readable by BasicSR. `webp` (lossless):
    an eighth smaller, 80 times slower to pack. `raw`: 1.7 times as large, but ten times the training crops per second
    and core, since only the crop is read. Use it where the GPU waits for its data loader."""
