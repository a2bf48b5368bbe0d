"""SIGTERM and SIGINT: training saves its state and exits, in all processes after the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """The number of the signal that asked training to stop; 0 if there was none."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.number = 0
        # Hosts communicate by gloo, so that they need not wait for the GPUs to finish the step.
        self._hosts: Any = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def agreed(self) -> int:
        """The signal number that any process got, the same in every process; 0 if there was none."""
        if self._hosts is None:
            return self.number
        number = torch.tensor(self.number)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._hosts)
        return int(number)


@contextmanager
def stop_signal(accelerator: Accelerator) -> Iterator[Stop]:
    """Records SIGTERM and SIGINT instead of exiting, until the block ends."""
    stop = Stop(accelerator)

    def handle(number: int, _: object) -> None:
        stop.number = number

    previous = {s: signal.signal(s, handle) for s in SIGNALS}
    try:
        yield stop
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)


def ignore_signals(_: int) -> None:
    """For data workers: a signal to the process group must not end them before training has saved its state."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
