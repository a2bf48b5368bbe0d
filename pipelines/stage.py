"""What every stage script shares: the settings of its process, and how it ends when the user made a mistake."""

import os
import signal
import sys
from collections.abc import Callable

from upsr.allocator import keep_freed_memory


def run(main: Callable[[], None]) -> None:
    """Runs a stage. A mistake of the user's ends in one line and exit code 2; UPSR_DEBUG=1 shows the traceback."""
    # A cancelled stage leaves through its `finally`s, so that MLflow learns of it; a training installs its own handler.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    keep_freed_memory()
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("UPSR_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
