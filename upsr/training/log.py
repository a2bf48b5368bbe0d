"""What a person sees of a training: the rows of log.csv, the bar, and what the machine does."""

import csv
import resource
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from upsr.files import atomic


class Log:
    """log.csv, a bar on a terminal or plain lines in a log, and the pace. Only the main process has one."""

    def __init__(self, path: Path, start: int, steps: int, device: torch.device) -> None:
        self.path, self.steps, self.device = path, steps, device
        _keep_rows(path, start)
        self.bar = tqdm(initial=start, total=steps, unit="step", disable=None)
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        self.bar.update()

    def row(self, step: int, row: dict[str, float], pictures: int) -> dict[str, float]:
        """Writes and shows the row of an interval of so many pictures; -> what the machine did in it."""
        elapsed, cpu = time.perf_counter() - self._clock, time.process_time() - self._cpu
        self._clock, self._cpu = time.perf_counter(), time.process_time()
        _append(self.path, step, row)
        pace = {
            "images_per_second": pictures / elapsed,
            "system/memory_mb": memory_mb(self.device),
            "system/cpu_cores": cpu / elapsed,
        }
        self._show(step, row | pace)
        return pace

    def close(self) -> None:
        self.bar.close()

    def _show(self, step: int, row: dict[str, float]) -> None:
        """On a terminal beside the bar, in a log a line of its own."""
        values: dict[str, object] = {k: f"{row[k]:.4g}" for k in ("loss", "lr", "grad_norm")}
        values |= {"img/s": f"{row['images_per_second']:.3g}", "memory": f"{row['system/memory_mb'] / 1024:.1f} GB"}
        if self.bar.disable:
            text = "  ".join(f"{k} {v}" for k, v in values.items())
            print(f"step {step}/{self.steps}  {text}", flush=True)
        else:
            self.bar.set_postfix(values)


def memory_mb(device: torch.device) -> float:
    """The most that was held so far: on the device, or by this process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _keep_rows(path: Path, start: int) -> None:
    """Keeps the rows up to step `start`. The file is new in any case: the old one may be a link into DVC's cache."""
    rows = []
    if start and path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        rows = rows[:1] + [row for row in rows[1:] if int(row[0]) <= start]
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _append(path: Path, step: int, row: dict[str, float]) -> None:
    new = path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *row])
        writer.writerow([step, *row.values()])
