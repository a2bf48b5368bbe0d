"""The chain and where its noise goes: `diffusion`, `uncertainty`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Probability, Section


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
