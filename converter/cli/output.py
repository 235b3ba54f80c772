"""What is printed: a stream that fails stops no work, and what was done counts, whether or not it can be told."""

from __future__ import annotations

import errno
import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

_UNTOLD = "converter.untold"  # in a context's `meta`


@dataclass(frozen=True)
class Untold:
    """Why standard output took no more, and whether what it did not take was the result itself."""

    error: OSError
    result: bool


def say(line: str, *, result: bool = False, err: bool = False) -> None:
    """Print a line, at once. What cannot be printed is told when the command is done: see `untold`.

    Args:
        result: it is what the command is for, and not only said of what it does.
        err: on standard error, where there is nowhere to tell a failure.
    """
    if err:
        with suppress(OSError):
            click.echo(line, err=True)
        return
    meta = click.get_current_context().meta
    if _UNTOLD in meta and (meta[_UNTOLD].result or not result):
        return
    try:
        if _UNTOLD in meta:
            raise meta[_UNTOLD].error
        if result and not sys.stdout:  # closed before the start
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        click.echo(line)
    except OSError as error:
        meta[_UNTOLD] = Untold(error, result)
        hush()


def print_json(content: Any) -> None:
    """Print a result for programs."""
    say(json.dumps(content, ensure_ascii=True), result=True)


def untold(meta: dict[str, Any]) -> Untold | None:
    """What standard output did not take of a command, by its context's `meta`."""
    found: Untold | None = meta.get(_UNTOLD)
    return found


def hush() -> None:
    """Let what standard output cannot take go nowhere: at exit Python would try once more to write it, and complain."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # of a stream that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
