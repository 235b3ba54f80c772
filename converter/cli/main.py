"""Entry points, exit codes, and how an error reaches a person: one line on standard error, never a traceback.

Exit codes: 0 done, 1 a comparison failed, 2 usage, 3 input rejected, 4 a comparison is inconclusive, 5 internal or a
disk that fails, 128 + n stopped by signal n.
"""

from __future__ import annotations

import gc
import io
import json
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NoReturn

import click

from .._version import __version__
from ..errors import ConverterError, as_flags, explained, printable
from .convert import convert
from .diff import diff
from .doctor import doctor
from .extract_lora import extract_lora
from .generate import generate
from .init_from_dit import init_from_dit
from .inspect import inspect
from .merge_lora import merge_lora
from .new_family import new_family
from .options import Group
from .output import discard_output, kept_result, lost_output
from .parity import parity
from .report import report
from .revert import revert


@click.group(cls=Group, no_args_is_help=False)
@click.version_option(__version__, prog_name="pixart")
def pixart() -> None:
    """Tools for PixArt, SANA and DiT checkpoints: convert them, prove the result, look into them, compare them."""


pixart.add_command(convert, "convert")
pixart.add_command(diff, "diff")
pixart.add_command(doctor, "doctor")
pixart.add_command(extract_lora, "extract-lora")
pixart.add_command(generate, "generate")
pixart.add_command(inspect, "inspect")
pixart.add_command(init_from_dit, "init-from-dit")
pixart.add_command(merge_lora, "merge-lora")
pixart.add_command(new_family, "new-family")
pixart.add_command(revert, "revert")
pixart.add_command(parity, "parity")
pixart.add_command(report, "report")


def main() -> None:
    """The `pixart` command."""
    _process(pixart, "pixart")


def convert_main() -> None:
    """The `convert-pixart` command: `pixart convert` under the name that its users know."""
    _process(convert, "convert-pixart")


def _process(command: click.Command, name: str) -> NoReturn:
    """A command as a process of its own, which does not search for garbage what it is about to use or to leave: torch
    and diffusers are some million objects, and looking through them takes seconds."""
    gc.set_threshold(100_000)
    # Threads that NumPy starts and nothing here gives work to: they wait by spinning. Torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = run(command, name, sys.argv[1:])
    gc.freeze()
    sys.exit(code)


def run(command: click.Command, name: str, arguments: list[str]) -> int:
    """Carry out a command line and return the exit code."""
    # What cannot be encoded for this terminal is escaped; a lost character is better than no result.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    meta: dict[str, Any] = {}
    code = _execute(command, name, arguments, meta)
    if lost := lost_output(meta):
        why = lost.error.strerror or str(lost.error)
        if isinstance(lost.error, BrokenPipeError):
            pass  # its reader has gone, and wanted no more
        elif lost.result and not code:
            return _fail(name, f"done, but the result could not be printed: standard output: {why}", 5, [])
        else:
            _print_error(
                f"{name}: warning: some output was lost: standard output: {why}; the exit code is the result's"
            )
    return code


def _execute(command: click.Command, name: str, arguments: list[str], meta: dict[str, Any]) -> int:
    """The exit code of a command; every error is told. `meta` becomes that of its context."""
    try:
        # Not `command.main`: it has opinions of its own on interrupts and broken pipes.
        with command.make_context(name, list(arguments), obj=_redacted(shlex.join([name, *arguments]))) as context:
            try:
                command.invoke(context)
            finally:
                meta |= context.meta
        if sys.stdout:  # None where it was closed before the start
            sys.stdout.flush()
        return 0
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except click.ClickException as error:
        asked = getattr(error, "ctx", None)
        hint = f" (see {asked.command_path} --help)" if asked else ""
        return _fail(name, f"{error.format_message().removesuffix('.')}{hint}", 2, arguments)
    except BrokenPipeError:
        discard_output()  # the reader of our output has gone, and nothing more can be said to it
        return 0
    except KeyboardInterrupt as error:
        left = getattr(error, "left", "nothing half-finished was left behind")
        words, code = f"{str(error) or 'interrupted'}; {left}", int(getattr(error, "exit_code", 130))
        return _fail(name, words, code, arguments, kept=kept_result(meta))
    except (Exception, SystemExit) as error:  # the second out of a family's code: it is no result
        if isinstance(error, OSError):
            discard_output()
        words, code = explained(error)
        expected = isinstance(error, ConverterError | OSError)
        words = words if expected else f"{words} (PIXART_DEBUG=1 shows where)"
        return _fail(name, words, code, arguments, kept=kept_result(meta))


def _fail(name: str, message: str, code: int, arguments: list[str], kept: Mapping[str, Any] | None = None) -> int:
    # Whatever was quoted from the command line or a file, what reaches the terminal is one line of plain text.
    line = printable(" ".join(as_flags(_redacted(message)).split()), 4000)
    _print_error(f"{name}: error: {line}")
    if "--json" in arguments and sys.stdout:
        try:
            print(json.dumps({"ok": False, "exit_code": code, "error": line, **(kept or {})}), flush=True)
        except OSError:
            discard_output()  # the exit code says it
    return code


def _redacted(text: str) -> str:
    """Without what is secret in a URL; a file from the hub may repeat our token, and be quoted."""
    if "://" not in text and "huggingface_hub" not in sys.modules:
        return text
    from ..hub.redaction import redacted

    return redacted(text)


def _print_error(line: str) -> None:
    if sys.stderr:  # None where it was closed before the start: `print` would take standard output
        with suppress(OSError):
            print(line, file=sys.stderr)
