"""`degradation`: the ranges that Real-ESRGAN's second-order pipeline draws from."""

from typing import Annotated

from pydantic import AfterValidator, Field

from upsr.config.section import Pair, Positive, Probability, Section, ascending


def _odd(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] % 2 == 0 or pair[1] % 2 == 0:
        raise ValueError(f"{list(pair)}: a kernel's side must be odd")
    return pair


def _some(shares: tuple[float, ...]) -> tuple[float, ...]:
    if sum(shares) <= 0:
        raise ValueError("at least one share must be above 0")
    return shares


Probabilities3 = Annotated[tuple[Probability, Probability, Probability], AfterValidator(_some)]
Probabilities6 = Annotated[
    tuple[Probability, Probability, Probability, Probability, Probability, Probability], AfterValidator(_some)
]
Quality = Annotated[float, Field(ge=1, le=100)]


class Blur(Section):
    probability: Probability
    kernel_size: Annotated[tuple[Positive, Positive], AfterValidator(ascending), AfterValidator(_odd)]
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
    jpeg: Annotated[tuple[Quality, Quality], AfterValidator(ascending)]
    """JPEG quality."""


class Degradation(Section):
    first: Round
    second: Round
    final_sinc: Probability
    plain: Probability
    """Share of samples that are spared all of it and shrunk by MATLAB's bicubic alone."""
    usm: bool
    """Sharpen the HR target first (off in UPSR)."""
