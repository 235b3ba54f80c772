"""`pixart report`: the parity reports of many checkpoints on one page."""

from __future__ import annotations

import click

from .options import Command, output_options
from .output import print_json, say


@click.command(cls=Command, short_help="Gather the parity reports of many checkpoints on one page.")
@click.argument("folder", metavar="DIR")
@click.option("--output", metavar="FILE", help="Where to write the page (.html). Default: DIR/index.html.")
@click.option("--overwrite", is_flag=True, help="Replace a file that this command did not write.")
@output_options
def report(folder: str, output: str | None, overwrite: bool, as_json: bool, quiet: bool) -> None:
    """Gather the parity reports below DIR on one page: a table that can be sorted, what was measured over the training
    steps, and a link to each report.

    A report is a parity.json in a converted folder, or a .json that `pixart parity --report` wrote. Where an HTML
    report lies beside it, the page links to that. How far training was is read from names such as
    epoch_7_step_9000.pth, and checkpoints are grouped by the folder of their run.

    Exit codes: 0 the page is written, whatever the verdicts on it, 2 usage, 3 no report in DIR, 5 internal error.
    """
    from ..errors import plural, printable
    from ..jobs.overview import write_overview
    from ..reports.report import counted, counts

    done = write_overview(folder, output, overwrite=overwrite)
    count = len(done.reports)
    if as_json:
        verdicts = counts(done.reports)
        print_json({"ok": True, "path": str(done.path), "reports": count, "verdicts": verdicts, "notes": done.notes})
    elif not quiet:
        for note in done.notes:
            say(f"note: {note}")
        say(f"wrote: {printable(done.path)} ({plural(count, 'report')}: {counted(done.reports)})")
