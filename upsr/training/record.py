"""Statistics of the training steps, kept on the device and read back only when they are logged."""

from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from upsr.config import Train
from upsr.training.state import TrainingError, save_state


class Record:
    """Counts of good and skipped steps, sums of values over the good ones, and the batch of the last skipped one."""

    def __init__(self, device: torch.device) -> None:
        self.good, self.bad, self.bad_in_a_row = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(3))
        self._sums: dict[str, Tensor] = {}
        self._suspect: tuple[Tensor, ...] = ()
        self._reported = 0

    def add(self, step: int, bad: Tensor, values: dict[str, Tensor], batch: tuple[Tensor, ...]) -> None:
        """Adds one step. The flag `bad`, on the device, says that it was skipped; `values` are scalars."""
        self.good, self.bad = self.good + ~bad, self.bad + bad
        self.bad_in_a_row = (self.bad_in_a_row + 1) * bad
        for name, value in {**values, "steps": torch.ones_like(bad, dtype=torch.float)}.items():
            self._sums[name] = self._sums.get(name, 0) + torch.where(bad, 0, value.detach())
        current = (torch.full_like(self.bad, step), *batch)
        previous = self._suspect or current
        self._suspect = tuple(torch.where(bad, new, old) for new, old in zip(current, previous, strict=True))

    def row(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all processes and the good steps since the last row; nan if no step was good."""
        sums, self._sums = self._sums, {}
        names = sorted(sums.keys() - {"steps"})
        means = accelerator.reduce(torch.stack([sums[name] for name in names]) / sums["steps"], "mean")
        return dict(zip(names, means.tolist(), strict=True)) | {"bad_steps": float(self.bad)}

    def check(self, folder: Path, train: Train, accelerator: Accelerator) -> None:
        """Reports newly skipped steps and saves the last one's batch.

        Raises `TrainingError` after `max_bad_steps` skipped steps in a row.
        """
        if int(self.bad) > self._reported:
            self._reported = int(self.bad)
            self._save_suspect(folder / "bad_batch.pt", accelerator)
        if self.bad_in_a_row >= train.max_bad_steps:
            raise TrainingError(
                f"{folder}: loss or gradient was not finite {int(self.bad_in_a_row)} times in a row: "
                "lower the learning rate or use train.precision: bf16; "
                "the folder keeps the last good state, and the batch in bad_batch.pt"
            )

    def _save_suspect(self, path: Path, accelerator: Accelerator) -> None:
        step, *batch = (accelerator.gather(tensor) for tensor in self._suspect)  # each process has a share
        if accelerator.is_main_process:
            save_state(path, {"step": int(step[0]), "batch": [tensor.cpu() for tensor in batch]})
            print(f"step {int(step[0])}: loss or gradient not finite: skipped; its batch is in {path}", flush=True)

    def state_dict(self) -> dict[str, Tensor | dict[str, Tensor]]:
        return {"good": self.good, "bad": self.bad, "bad_in_a_row": self.bad_in_a_row, "sums": self._sums}

    def load_state_dict(self, state: Mapping[str, Tensor | dict[str, Tensor]]) -> None:
        values = {k: v.to(self.good.device) for k, v in state.items() if isinstance(v, Tensor)}
        self.good, self.bad, self.bad_in_a_row = values["good"], values["bad"], values["bad_in_a_row"]
        self._reported = int(self.bad)
        sums = state["sums"]
        assert isinstance(sums, dict)
        self._sums = {k: v.to(self.good.device) for k, v in sums.items()}
