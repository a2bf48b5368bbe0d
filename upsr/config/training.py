"""What both trainings share, and what each sets for itself: `train`, `train_atd`, `train_unet`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Probability, Section


class Select(Section):
    """What a checkpoint's validation figures count: the highest sum of weight · figure is the model."""

    psnr: float
    """For each dB of PSNR."""
    lpips: float
    """For each unit of LPIPS; below 0, since less of it is better. 0: not measured."""

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        if not self.psnr and not self.lpips:
            raise ValueError("train.select counts nothing: give psnr, lpips or both a weight other than 0")
        return self


class Train(Section):
    """What both trainings share."""

    init: str
    """What the trainings start from. `starter`: those that come along, where they fit; `none`: from nothing; or
    a weights file, or a model's folder, whose networks must fit, or be widened: to 2, 3, ... times the width."""
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    channels_last: bool
    checkpointing: bool
    """Compute activations again when they are needed, instead of keeping them: slower, for small cards."""
    workers: Annotated[int, Field(ge=0)]
    """Processes that read and decode, beside the training process."""
    log_every: Positive
    preview_every: Positive
    save_every: Positive
    """Steps between two states to resume from."""
    validate_every: Positive
    """Steps between two checkpoints; one more is made at the end."""
    validate_pictures: Positive
    """So many held-out pictures, cut to a patch, tell how good a checkpoint is."""
    select: Select
    keep: Positive
    """So many checkpoints, the best by `select`, stay as files."""
    max_bad_steps: Positive
    """So many steps in a row with a non-finite loss or gradient end the run; seen where it logs."""
    lpips_range: Literal["proper", "official"]
    """`official` repeats the released code: a [-1, 1] picture handed to a metric that expects [0, 1]."""


class Rate(Section):
    """How long a training is, and its rate along the way."""

    steps: Positive
    """Optimizer steps."""
    lr: Annotated[float, Field(gt=0)]
    warmup: Annotated[int, Field(ge=0)]
    milestones: tuple[Positive, ...]
    """Steps at which the rate is halved."""


class Recipe(Rate):
    """What one training sets for itself."""

    batch: Positive
    """Samples per optimizer step, over all processes."""
    micro_batch: Positive
    """Samples per forward and process; the rest is accumulated."""
    patch: Positive
    """Side of an HR training patch."""
    betas: tuple[Probability, Probability]
    weight_decay: Annotated[float, Field(ge=0)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    clip: Annotated[float, Field(gt=0)]
    """Largest norm of the gradient."""
    pool: Annotated[int, Field(ge=0)]
    """Past pairs kept to mix degradations within a batch; 0: none."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        return self


class AtdRecipe(Recipe):
    x2: Rate
    """What the ×2 training of `atd.schedule: x2_then_x4` has of its own; its LR patches are as large as those of ×4."""


class UnetRecipe(Recipe):
    lpips_weight: Annotated[float, Field(ge=0)]
    """Weight of LPIPS beside the MSE in the loss."""
