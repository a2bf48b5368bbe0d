"""Training with little memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from upsr.training.state import TrainingError


def recompute_activations(network: nn.Module) -> None:
    """Makes each `recomputable` module (a layer of ATD, a block of the UNet) store only its inputs and recompute the
    rest for the gradients (Chen et al., arXiv 1604.06174). The networks draw nothing at random, so no random state is
    kept."""
    for module in network.modules():
        if getattr(module, "recomputable", False):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def memory_errors_in_one_line(section: str, micro_batch: int, patch: int) -> Iterator[None]:
    """Turns out-of-memory errors into a `TrainingError` that names the batch and the keys to lower in `section`."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"{section}: out of memory with {micro_batch} patches of {patch}×{patch} at a time: "
            f"lower {section}.micro_batch (the batch stays the same), set train.checkpointing: true, "
            f"or lower {section}.patch"
        ) from None
