"""What `convert` and `revert` do once their flags are read: one conversion or several, and what is printed of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import print_json, say
from .progress import bar

if TYPE_CHECKING:
    from ..conversion.batch import Outcome
    from ..conversion.pairs import Pair
    from ..reports.report import Report

Prove = Callable[[str, Path], "Report"]  # (original, folder) -> what the comparison says


def refused_together(words: Mapping[str, Any], originals: Sequence[str]) -> None:
    """Flags that do not go together. Raises: `UsageError`."""
    from ..errors import UsageError

    if bool(originals) == bool(words["watch"]):
        what = "not both" if originals else "which checkpoint?"
        raise UsageError(f"--orig_ckpt_path or --watch is needed: {what}")
    for flag, other in (("private", "push_to_hub"), ("watch_idle", "watch")):
        if words[flag] and not words[other]:
            raise UsageError(f"--{flag}: nothing without --{other}")
    after = [flag for flag in ("parity", "push_to_hub") if words[flag]]
    if after and words["dry_run"]:
        raise UsageError(f"--{after[0]} --dry_run: nothing is written, so there is nothing to do it with")
    if after and words["to"] != "diffusers":
        raise UsageError(f"--{after[0]} --to {words['to']}: it takes a diffusers folder")


def _bar(shown: ExitStack, quiet: bool) -> Any:
    return None if quiet else partial(bar, shown, what="converting", unit="B", unit_scale=True)


def one(
    source: str,
    target: str,
    options: dict[str, Any],
    *,
    prove: Prove | None = None,
    publish: Callable[[Path], dict[str, Any]] | None = None,
    quiet: bool,
    as_json: bool,
) -> None:
    """One conversion, and what it says of itself; its errors are the command's.

    Args:
        prove, publish: what is done with the folder afterwards, if that is wanted.
        quiet: nothing is printed but errors.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..conversion.convert import convert
    from .printing import conversion_lines

    started, code = time.monotonic(), 0
    # The bar is wiped before anything else is printed, an error too.
    with ExitStack() as shown, interruptible():
        done = convert(source, target, progress=_bar(shown, quiet), **options)
    made = {"path": str(done.path), "written": done.written, "record": done.record, "notes": done.notes}
    for line in [] if quiet or as_json else conversion_lines(done, time.monotonic() - started):
        say(line)
    if prove:
        report = prove(source, done.path)
        made["parity"], code = report.as_dict(), report.exit_code
    if publish and not code:
        made |= publish(done.path)
    if as_json:
        print_json({"ok": code == 0} | made)
    if code:
        raise click.exceptions.Exit(code)


def several(
    pairs: Iterable[Pair],
    options: dict[str, Any],
    name: str,
    *,
    prove: Prove | None = None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Several conversions, a line for each as it is done, and a summary.

    Args:
        name: what error lines begin with.
    """
    from ..checkpoint.write.interrupt import interruptible
    from ..conversion.batch import CONVERTED, FAILED, PLANNED, STATUSES, UNCHANGED, convert_all, worst
    from ..errors import ConverterError, printable
    from .reporting import passed_before

    made: list[dict[str, Any]] = []
    codes: list[int] = []

    def finished(outcome: Outcome) -> None:
        shown.close()  # the bar is wiped before anything is printed
        pair, code = outcome.pair, outcome.exit_code
        row: dict[str, Any] = {"original": pair.original, "path": pair.converted, "status": outcome.status}
        made.append(row)  # it is done, and counts, whatever comes in between now
        if outcome.status == FAILED:
            row["error"] = outcome.words
            say(f"{name}: error: {printable(outcome.words, 4000)}", err=True)
        elif not quiet and not as_json:
            say(f"{outcome.status}: {printable(pair.original)} -> {printable(pair.converted)}")
        if outcome.conversion:
            row["record"] = outcome.conversion.record
        if outcome.conversion or outcome.notes:
            row["notes"] = outcome.notes
        for note in [] if quiet or as_json else outcome.notes:
            say(f"  note: {note}")
        folder = Path(pair.converted)
        if prove and outcome.status != FAILED:
            try:
                passed = passed_before(pair.original, folder) if outcome.status == UNCHANGED else None
                report = passed or prove(pair.original, folder)
                row["parity"], code = report.as_dict(), report.exit_code
            except ConverterError as error:  # of this one: the others go on
                row["error"], code = str(error), error.exit_code
                say(f"{name}: error: {printable(error, 4000)}", err=True)
        codes.append(code)

    def summary() -> dict[str, int]:
        wanted = [status for status in STATUSES if status != (CONVERTED if options["dry_run"] else PLANNED)]
        counts = {status: sum(row["status"] == status for row in made) for status in wanted}
        if not quiet and not as_json:
            say("summary: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
        return counts

    try:
        with ExitStack() as shown, interruptible():
            convert_all(pairs, finished=finished, progress=_bar(shown, quiet), **options)
    except KeyboardInterrupt:  # how a watch usually ends
        summary()
        raise
    code, counts = worst(codes), summary()
    if as_json:
        print_json({"ok": code == 0, "conversions": made, "summary": counts})
    if code:
        raise click.exceptions.Exit(code)
