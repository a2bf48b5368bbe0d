"""Records of the flows, which run training and evaluation jobs: `jobs`, `sweep`."""

from typing import Annotated, Any

from pydantic import Field

from upsr.config.section import Section


class Jobs(Section):
    """Where the flows run training and evaluation jobs."""

    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """GPU ids as in CUDA_VISIBLE_DEVICES, one job at a time on each. null: all GPUs found; without a GPU, one job at a
    time."""
    cluster: str | None
    """Address of a Ray cluster (`HOST:6379`) that runs the jobs of sweeps and nightly runs; null: this machine only."""


class Sweep(Section):
    """The experiments of a sweep."""

    cross: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    """Dotted keys of params.yaml and their values; a sweep runs every combination as a DVC experiment."""
