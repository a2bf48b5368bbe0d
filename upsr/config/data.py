"""Records of the photographs, the sub-images and the training store: `data`, `crop`, `pack`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Section


class Data(Section):
    """Where the training images come from, and which images are kept out of training."""

    source: Literal["sample", "df2k", "folder"]
    """`sample`: photographs bundled with installed packages; `df2k`: DIV2K and Flickr2K, downloaded; `folder`: your
    own."""
    folder: str | None
    """Folder of photographs, also in sub-folders, for `source: folder`; unused otherwise."""
    holdout: Annotated[tuple[str, ...], Field(min_length=1)]
    """File names (without suffix) of the benchmark `holdout`: reported, never trained on, nor are their copies."""
    validation: Annotated[tuple[str, ...], Field(min_length=1)]
    """File names (without suffix) of the images that checkpoints are chosen on: neither trained on nor reported."""
    holdout_side: Positive
    """Longest side of an image of `holdout` or `validation` in pixels; larger ones are shrunk. Smaller is faster to
    evaluate."""
    on_corrupt: Literal["fail", "skip"]
    """Unreadable training images: `fail` stops the stage; `skip` leaves them out, and names and counts them. One of
    `holdout` or `validation` always stops it."""

    @model_validator(mode="after")
    def _folder_is_named(self) -> Self:
        if self.source == "folder" and not self.folder:
            raise ValueError("data.source is `folder`, but data.folder is empty: set it to the folder of photographs")
        return self

    @model_validator(mode="after")
    def _no_checkpoint_is_chosen_on_reported_images(self) -> Self:
        if both := sorted(set(self.holdout) & set(self.validation)):
            raise ValueError(
                f"data.validation: data.holdout, which is reported, also names {', '.join(both)}: name other images"
            )
        return self

    @property
    def reserved(self) -> dict[str, tuple[str, ...]]:
        """Split -> names of its images, which are not trained on; a split has the name of its key."""
        return {"holdout": self.holdout, "validation": self.validation}


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
