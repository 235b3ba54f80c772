"""Printing: a stream that fails stops no work, and finished work counts even if it cannot be reported."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import click

from ..errors import as_flags, printable

_LOST = "converter.lost_output"  # in a context's `meta`
_SO_FAR = "converter.result_so_far"  # likewise


@dataclass(frozen=True)
class LostOutput:
    """Why standard output failed, and whether the lost output was the result itself."""

    error: OSError
    result: bool


def say(line: str, *, result: bool = False, err: bool = False) -> None:
    """Print a line, at once. What cannot be printed is reported when the command is done: see `lost_output`.

    Args:
        result: it is what the command is for, and not only said of what it does.
        err: on standard error, where there is nowhere to tell a failure.
    """
    if err:
        with suppress(OSError):
            click.echo(line, err=True)
        return
    meta = click.get_current_context().meta
    if _LOST in meta and (meta[_LOST].result or not result):
        return
    try:
        if _LOST in meta:
            raise meta[_LOST].error
        if result and not sys.stdout:  # closed before the start
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        click.echo(line)
    except OSError as error:
        meta[_LOST] = LostOutput(error, result)
        discard_output()


def say_error(words: str) -> None:
    """Print an error that does not end the command, as one that does is printed."""
    say(f"{click.get_current_context().find_root().info_name}: error: {printable(as_flags(words), 4000)}", err=True)


def print_json(content: Any) -> None:
    """Print a result for programs."""
    say(json.dumps(content, ensure_ascii=True), result=True)


def result_so_far(content: dict[str, Any]) -> None:
    """Keep what was done before the error that ends the command: programs get it together with that."""
    click.get_current_context().meta[_SO_FAR] = content


def kept_result(meta: dict[str, Any]) -> dict[str, Any]:
    """What was kept of a command, by its context's `meta`; {} for nothing."""
    kept: dict[str, Any] = meta.get(_SO_FAR, {})
    return kept


def progress_bar(
    bars: ExitStack, quiet: bool, what: str, first: str = "", **how: Any
) -> Callable[[int], Callable[[int], None]] | None:
    """What a `progress` argument takes: a bar on a terminal, nothing elsewhere, wiped when `bars` ends; None if quiet.

    Args:
        first: what is being done until then, said at once.
        how: of the bar, such as its unit.
    """
    waiting, terminal = bars.enter_context(ExitStack()), bool(sys.stderr and sys.stderr.isatty())
    if first and terminal and not quiet:
        from tqdm import tqdm

        waiting.enter_context(tqdm(desc=f"{what}: {first}", bar_format="{desc}", leave=False))

    def begin(total: int) -> Callable[[int], None]:
        if not terminal:
            return lambda count: None
        from tqdm import tqdm

        waiting.close()
        bar = bars.enter_context(tqdm(total=total, leave=False, desc=what, unit_scale="unit" in how, **how))
        update: Callable[[int], None] = bar.update
        return update

    return None if quiet else begin


def lost_output(meta: dict[str, Any]) -> LostOutput | None:
    """What standard output did not take of a command, by its context's `meta`."""
    lost: LostOutput | None = meta.get(_LOST)
    return lost


def discard_output() -> None:
    """Let what standard output cannot take go nowhere: at exit Python would try once more to write it, and complain."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        # A stream that is no file has no descriptor.
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
