"""One noise field for an image of any size; any part of it can be drawn alone."""

import numpy as np
import torch
from torch import Tensor

BLOCK = 64  # side of the squares in which the field is drawn


def field(seed: int, t: int, top: int, left: int, height: int, width: int) -> Tensor:
    """A part of the standard normal field of (seed, t): (1, 3, height, width) at (top, left), always the same values.

    It is drawn on the CPU in blocks, each with its own generator, so tiles of any size are cut from one field.
    """
    rows = range(top // BLOCK, -(-(top + height) // BLOCK))
    columns = range(left // BLOCK, -(-(left + width) // BLOCK))
    blocks = torch.cat([torch.cat([_block(seed, t, y, x) for x in columns], dim=2) for y in rows], dim=1)
    y0, x0 = top - rows[0] * BLOCK, left - columns[0] * BLOCK
    return blocks[None, :, y0 : y0 + height, x0 : x0 + width]


def _block(seed: int, t: int, y: int, x: int) -> Tensor:
    state = np.random.SeedSequence([seed, t, y, x]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    return torch.randn(3, BLOCK, BLOCK, generator=generator)
