"""How the C library holds the memory that networks on the CPU use over and over."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Has this process keep what it frees, for the next layer, at the price of a somewhat higher peak.

    glibc returns large blocks to the kernel at once, which clears the pages anew for the layer after: half of the time
    of inference on a CPU. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
