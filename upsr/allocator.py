"""Memory allocation of the C library, tuned for networks on the CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Makes this process reuse freed memory instead of returning it to the kernel; peak memory rises a little.

    By default glibc returns large blocks at once, and the kernel clears their pages for the next layer. That takes half
    of the inference time on a CPU. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
