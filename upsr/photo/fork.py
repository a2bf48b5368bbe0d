"""libvips and forks: its threads do not exist in a forked child, which would wait for them for ever."""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from upsr.files import ImageError

P = ParamSpec("P")
R = TypeVar("R")

used_by: set[int] = set()  # ids of processes


def not_after_fork(function: Callable[P, R]) -> Callable[P, R]:
    """Raises `ImageError` where a parent of this process has used libvips: the call would never return."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if used_by - {os.getpid()}:
            raise ImageError("images were read before this process was forked: use the start method `spawn`")
        used_by.add(os.getpid())
        return function(*args, **kwargs)

    return guarded
