"""The `upsr` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from upsr.commands import bench, compare, degrade, doctor, evaluate, import_official, scale, upscale


def parser() -> argparse.ArgumentParser:
    """The command line, every option with its default."""
    top = argparse.ArgumentParser(prog="upsr", description="Uncertainty-guided diffusion super-resolution.")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (upscale, evaluate, degrade, doctor, bench, compare, scale, import_official):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command. A mistake of the user's ends in one line and exit code 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        if options.debug or os.environ.get("UPSR_DEBUG"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
