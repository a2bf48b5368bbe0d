"""What the flows run and where: `jobs`, `sweep`."""

from typing import Annotated, Any

from pydantic import Field

from upsr.config.section import Section


class Jobs(Section):
    """Where the flows run trainings and evaluations."""

    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """Ids as CUDA_VISIBLE_DEVICES takes them, one job on each at a time; null: the GPUs found, and where there is
    none, one job at a time."""
    cluster: str | None
    """Address of a Ray cluster (`HOST:6379`) that sweeps and nights are spread over; null: this machine alone."""


class Sweep(Section):
    cross: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    """Dotted keys of params.yaml and their values; a sweep runs every combination as a DVC experiment."""
