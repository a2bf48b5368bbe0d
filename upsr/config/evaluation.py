"""Records of what is measured and how nightly figures are judged: `evaluate`, `nightly`."""

from typing import Annotated, Literal, Self

from pydantic import Field, HttpUrl, model_validator

from upsr.config.section import Positive, Section


class Evaluate(Section):
    """What the stage `evaluate` measures, and how."""

    benchmarks: tuple[str, ...]
    """Folders with `HR/` and `LRx4/`: names below data/benchmarks, or paths; unavailable ones are reported as
    absent. `holdout` is made from data.holdout."""
    protocol: Literal["basicsr", "upsr"]
    """Border left out of PSNR and SSIM: `scale` pixels (`basicsr`) or none (`upsr`). Both use Y of 8-bit images."""
    metrics: tuple[str, ...]
    """pyiqa names of the metrics measured besides PSNR and SSIM."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Seeds of the noise that sampling starts from, independent of the training's `seed`. An image's figures are the
    means over all seeds; its shown result, and the nightly evaluation, have the first."""
    tile: Annotated[int, Field(ge=16)]
    """Side of a tile in LR pixels; larger needs more memory."""
    workers: Positive
    """Number of processes, assigned to the GPUs in rotation; each loads the networks. Figures do not depend on it."""


class Judged(Section):
    """How one metric is judged, between two nights or two models on the same images."""

    better: Literal["higher", "lower"]
    """Direction in which the metric improves."""
    tolerance: Annotated[float, Field(ge=0)]
    """Largest loss that is no harm, and largest difference that is no drift, in units of the metric."""


class Nightly(Section):
    """How the nightly evaluation judges the champion and the candidate."""

    metrics: Annotated[dict[str, Judged], Field(min_length=1)]
    """Judged metrics by name. Each must be measured (`evaluate.metrics`), and have a value for every image."""
    improves: str
    """Metric that a candidate must improve, as a mean over the benchmarks, to become champion."""
    by: Annotated[float, Field(ge=0)]
    """Gain in `improves` that a candidate must exceed, and that must not be chance."""
    webhook: HttpUrl | None
    """http or https address that a failed night is posted to, as JSON with `name`, `outcome`, `reasons`; null: none. It
    is no place for a password: MLflow and the report page show all settings."""

    @model_validator(mode="after")
    def _improves_is_judged(self) -> Self:
        if self.improves not in self.metrics:
            raise ValueError(
                f"nightly.improves `{self.improves}` is not in nightly.metrics: choose one of {', '.join(self.metrics)}"
            )
        return self
