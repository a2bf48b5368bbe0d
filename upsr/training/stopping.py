"""SIGTERM and SIGINT ask a training to save and leave, in all its processes after the same step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """The signal that asked the training to end, 0 while none did."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.number = 0
        # Hosts ask each other beside the GPUs, which need not have ended the step for it.
        self._hosts: Any = dist.new_group(backend="gloo") if accelerator.num_processes > 1 else None

    def agreed(self) -> int:
        """The same answer in every process: what any of them was told."""
        if self._hosts is None:
            return self.number
        number = torch.tensor(self.number)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._hosts)
        return int(number)


@contextmanager
def stop_signal(accelerator: Accelerator) -> Iterator[Stop]:
    """Notes a signal instead of obeying it, until the block ends."""
    stop = Stop(accelerator)

    def handle(number: int, _: object) -> None:
        stop.number = number

    before = {s: signal.signal(s, handle) for s in SIGNALS}
    try:
        yield stop
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def leave_signals_to_the_training(_: int) -> None:
    """A reader that a signal to the whole group ended would take the training with it before it has saved."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
