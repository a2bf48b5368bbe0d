"""A training stage on all devices of its job: one process for each, started by torch's launcher as torchrun's are."""

import logging
import os
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipelines.stage import run
from upsr.config import load_params

SAVE_SECONDS = "600"  # time to save a state after a signal; torch kills a process after 30 by default
LAG_SECONDS = 5.0  # by which a process that lost its connection fails later than the one that broke it


def on_all_devices(main: Callable[[], None], section: str) -> None:
    """Runs `main` in a process for each device that the job sees; `section` of params.yaml has its batch.

    The devices are those of CUDA_VISIBLE_DEVICES, or else all GPUs. The batch is shared evenly, so a few may stay
    unused. With one device, or where torchrun started this process, `main` runs in this process. Raises `ValueError`
    with the line of the process that failed first.
    """
    if "RANK" in os.environ:
        main()
        return
    devices, batch = visible_devices(), getattr(load_params(), section).batch
    count = shares(batch)
    if count < devices:
        print(f"{section}: uses {count} of {devices} devices: batch {batch} has no {devices} equal shares", flush=True)
    if count == 1:
        main()
    else:
        _launch(main, count)


def shares(batch: int) -> int:
    """The number of devices that a batch is shared among: the most that get equal shares."""
    return max(n for n in range(1, visible_devices() + 1) if batch % n == 0)


def visible_devices() -> int:
    """The number of GPUs that this process sees; without a GPU, of the ids in CUDA_VISIBLE_DEVICES; at least 1."""
    return torch.cuda.device_count() or len(os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))


def _launch(main: Callable[[], None], count: int) -> None:
    """Runs `main` in `count` processes. The first one's output is shown, that of the others is dropped."""
    logging.disable()  # torch's own account of an ended process
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SAVE_SECONDS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // count, 1)))
    with TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="upsr",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(folder, redirects={rank: Std.ALL for rank in range(1, count)}),
        )
        try:
            elastic_launch(config, _process)(main)
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None
        except ChildFailedError as error:
            _fail(*error.get_first_failure())


def _process(main: Callable[[], None]) -> None:
    """One of the processes. It ends with the launcher: torch has the kernel send it SIGINT then."""
    try:
        run(main, tell=_hand_over)
    except RuntimeError:
        time.sleep(LAG_SECONDS)  # the launcher, which ends all after the first failure, shall see the cause first
        raise


def _hand_over(line: str) -> None:
    """Gives the launcher the line of an error."""
    get_error_handler().record_exception(ValueError(line))


def _fail(rank: int, failure: ProcessFailure) -> None:
    """Ends the launcher as the failed process ended; shows its error, or what killed it."""
    told: Any = failure.error_file_data["message"]  # a text where the process told nothing
    if not isinstance(told, dict):
        how = failure.signal_name() if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        print(f"error: process {rank} ended with {how}: run again to resume", file=sys.stderr)
    elif failure.exitcode == 2:
        raise ValueError(told["message"].partition(": ")[2])
    else:
        print(told["extraInfo"]["py_callstack"], file=sys.stderr)
    raise SystemExit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
