"""Training with little memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from upsr.models.atd import Layer
from upsr.models.unet import Block
from upsr.training.state import TrainingError


def recompute_activations(network: nn.Module) -> None:
    """Makes each layer of ATD and each block of the UNet store only its inputs and recompute the rest for the gradients
    (Chen et al., arXiv 1604.06174). No random state is kept, since the networks draw nothing at random."""
    for module in network.modules():
        if isinstance(module, Layer | Block):
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )


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
