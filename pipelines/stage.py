"""The entry point of every stage script: SIGTERM ends it properly, and errors are one line."""

import os
import signal
import sys
from collections.abc import Callable

from upsr.files import one_line


def _print(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)


def run(main: Callable[[], None], tell: Callable[[str], None] = _print) -> None:
    """Runs a stage. A user error is told in one line and exits with code 2; UPSR_DEBUG=1 shows the traceback."""
    # SIGTERM raises, so that `finally` blocks end the MLflow run. A training installs its own handler.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("UPSR_DEBUG"):
            raise
        tell(one_line(error))
        raise SystemExit(2) from None
