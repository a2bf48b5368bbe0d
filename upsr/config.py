"""Every value of the project as frozen records, one per section of params.yaml.

Reading is strict: an unknown key, a missing key or a bad value ends in a `ConfigError` that names its path.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _ascending(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} does not ascend: write the smaller value first")
    return pair


def _odd(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] % 2 == 0 or pair[1] % 2 == 0:
        raise ValueError(f"{list(pair)}: a kernel's side must be odd")
    return pair


def _some(shares: tuple[float, ...]) -> tuple[float, ...]:
    if sum(shares) <= 0:
        raise ValueError("at least one share must be above 0")
    return shares


Pair = Annotated[tuple[float, float], AfterValidator(_ascending)]
Probabilities3 = Annotated[tuple[Probability, Probability, Probability], AfterValidator(_some)]
Probabilities6 = Annotated[
    tuple[Probability, Probability, Probability, Probability, Probability, Probability], AfterValidator(_some)
]
Quality = Annotated[float, Field(ge=1, le=100)]


class ConfigError(ValueError):
    """A mistake in a settings file, in one line that names the file and the key."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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


class Blur(Section):
    probability: Probability
    kernel_size: Annotated[tuple[Positive, Positive], AfterValidator(_ascending), AfterValidator(_odd)]
    """Smallest and largest odd side of a kernel."""
    kinds: Probabilities6
    """Shares of isotropic, anisotropic, generalised iso., generalised aniso., plateau iso., plateau aniso."""
    sinc: Probability
    """Share of sinc kernels, before the kinds above."""
    sigma: Pair
    generalized_beta: Pair
    plateau_beta: Pair


class Resize(Section):
    up_down_keep: Probabilities3
    range: Pair


class Noise(Section):
    gaussian: Probability
    """Share of batches with Gaussian noise; the others get Poisson noise."""
    sigma: Pair
    """Gaussian standard deviation on the 0..255 scale."""
    poisson_scale: Pair
    gray: Probability
    """Share of samples whose noise is the same in the three channels."""


class Round(Section):
    """One of the two rounds of the second-order degradation."""

    blur: Blur
    resize: Resize
    noise: Noise
    jpeg: Annotated[tuple[Quality, Quality], AfterValidator(_ascending)]
    """JPEG quality."""


class Degradation(Section):
    first: Round
    second: Round
    final_sinc: Probability
    usm: bool
    """Sharpen the HR target first (off in UPSR)."""


class Atd(Section):
    dim: Positive
    flavour: Literal["real", "classical"]
    groups: Positive
    layers: Positive
    heads: Positive
    window: Positive
    category_size: Positive
    tokens: Positive
    reduced_dim: Positive
    ffn_kernel: Positive
    mlp_ratio: Annotated[float, Field(gt=0)]
    lpips_weight: Annotated[float, Field(ge=0)]
    """Weight of LPIPS beside L1 in the loss."""
    schedule: Literal["direct_x4", "x2_then_x4"]
    """`direct_x4`: the network of `scale` from nothing; `x2_then_x4`: from the body of a ×2 network, trained first."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"atd.dim {self.dim} is not a multiple of atd.heads {self.heads}")
        return self


class Unet(Section):
    dim: Positive
    """Base width; 160 is the paper's."""
    channel_mult: Annotated[tuple[Positive, ...], Field(min_length=1)]
    res_blocks: Positive
    swin_dim: Positive
    swin_depth: Positive
    window: Positive
    head_dim: Positive
    mlp_ratio: Annotated[float, Field(gt=0)]
    tail_dim: Positive
    """Channels of the convolutions that bring the features to HR size."""
    condition: tuple[Literal["sr", "bicubic"], ...]
    """The images that condition the network."""
    lr_size: Positive
    """Side of the LR patches that the attention is laid out for: a level whose map is no larger than a window at
    that size is never shifted."""
    branches: Literal[1, 2]
    """With 2, a second decoder makes the smooth structure, and the uncertainty mixes the two."""
    official_mask: bool
    """Repeat the released network's mask of shifted windows, which its weights need, instead of the right one."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        if self.dim % 16:
            raise ValueError(f"unet.dim {self.dim} is not a multiple of 16")
        if self.swin_dim % self.head_dim:
            raise ValueError(f"unet.swin_dim {self.swin_dim} is not a multiple of unet.head_dim {self.head_dim}")
        if not self.condition or len(set(self.condition)) != len(self.condition):
            raise ValueError("unet.condition needs `sr`, `bicubic` or both, each once")
        return self


class Diffusion(Section):
    steps: Positive
    """T."""
    kappa: Annotated[float, Field(gt=0)]
    min_noise: Annotated[float, Field(gt=0, lt=1)]
    """m of the schedule."""
    sqrt_eta_end: Annotated[float, Field(gt=0, lt=1)]
    """e of the schedule: √η_T."""
    power: Annotated[float, Field(gt=0)]
    """p of the schedule."""
    predict: Literal["x0", "epsilon"]
    sampler_eta: Probability
    """0: the deterministic sampler (the paper); 1: the posterior, all noise drawn anew."""


class Dynamic(Section):
    """What `variant: dynamic` adds to `edge_frequency`."""

    source: Literal["x_t", "x0_hat"]
    """What stands for the current picture: the noisy state, or the clean estimate made of it."""
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    """λ: how much of the maps before is kept when they are taken anew."""
    intervals: tuple[Probability, Probability, Probability]
    """How often they are: shares of the chain, in its noisy, middle and last third; one step at least."""


class Uncertainty(Section):
    variant: Literal["isotropic", "residual", "edge_frequency", "dynamic"]
    floor: Annotated[float, Field(gt=0, lt=1)]
    """b: the least weight."""
    normalise: Literal["none", "mean"]
    """`mean` keeps the mean of the weight, and so the noise's energy, at the residual variant's, picture by picture."""
    psi_max: Annotated[float, Field(gt=0)]
    """`residual`: the residual at which the weight reaches 1."""
    channels: Literal["rgb", "gray"]
    """`residual`: a weight for each channel, or one for the three."""
    edges: Literal["sobel", "dexined"]
    """`edge_frequency`, `dynamic`: what finds edges; `dexined` needs its weights at hand."""
    edge_weights: str | None
    """The file of kornia's DexiNed weights."""
    cutoff: Annotated[float, Field(gt=0)]
    """Where the high-pass filter is at half its height; 1 is the Nyquist frequency of the LR picture."""
    softness: Annotated[float, Field(gt=0)]
    """Width of the filter's rise, in the same unit; at most twice the cutoff."""
    percentile: Annotated[float, Field(gt=0, le=100)]
    """Magnitudes above this percentile of a picture count as 1."""
    mix: Annotated[float, Field(gt=0, lt=1)]
    """a: the share of edges beside frequencies, at first."""
    learn_mix: bool
    """Whether a is trained with the UNet."""
    dynamic: Dynamic

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.normalise == "mean" and self.variant == "isotropic":
            raise ValueError("uncertainty.normalise is `mean`, but the weight of `isotropic` is 1 everywhere: use none")
        if self.edges == "dexined" and self.edge_weights is None:
            raise ValueError(
                "uncertainty.edges is `dexined`: name its weights in uncertainty.edge_weights, or use sobel"
            )
        if self.softness > 2 * self.cutoff:
            raise ValueError(
                f"uncertainty.softness {self.softness} is more than twice uncertainty.cutoff {self.cutoff}: "
                "the filter would let the mean brightness pass"
            )
        return self


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

    init: str | None
    """A weights file, or a model's folder, whose networks the trainings start from; null: from nothing."""
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


class Evaluate(Section):
    benchmarks: tuple[str, ...]
    """Names below data/benchmarks, or paths, of folders with `HR/` and `LRx4/`; those at hand are run. `holdout` is
    the one that the chain makes from data.holdout."""
    protocol: Literal["basicsr", "upsr"]
    metrics: tuple[str, ...]
    """pyiqa names beside PSNR and SSIM."""
    tile: Positive
    """Side of a tile in LR pixels."""
    workers: Positive
    """Processes, on the GPUs in turn; the figures are the same for any number. Each holds the networks in memory."""


class Jobs(Section):
    """Where the flows run trainings and evaluations."""

    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """Ids as CUDA_VISIBLE_DEVICES takes them, one job on each at a time; null: the GPUs found, and where there is
    none, one job at a time."""
    cluster: str | None
    """Address of a Ray cluster (`HOST:6379`) that sweeps and nights are spread over; null: this machine alone."""


class Judged(Section):
    """How a metric is judged from one night, or one model, to another."""

    better: Literal["higher", "lower"]
    tolerance: Annotated[float, Field(ge=0)]
    """A benchmark's mean may be worse by so much."""


class Nightly(Section):
    metrics: Annotated[dict[str, Judged], Field(min_length=1)]
    """The metrics that are judged; the others are only shown."""
    improves: str
    """A candidate becomes champion if no benchmark is worse by more than its tolerance, and the mean of this metric
    over the benchmarks is better..."""
    by: Annotated[float, Field(ge=0)]
    """... by more than this."""

    @model_validator(mode="after")
    def _improves_is_judged(self) -> Self:
        if self.improves not in self.metrics:
            raise ValueError(
                f"nightly.improves `{self.improves}` is none of nightly.metrics: {', '.join(self.metrics)}"
            )
        return self


class Sweep(Section):
    cross: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    """Dotted keys of params.yaml and their values; a sweep runs every combination as a DVC experiment."""


class Params(Section):
    """All of params.yaml."""

    seed: Annotated[int, Field(ge=0)]
    scale: Literal[2, 4]
    data: Data
    crop: Crop
    pack: Pack
    degradation: Degradation
    atd: Atd
    unet: Unet
    diffusion: Diffusion
    uncertainty: Uncertainty
    train: Train
    train_atd: AtdRecipe
    train_unet: UnetRecipe
    evaluate: Evaluate
    jobs: Jobs
    nightly: Nightly
    sweep: Sweep

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        unet_step = self.scale * 2 ** (len(self.unet.channel_mult) - 1)
        for name, patch, step in (
            ("train_atd", self.train_atd.patch, self.scale),
            ("train_unet", self.train_unet.patch, unet_step),
        ):
            if patch % step or patch > self.crop.size:
                raise ValueError(
                    f"{name}.patch {patch} must be a multiple of {step}, at most crop.size {self.crop.size}"
                )
        return self

    @model_validator(mode="after")
    def _branches_have_a_mix(self) -> Self:
        if self.unet.branches == 2 and self.uncertainty.variant == "isotropic":
            raise ValueError("unet.branches is 2, but uncertainty.variant `isotropic` has no map to mix them by: use 1")
        return self

    @model_validator(mode="after")
    def _edge_weights_are_at_hand(self) -> Self:
        path = self.uncertainty.edge_weights
        if self.uncertainty.edges == "dexined" and path and not Path(path).is_file():
            raise ValueError(f"uncertainty.edge_weights: {path}: no such file: fetch kornia's DexiNed, or use sobel")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.atd.schedule == "x2_then_x4" and self.scale != 4:
            raise ValueError(f"atd.schedule `x2_then_x4` needs scale 4, not {self.scale}: set atd.schedule: direct_x4")
        if self.atd.schedule == "x2_then_x4" and self.train.init:
            raise ValueError("atd.schedule `x2_then_x4` and train.init both say what ×4 starts from: set direct_x4")
        return self


S = TypeVar("S", bound=Section)


def parse(record: type[S], values: Any, where: str) -> S:
    """Builds a record from plain values; a `ConfigError` names `where`, the path of each wrong key and the remedy."""
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(where, e) for e in error.errors())) from None


def _describe(where: str, error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key `{path}`: correct its spelling or remove it"
    if error["type"] == "missing":
        return f"{where}: key `{path}` is missing: add it"
    message = error["msg"].removeprefix("Value error, ")
    return (
        f"{where}: `{path}` = {error['input']!r}: {message}"
        if path and not isinstance(error["input"], dict)
        else f"{where}: {message}"
    )


def load_params(path: str | Path = "params.yaml") -> Params:
    """Reads the settings file. Raises `ConfigError` in one line for a missing file, broken YAML or any wrong key."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file: run the command in the project's folder") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return parse(Params, values, str(path))
