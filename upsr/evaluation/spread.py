"""Jobs spread over processes, with the same results as in one process."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from upsr.allocator import keep_freed_memory
from upsr.threads import one_thread

Job = TypeVar("Job")
Result = TypeVar("Result")


class SpreadError(OSError):
    """A worker process died."""


def spread(
    open_work: Callable[[torch.device], Callable[[Job], Result]],
    jobs: Sequence[Job],
    workers: int,
    devices: Sequence[torch.device],
) -> Iterator[Result]:
    """Yields the results of `jobs` in order, computed by `workers` processes; with 1, by this process.

    `open_work(device)` is called once per process, with the `devices` in rotation; it and the jobs are pickled. Every
    process uses one thread, because a sum over pixels depends on the number of threads. So results are bit-identical
    for any number of processes. Raises `SpreadError` where a process dies.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        with one_thread():
            yield from map(open_work(devices[0]), jobs)
        return
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    for number in range(workers):
        queue.put(devices[number % len(devices)])
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(open_work, queue))
    try:
        yield from pool.map(_work, jobs)
    except BrokenProcessPool:
        raise SpreadError(
            "evaluate: a process died, perhaps out of memory: use fewer workers or a smaller tile"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def all_devices() -> list[torch.device]:
    """All GPUs, or the CPU where there is none."""
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] or [torch.device("cpu")]


_process: dict[str, Any] = {}  # state of this worker process


def _start(open_work: Callable[[torch.device], Any], queue: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    device = queue.get()
    if device.type == "cpu":
        keep_freed_memory()
    _process.update(open=open_work, device=device)


def _work(job: Any) -> Any:
    if "work" not in _process:  # not in `_start`: errors in an initializer are lost
        _process["work"] = _process["open"](_process["device"])
    return _process["work"](job)


def _end_with_parent() -> None:
    """Ends this process when its parent is killed: it would wait for jobs forever."""
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
