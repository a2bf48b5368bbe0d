"""What training shows: rows of log.csv, a progress bar or plain lines, speed and memory."""

import csv
import resource
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

from upsr.files import atomic, full_disk_in_one_line


class Log:
    """Writes log.csv and prints progress: a bar on a terminal, else plain lines. Used by the main process only."""

    def __init__(self, path: Path, start: int, steps: int, device: torch.device) -> None:
        self.path, self.steps, self.device = path, steps, device
        _keep_rows(path, start)
        self.bar = tqdm(initial=start, total=steps, unit="step", disable=None)
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """Advances the bar by one step."""
        self.bar.update()

    def row(self, step: int, row: dict[str, float], images: int) -> dict[str, float]:
        """Writes and prints a row; `images` is the number since the last one. Returns speed and memory by name."""
        elapsed, cpu = time.perf_counter() - self._clock, time.process_time() - self._cpu
        self._clock, self._cpu = time.perf_counter(), time.process_time()
        _append(self.path, step, row)
        pace = {
            "images_per_second": images / elapsed,
            "system/memory_mb": memory_mb(self.device),
            "system/cpu_cores": cpu / elapsed,
        }
        self._show(step, row | pace)
        return pace

    def close(self) -> None:
        """Closes the bar; the rows are already on disk."""
        self.bar.close()

    def _show(self, step: int, row: dict[str, float]) -> None:
        """On a terminal beside the bar, else on its own line."""
        values: dict[str, object] = {k: f"{row[k]:.4g}" for k in ("loss", "lr", "grad_norm")}
        values |= {"img/s": f"{row['images_per_second']:.3g}", "memory": f"{row['system/memory_mb'] / 1024:.1f} GB"}
        if self.bar.disable:
            text = "  ".join(f"{k} {v}" for k, v in values.items())
            print(f"step {step}/{self.steps}  {text}", flush=True)
        else:
            self.bar.set_postfix(values)


def memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the CUDA device, or of this process where the device is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _keep_rows(path: Path, start: int) -> None:
    """Rewrites the file with its rows up to step `start`. Always a new file: the old one may link into DVC's cache.

    A full disk may have cut the last row, or the header where there is no row yet.
    """
    rows: list[list[str]] = []
    if start and path.is_file():
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        rows = [row for row in rows if len(row) == len(header) and int(row[0]) <= start]
        rows = [header, *rows] if rows else []
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _append(path: Path, step: int, row: dict[str, float]) -> None:
    new = path.stat().st_size == 0
    with full_disk_in_one_line(path), path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *row])
        writer.writerow([step, *row.values()])
