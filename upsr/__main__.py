"""The `upsr` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from upsr.commands import bench, compare, degrade, doctor, evaluate, import_official, missing, scale, upscale


class Version(argparse.Action):
    """Prints the version, which is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import upsr

        print(f"upsr {upsr.__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The command line, every option with its default."""
    top = argparse.ArgumentParser(prog="upsr", description="Uncertainty-guided diffusion super-resolution.")
    top.add_argument("--version", action=Version, nargs=0, help="print the version")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (upscale, evaluate, compare, degrade, doctor, bench, scale, import_official):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command. A user's mistake ends in one line and exit code 2."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if options.debug or os.environ.get("UPSR_DEBUG"):
            raise
        text = missing(error) if isinstance(error, ModuleNotFoundError) else str(error)
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
