"""Records of `degradation`: the ranges that Real-ESRGAN's second-order degradation draws from (arXiv 2107.10833)."""

from typing import Annotated

from pydantic import AfterValidator, Field

from upsr.config.section import Pair, Positive, Probability, Section, ascending


def _odd(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] % 2 == 0 or pair[1] % 2 == 0:
        raise ValueError(f"{list(pair)}: the sides of a kernel must be odd")
    return pair


def _positive_sum(shares: tuple[float, ...]) -> tuple[float, ...]:
    if sum(shares) <= 0:
        raise ValueError("at least one share must be above 0")
    return shares


Probabilities3 = Annotated[tuple[Probability, Probability, Probability], AfterValidator(_positive_sum)]
Probabilities6 = Annotated[
    tuple[Probability, Probability, Probability, Probability, Probability, Probability], AfterValidator(_positive_sum)
]
Quality = Annotated[float, Field(ge=1, le=100)]


class Blur(Section):
    """Blur kernels, one drawn per sample."""

    probability: Probability
    """Share of samples that are blurred."""
    kernel_size: Annotated[tuple[Positive, Positive], AfterValidator(ascending), AfterValidator(_odd)]
    """Smallest and largest side of a kernel in pixels, both odd."""
    kinds: Probabilities6
    """Relative shares of the Gaussian kernels: isotropic, anisotropic, generalised isotropic, generalised anisotropic,
    plateau isotropic, plateau anisotropic."""
    sinc: Probability
    """Share of sinc kernels (ringing) among the blurred samples; the others get one of `kinds`."""
    sigma: Pair
    """Range of the Gaussian standard deviation in pixels."""
    generalized_beta: Pair
    """Range of the generalised Gaussians' exponent β; above 1 is flatter at the centre, below 1 more pointed."""
    plateau_beta: Pair
    """Range of the plateau kernels' exponent β, of 1 / (1 + (d²)^β); larger gives a steeper edge."""


class Resize(Section):
    """Random resizing, one factor per batch."""

    up_down_keep: Probabilities3
    """Relative shares of batches that are enlarged, shrunk, and kept at their size."""
    range: Pair
    """Smallest and largest resize factor; 1 is the HR size in the first round and the LR size in the second."""


class Noise(Section):
    """Gaussian or Poisson noise, one kind per batch, its strength per sample."""

    gaussian: Probability
    """Share of batches with Gaussian noise; the others get Poisson noise."""
    sigma: Pair
    """Range of the Gaussian standard deviation on the 0..255 scale."""
    poisson_scale: Pair
    """Range of the factor on the Poisson noise; larger is noisier."""
    gray: Probability
    """Share of samples whose noise is the same in all three channels."""


class Round(Section):
    """One of the two rounds of the second-order degradation."""

    blur: Blur
    """Blur, the first operation of the round."""
    resize: Resize | None
    """Resizing, after the blur; null: none, the image keeps its size until the next resize."""
    noise: Noise
    """Noise, after the resizing."""
    jpeg: Annotated[tuple[Quality, Quality], AfterValidator(ascending)]
    """Range of the JPEG quality, within 1..100; larger compresses less."""


class Degradation(Section):
    """Real-ESRGAN's second-order degradation of HR patches."""

    first: Round
    """First round: the HR image is blurred, resized, made noisy and JPEG-compressed."""
    second: Round
    """Second round, on the result of the first. The final resize to LR size comes before or after its JPEG step."""
    final_sinc: Probability
    """Share of samples with a sinc filter (ringing) after the final resize."""
    plain: Probability
    """Share of samples that skip both rounds and are only shrunk by MATLAB's bicubic interpolation."""
    usm: bool
    """Sharpen the HR target by unsharp masking, and degrade the sharpened image (off in UPSR)."""
