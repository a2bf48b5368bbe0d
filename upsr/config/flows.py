"""Records of the flows, which run training and evaluation jobs: `jobs`, `sweep`."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from upsr.config.section import Section


class Jobs(Section):
    """Where the flows run training and evaluation jobs."""

    devices: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """GPU ids as in CUDA_VISIBLE_DEVICES, one job at a time on each item. A training uses all GPUs of its item, such as
    "0,1,2,3". null: each GPU found is an item; without a GPU, one job at a time."""
    cluster: str | None
    """Address of a Ray cluster (`HOST:6379`) that runs the jobs of sweeps and nightly runs; null: this machine only."""

    @model_validator(mode="after")
    def _a_gpu_is_in_one_item(self) -> Self:
        gpus = ",".join(self.devices or ()).split(",")
        if twice := sorted({gpu for gpu in gpus if gpus.count(gpu) > 1}):
            raise ValueError(f"jobs.devices names {', '.join(twice)} twice, and two jobs would share it: remove one")
        return self


class Sweep(Section):
    """The experiments of a sweep."""

    cross: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    """Dotted keys of params.yaml and their values; a sweep runs every combination as a DVC experiment."""
