"""Records of what both trainings share and of each training's recipe: `train`, `train_atd`, `train_unet`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from upsr.config.section import Positive, Probability, Section


class Select(Section):
    """Weights of the validation figures; the checkpoint with the highest Σ weight · figure becomes the model."""

    psnr: float
    """Score per dB of PSNR."""
    lpips: float
    """Score per unit of LPIPS, negative because lower LPIPS is better; 0 skips the measurement."""

    @model_validator(mode="after")
    def _a_weight_is_set(self) -> Self:
        if not self.psnr and not self.lpips:
            raise ValueError("train.select: all weights are 0: set psnr, lpips or both to another value")
        return self


class Train(Section):
    """What both trainings share."""

    init: str
    """Initial weights. `starter`: the bundled weights, where they fit; `none`: train from scratch; or a weights file, a
    model folder or the name of bundled weights. Narrower networks are widened to 2, 3, ... times their width."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Precision of the forward and backward pass; bf16 and fp16 are mixed precision."""
    compile: bool
    """Use torch.compile: faster steps after a slow first one."""
    channels_last: bool
    """Channels-last memory layout: faster convolutions in half precision on GPUs."""
    checkpointing: bool
    """Recompute activations in the backward pass instead of keeping them: slower, but needs less memory."""
    workers: Annotated[int, Field(ge=0)]
    """Processes that read and decode training images; 0: the training process itself does."""
    log_every: Positive
    """Steps between two log lines."""
    preview_every: Positive
    """Steps between two preview sheets."""
    save_every: Positive
    """Steps between two saved training states to resume from."""
    validate_every: Positive
    """Steps between two validated checkpoints; the last step always adds one."""
    validate_pictures: Positive
    """Number of held-out images, cropped to a patch, that a checkpoint is validated on."""
    select: Select
    """How the checkpoint that becomes the model is chosen."""
    keep: Positive
    """Number of best checkpoints, by `select`, kept as files."""
    max_bad_steps: Positive
    """Consecutive steps with a non-finite loss or gradient that stop the training; checked at each log line."""
    lpips_range: Literal["proper", "official"]
    """Input range of LPIPS. `proper`: [0, 1], which it expects; `official`: [-1, 1], as in the released code."""


class Rate(Section):
    """Length of a training and its learning rate."""

    steps: Positive
    """Optimizer steps."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    warmup: Annotated[int, Field(ge=0)]
    """Steps of the linear warm-up to `lr`."""
    milestones: tuple[Positive, ...]
    """Steps at which the learning rate is halved."""


def _in_one_line(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Validates a micro-batch with one message, where a union has one for each of its types."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError("give a whole number above 0, or auto") from None


MicroBatch = Annotated[Positive | Literal["auto"], WrapValidator(_in_one_line)]


class Recipe(Rate):
    """What each training sets for itself."""

    batch: Positive
    """Samples per optimizer step, over all processes."""
    micro_batch: MicroBatch
    """Most samples per forward pass and process, a divisor of `batch`; gradients accumulate. Smaller needs less memory,
    larger is faster on GPUs. `auto`: as many as the memory holds, by a trial when the training starts."""
    patch: Positive
    """Side of a training patch in HR pixels."""
    betas: tuple[Probability, Probability]
    """β1 and β2 of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Weight decay of AdamW."""
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay per step of the exponential moving average of the weights; larger averages over more steps."""
    clip: Annotated[float, Field(gt=0)]
    """Maximum gradient norm; larger gradients are scaled down to it."""
    pool: Annotated[int, Field(ge=0)]
    """Number of past pairs kept to mix degradations within a batch; 0: none."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.micro_batch != "auto" and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        return self


class AtdRecipe(Recipe):
    """The training of ATD."""

    x2: Rate
    """The ×2 training of `atd.schedule: x2_then_x4`. It shares all other values with ×4, and the size of LR patches."""


class UnetRecipe(Recipe):
    """The training of the UNet."""

    lpips_weight: Annotated[float, Field(ge=0)]
    """λ of the loss MSE + λ · LPIPS; 0 leaves LPIPS out."""
    lpips_share: Annotated[float, Field(gt=0, le=1)]
    """Share of each micro-batch that LPIPS is computed on, at least one sample; smaller: cheaper, noisier steps."""
    lpips_alex_weight: Annotated[float, Field(ge=0)]
    """Weight of LPIPS with AlexNet's features, added to the loss. It makes edges sharper and PSNR lower; 0: the
    paper."""
    dists_weight: Annotated[float, Field(ge=0)]
    """Weight of DISTS, added to the loss: sharper too, and without the fine textures that AlexNet's LPIPS adds; 0: the
    paper."""
    rollout: Probability
    """Share of samples whose x_t the network makes itself, by one step of the sampler from a true x_{t+1} (DREAM, arXiv
    2312.00210); 0: the paper. Without them the network trusts x_t more than a sampled x_t deserves."""
    teacher: str | None
    """Weights file, model folder or name of bundled weights of a trained UPSR. This network, a student of 1 or 2
    `diffusion.steps`, starts from its weights in place of `train.init`, and also learns its deterministic result for
    the same x_T (SinSR, arXiv 2311.14760). `unet`, `uncertainty`, κ and √η_T must be the teacher's; what the teacher's
    variant learned is kept. null: no teacher."""
