"""Records of the diffusion process and of its noise weight w: `diffusion`, `uncertainty`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Probability, Section


class Diffusion(Section):
    """The schedule is √η_t = √η_1 · (e/√η_1)^(((t−1)/(T−1))^p) with √η_1 = min(m/κ, m, √0.001)."""

    steps: Annotated[int, Field(gt=0, le=10000)]
    """T: number of diffusion timesteps."""
    kappa: Annotated[float, Field(gt=0, le=1000)]
    """κ: noise strength; x_t has the noise standard deviation κ √η_t w, for images in [-1, 1]."""
    min_noise: Annotated[float, Field(gt=0, lt=1)]
    """m: upper bound of √η_1, and of κ √η_1, the noise of the first timestep."""
    sqrt_eta_end: Annotated[float, Field(gt=0, lt=1)]
    """e: √η_T, the end of the schedule."""
    power: Annotated[float, Field(gt=0)]
    """p: exponent of the schedule; smaller makes η_t rise earlier in t."""
    predict: Literal["x0", "epsilon"]
    """What the network predicts: the clean image x0 (the paper) or the noise ε."""
    sampler_eta: Probability
    """Stochasticity of the sampler. 0: deterministic (DDIM, the paper); 1: the posterior q(x_{t−1} | x_t, x̂0, y)."""


class Dynamic(Section):
    """What `variant: dynamic` adds to `edge_frequency`."""

    source: Literal["x_t", "x0_hat"]
    """Image that the maps are recomputed from, mixed with y↑: the noisy x_t or its clean estimate x̂0."""
    smoothing: Annotated[float, Field(ge=0, lt=1)]
    """λ: share of the previous maps that a recomputation keeps; larger changes w more slowly."""
    intervals: tuple[Probability, Probability, Probability]
    """Interval between recomputations in the noisy, middle and last third of the chain, as a share of T; at least one
    timestep."""


class Uncertainty(Section):
    """Which variant computes the noise weight w, and its settings."""

    variant: Literal["isotropic", "residual", "edge_frequency", "dynamic"]
    """How w is computed. `isotropic`: w = 1 (ResShift); `residual`: from |ŷ − y↑| (the paper); `edge_frequency`: from
    edges and high frequencies of y; `dynamic`: the same, recomputed during sampling."""
    floor: Annotated[float, Field(gt=0, lt=1)]
    """b: smallest noise weight; w lies in [b, 1]."""
    invert: bool
    """Use 1 − W for W: less noise where the variant would put more (as arXiv 2410.01540 does at edges)."""
    normalise: Literal["none", "energy"]
    """`energy` scales κ, so that each variant has the noise energy of E[w²] = `energy`. Its own E[w²], over all pixels
    and images, is measured on training pairs."""
    energy: Annotated[float, Field(gt=0, le=1)]
    """E[w²] that `normalise: energy` gives every variant, and that the scale of the network's input assumes (the paper:
    0.3). Without `normalise`, on photographs: `isotropic` 1, `edge_frequency` 0.30, `residual` 0.22."""
    lr_scale: Annotated[float, Field(gt=0)]
    """Learning rate of what the variant learns (`mix`), as a multiple of `train_unet.lr`."""
    psi_max: Annotated[float, Field(gt=0)]
    """`residual`: ψ_max, the value of ψ = |ŷ − y↑| / 2 from which w is 1; smaller makes more pixels noisy."""
    channels: Literal["rgb", "gray"]
    """`residual`: one weight per channel, or one for all three from the mean of ψ."""
    edges: Literal["sobel", "dexined"]
    """`edge_frequency`, `dynamic`: the edge detector; `dexined` needs `edge_weights`."""
    edge_weights: str | None
    """Path of kornia's DexiNed checkpoint; null for `sobel`."""
    cutoff: Annotated[float, Field(gt=0)]
    """Frequency at which the high-pass filter of H passes half; 1 is the Nyquist frequency of the LR image."""
    softness: Annotated[float, Field(gt=0)]
    """Width of the high-pass filter's transition, in units of `cutoff`; at most twice `cutoff`."""
    percentile: Annotated[float, Field(gt=0, le=100)]
    """Percentile of the magnitudes that becomes 1 in E and H; larger values are clipped to 1."""
    unit: Literal["image", "training"]
    """Where `percentile` is taken: over each image (a training patch differs from the whole photograph), or over the
    training patches, so that 1 is the same magnitude in training and upscaling."""
    mix: Annotated[float, Field(gt=0, lt=1)]
    """a: share of E in W = a·E + (1−a)·H; the initial value where `learn_mix` is set."""
    learn_mix: bool
    """Train a together with the UNet."""
    dynamic: Dynamic
    """Settings that only `variant: dynamic` reads."""

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.invert and self.variant == "isotropic":
            raise ValueError(
                "uncertainty.invert is true, but the weight of `isotropic` is 1 everywhere: set it to false"
            )
        if self.edges == "dexined" and self.edge_weights is None:
            raise ValueError(
                "uncertainty.edges is `dexined`, but uncertainty.edge_weights is null: set it to the path of the "
                "weights, or use sobel"
            )
        if self.softness > 2 * self.cutoff:
            raise ValueError(
                f"uncertainty.softness {self.softness} is more than twice uncertainty.cutoff {self.cutoff}, so the "
                "filter would pass the mean brightness: lower uncertainty.softness"
            )
        return self
