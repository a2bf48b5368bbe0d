"""Training with little memory, and with all that there is."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from upsr.config import MicroBatch, Recipe
from upsr.memory import free_memory
from upsr.training.pairs import Objective
from upsr.training.state import TrainingError

TRIAL_SHARE = 0.85  # of the memory, for a trial: AdamW's moments and the validation come later


def recompute_activations(network: nn.Module) -> None:
    """Makes each `recomputable` module (a layer of ATD, a block of the UNet) store only its inputs and recompute the
    rest for the gradients (Chen et al., arXiv 1604.06174). The networks draw nothing at random, so no random state is
    kept."""
    for module in network.modules():
        if getattr(module, "recomputable", False):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)


def micro_batch_size(recipe: Recipe, network: nn.Module, objective: Objective, accelerator: Accelerator) -> int:
    """The samples of one forward pass, the same in every process: a divisor of each process's share of the batch.

    It is the largest one that is at most `micro_batch`; for `auto`, the largest one whose forward and backward pass
    every process's device has memory for, by trial with the bare `network`. If none fits, it is 1. Raises
    `TrainingError` where the batch has no equal shares.
    """
    share, rest = divmod(recipe.batch, accelerator.num_processes)
    if rest:
        raise TrainingError(
            f"batch {recipe.batch} is not a multiple of {accelerator.num_processes} processes: change one"
        )
    sizes = [n for n in range(share, 0, -1) if share % n == 0]
    if recipe.micro_batch != "auto":
        return next(n for n in sizes if n <= recipe.micro_batch)
    hr = torch.zeros(share, 3, recipe.patch, recipe.patch, dtype=torch.uint8, device=accelerator.device)
    drawn = objective.draw(hr, (0, 0), 0)
    objective.pairs.pool.load_state_dict()  # a trial leaves no pairs
    with _trial_memory(accelerator):
        size = next((n for n in sizes if _fits([x[:n] for x in drawn], network, objective, accelerator)), 1)
    return int(min(gather_object([size])))


def _fits(batch: list[Tensor], network: nn.Module, objective: Objective, accelerator: Accelerator) -> bool:
    """True if a forward and a backward pass succeed. An error other than of memory recurs in the first step."""
    try:
        with accelerator.autocast():
            loss, _ = objective.loss(network, *batch)
        loss.backward()
    except (RuntimeError, MemoryError):
        return False
    finally:
        network.zero_grad(set_to_none=True)
    return True


@contextmanager
def _trial_memory(accelerator: Accelerator) -> Iterator[None]:
    """Bounds memory within the block. On a CPU this makes an error of what the kernel would end the process for."""
    device = accelerator.device
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(TRIAL_SHARE, device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            torch.cuda.empty_cache()
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    bound = used + int(TRIAL_SHARE * free_memory(device) / accelerator.num_processes)
    soft = bound if before[0] == resource.RLIM_INFINITY else min(bound, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def memory_errors_in_one_line(section: str, micro_batch: MicroBatch, patch: int) -> Iterator[None]:
    """Turns out-of-memory errors into a `TrainingError` that names the batch and the keys to lower in `section`."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"{section}: out of memory with micro_batch: {micro_batch} and patches of {patch}×{patch}: "
            f"set {section}.micro_batch to a lower number (the batch stays the same), set train.checkpointing: true, "
            f"or lower {section}.patch"
        ) from None
