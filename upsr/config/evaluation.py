"""What is measured and how it is judged from night to night: `evaluate`, `nightly`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from upsr.config.section import Positive, Section


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
