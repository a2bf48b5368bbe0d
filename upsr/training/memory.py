"""Training where memory is short."""

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
    """Has each layer of ATD and each block of the UNet keep its inputs alone, and compute the rest again when the
    gradients are made (Chen et al., arXiv 1604.06174). The networks draw nothing at random."""
    for module in network.modules():
        if isinstance(module, Layer | Block):
            module.forward = partial(  # type: ignore[method-assign]
                checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False
            )


@contextmanager
def memory_errors_in_one_line(section: str, micro_batch: int, patch: int) -> Iterator[None]:
    """Says which batch did not fit and which key of `section` to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory with {micro_batch} patches of {patch}×{patch} at a time: lower {section}.micro_batch (the "
            f"batch stays what it is), set train.checkpointing: true, or lower {section}.patch"
        ) from None
