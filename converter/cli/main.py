"""Entry points, exit codes, and how an error reaches a person: one line on standard error, never a traceback.

Exit codes: 0 done, 2 usage, 3 input rejected, 5 internal, 128 + n stopped by signal n.
"""

from __future__ import annotations

import json
import os
import sys

import click

from .._version import __version__
from ..errors import ConverterError, printable
from .convert import convert
from .inspect import inspect
from .options import Group


@click.group(cls=Group)
@click.version_option(__version__, prog_name="pixart")
def pixart() -> None:
    """Tools for PixArt checkpoints: convert them, look into them."""


pixart.add_command(convert, "convert")
pixart.add_command(inspect, "inspect")


def main() -> None:
    """The `pixart` command."""
    sys.exit(run(pixart, "pixart", sys.argv[1:]))


def convert_main() -> None:
    """The `convert-pixart` command: `pixart convert` under the name that its users know."""
    sys.exit(run(convert, "convert-pixart", sys.argv[1:]))


def run(command: click.Command, name: str, arguments: list[str]) -> int:
    """Carry out a command line and return the exit code."""
    try:
        code = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        return _fail(name, f"{error.format_message()}{hint}", 2, arguments)
    except ConverterError as error:
        return _fail(name, str(error), error.exit_code, arguments)
    except BrokenPipeError:
        # The reader of our output has gone; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{printable(error.filename)}: " if error.filename else ""
        return _fail(name, f"{where}{error.strerror or error}", 5, arguments)
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(name, "stopped; nothing was left behind", getattr(error, "exit_code", 130), arguments)
    except Exception as error:
        if os.environ.get("PIXART_DEBUG"):
            raise
        return _fail(
            name,
            f"internal error: {type(error).__name__}: {printable(error)} (PIXART_DEBUG=1 shows where)",
            5,
            arguments,
        )


def _fail(name: str, message: str, code: int, arguments: list[str]) -> int:
    line = " ".join(message.split())
    print(f"{name}: error: {line}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"ok": False, "exit_code": code, "error": line}))
    return code
