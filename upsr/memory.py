"""How much memory is free."""

from pathlib import Path

import torch

LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # of a container


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate on a device, as the driver or the kernel estimates it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else "max"
    return free if limit == "max" else min(free, int(limit) - int(USED.read_text()))
