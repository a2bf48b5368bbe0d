"""The `upsr` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from upsr.commands import (
    app,
    bench,
    compare,
    degrade,
    doctor,
    evaluate,
    export,
    import_official,
    missing,
    scale,
    upscale,
)
from upsr.files import one_line


class Version(argparse.Action):
    """Prints the version. It is read on use, because reading it takes time at every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import upsr

        print(f"upsr {upsr.__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(prog="upsr", description="Uncertainty-guided diffusion super-resolution.")
    top.add_argument("--version", action=Version, nargs=0, help="print the version")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error (same as UPSR_DEBUG=1)")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (upscale, app, evaluate, compare, degrade, doctor, bench, scale, import_official, export):
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command. A user error prints one line and exits with code 2; Ctrl-C exits with 130."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if options.debug or os.environ.get("UPSR_DEBUG"):
            raise
        text = missing(error) if isinstance(error, ModuleNotFoundError) else one_line(error)
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
