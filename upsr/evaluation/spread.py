"""Work spread over processes, with the same results as in one."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from upsr.allocator import keep_freed_memory

Job = TypeVar("Job")
Result = TypeVar("Result")


class SpreadError(OSError):
    """A process that died at its work."""


def spread(
    open_work: Callable[[torch.device], Callable[[Job], Result]],
    jobs: Sequence[Job],
    workers: int,
    devices: Sequence[torch.device],
) -> Iterator[Result]:
    """The results of `jobs` in their order, worked on by `workers` processes; with 1, by this one.

    `open_work(device)` is called once a process, with the `devices` in turn. It is sent there: neither it nor a job may
    hold what cannot be pickled. Every process computes with one thread, since a sum over pixels
    depends on how many threads share it: so the figures are the same to the last bit for any number of processes.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        with _one_thread():
            yield from map(open_work(devices[0]), jobs)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for number in range(workers):
        queue.put(devices[number % len(devices)])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(open_work, queue))
    try:
        yield from pool.map(_work, jobs)
    except BrokenProcessPool:
        raise SpreadError(
            "a process died while evaluating, perhaps for want of memory: use fewer workers or a smaller tile"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def all_devices() -> list[torch.device]:
    """All GPUs, or the CPU where there is none."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]


_here: dict[str, Any] = {}  # what this process works with


def _begin(open_work: Callable[[torch.device], Any], queue: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    _here.update(open=open_work, device=queue.get())


def _work(job: Any) -> Any:
    if "work" not in _here:  # not in `_begin`: what an initializer raises is lost
        _here["work"] = _here["open"](_here["device"])
    return _here["work"](job)


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its processes to end: they would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
