"""The reports of many checkpoints on one page: a table that can be sorted, and what was measured over training steps.

The page opens offline. Its one script sorts the table, and is named by its digest in the page's security policy, so
that no other could run; without it the table is whole, the worst first.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from typing import Any, NamedTuple

from .drawing import COLOURS, WIDTH, Picture, canvas, log_axis, placed, tip
from .limits import AGAINST, SCALES, Scale, closest, measured, multiple, precision_of
from .names import short_paths
from .numbers import broken, positive, show
from .page import rendered
from .report import FAIL, PASS, Check, Report, counted, gravity, worst

GENERATOR = "convert-pixart report"  # by which a page of ours is known
Line = tuple[str, str, str]  # the marker of a run, the same as a character, and the colour
COLOUR_NAMES = ("series", "s1", "s2", "s3")
LINES = [(shape, sign, colour) for shape, sign in zip("os^D", "●■▲◆", strict=True) for colour in COLOUR_NAMES]
SCRIPT = """
const body = document.querySelector("table.runs tbody"), heads = [...document.querySelectorAll("table.runs th")];
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  head.append(button);
  button.onclick = () => {
    const way = head.ariaSort === "ascending" ? -1 : 1, rank = row => row.cells[column].dataset.rank;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.ariaSort = way > 0 ? "ascending" : "descending";
    body.append(...[...body.rows].sort((one, other) => way * (rank(one) - rank(other))));
  };
});
"""


@dataclass(frozen=True)
class Entry:
    """One report of the page.

    Attributes:
        name: of the checkpoint. run: the folder of its training run. unit, step: how far training was, such as "step"
            and 9000; '' and 0 where no name says it.
        link: where the report lies, relative to the page.
    """

    report: Report
    name: str
    run: str
    unit: str
    step: int
    link: str


class Point(NamedTuple):
    """The worst of one report in some precision, `x` being how far training was."""

    x: int
    value: float | None
    words: str
    entry: Entry


class Column(NamedTuple):
    """A column of the table: for every entry what is shown, and what it is sorted by."""

    title: str
    kind: str
    shown: Sequence[str]
    keys: Sequence[Any]

    def ranks(self) -> list[int]:
        """Numbers in the order of the keys, so that the script need not compare texts."""
        order = {key: rank for rank, key in enumerate(sorted({*self.keys}))}
        return [order[key] for key in self.keys]


def _worst(report: Report, precision: str, statistic: str = "") -> Check | None:
    """Of all statistics, or of one; None where nothing was measured."""
    function = report.phase("function")
    gates = function.gates if function else []
    return closest([check for check in gates if statistic in ("", _statistic(check))], precision)


def _statistic(check: Check) -> str:
    return precision_of(check)[1].partition(AGAINST)[0]


def _statistics(reports: Sequence[Report]) -> list[str]:
    phases = [phase for report in reports if (phase := report.phase("function"))]
    gates = [check for phase in phases for check in phase.gates if precision_of(check)[0] in SCALES]
    return [*dict.fromkeys(map(_statistic, gates))]


def overview(entries: Sequence[Entry], title: str, notes: Sequence[str] = ()) -> str:
    """The HTML of the page.

    Args:
        entries: in the order of their names; the table begins with the worst.
        title: what the page is about. notes: what else is to be said, a line each.

    Raises: UsageError without jinja2 or matplotlib.
    """
    reports, folders = [entry.report for entry in entries], [*dict.fromkeys(entry.run for entry in entries)]
    runs = dict(zip(folders, short_paths(folders), strict=True))
    lines = dict(zip(folders, cycle(LINES)))
    return rendered(
        "overview.html.j2",
        title=title,
        generator=GENERATOR,
        verdict=worst(reports),
        counts=counted(reports),
        passed=sum(report.verdict == PASS for report in reports),
        entries=entries,
        order=sorted(range(len(entries)), key=lambda i: gravity(reports[i])),
        columns=[(column, column.ranks()) for column in _columns(entries, runs)],
        legend=[(name, *lines[folder]) for folder, name in runs.items()],
        charts=_charts(entries, lines),
        by_statistic=chain.from_iterable(_charts(entries, lines, name) for name in _statistics(reports)),
        notes=notes,
        script=SCRIPT,
        policy=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


def _columns(entries: Sequence[Entry], runs: dict[str, str]) -> Iterator[Column]:
    reports, count = [entry.report for entry in entries], range(len(entries))
    yield Column("verdict", "verdict", [report.verdict for report in reports], [*map(gravity, reports)])
    yield Column("checkpoint", "what", [entry.name for entry in entries], count)
    if len(runs) > 1:
        yield Column("run", "run", [runs[entry.run] for entry in entries], [[*runs].index(e.run) for e in entries])
    if units := {entry.unit for entry in entries} - {""}:
        steps = [f"{entry.step:,}" if entry.unit else "" for entry in entries]
        yield Column(" or ".join(sorted(units)), "num", steps, [(entry.unit != "", entry.step) for entry in entries])
    for precision in SCALES:
        checks = [_worst(report, precision) for report in reports]
        if any(checks):
            keys = [(check is not None, multiple(check, precision) or 0.0) for check in checks]
            yield Column(f"worst in {precision}", "num", [measured(check, precision) for check in checks], keys)
    reasons = [report.headline for report in reports]
    yield Column("reason", "words", reasons, reasons)


def _charts(entries: Sequence[Entry], lines: dict[str, Line], statistic: str = "") -> Iterator[Picture]:
    """A picture for each precision that at least two reports have, of one statistic or the worst, with a line for each
    run."""
    units = {entry.unit for entry in entries}
    unit = units.pop() if len(units) == 1 else ""
    count, xs = Counter[str](), []
    for entry in entries:
        count[entry.run] += 1
        xs.append(entry.step if unit else count[entry.run])
    for precision in SCALES:
        checks = [_worst(entry.report, precision, statistic) for entry in entries]
        words = [measured(check, precision) for check in checks]
        values = [multiple(check, precision) for check in checks]
        points = [*map(Point, xs, values, words, entries)]
        if len([point for point in points if point.value is not None]) > 1:
            what = statistic or "worst"
            title = f"{what[0].upper()}{what[1:]} in {precision}"
            yield _chart(title, points, lines, scale=SCALES[precision], along=unit or "checkpoints in order")


def _chart(title: str, points: Sequence[Point], lines: dict[str, Line], *, scale: Scale, along: str) -> Picture:
    known = [value for point in points if (value := positive(point.value)) is not None]
    limit = scale.limit
    # Logarithmic as soon as something lies far beyond the limit; how far below it others are matters less.
    least, most = max(min([limit, *known]), limit * 1e-3), min(max([limit, *known]), 1e300)
    logarithmic = most > 20 * limit
    low, high = (least / 2, most * 2) if logarithmic else (0.0, most * 1.15)
    figure = canvas(240, WIDTH / 2 - 20)
    axes = figure.subplots()
    log_axis(axes, "y", low, high) if logarithmic else axes.set_ylim(low, high)
    ticks: dict[str, Any] = {"numticks" if logarithmic else "nbins": 6}
    axes.locator_params("y", **ticks)
    axes.locator_params("x", nbins=5, integer=True)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.grid(False, axis="x")
    axes.set_xlabel(along)
    axes.axhline(limit, color=COLOURS["limit"])
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    axes.annotate(f"limit {show(limit)}", (1, limit), (6, 0), color=COLOURS["limit"], annotation_clip=False, **where)
    usual = 8 if len(points) <= 100 else 4
    for folder, (shape, _, colour) in lines.items():
        own = [point for point in points if point.entry.run == folder]
        measured = [point for point in own if point.value is not None]
        ys = placed([point.value for point in measured], low, high)
        axes.plot([point.x for point in measured], ys, color=COLOURS[colour], linewidth=2)
        for x, value, words, entry in own:
            wrong = entry.report.verdict == FAIL
            y = low if value is None else high if broken(value) else placed([value], low, high)[0]
            marker, size = ("|", 10) if value is None else ("X", 10) if wrong or broken(value) else (shape, usual)
            ink = COLOURS["fail" if wrong else "mute" if value is None else colour]
            rim = ink if value is None else COLOURS["card"]
            (dot,) = axes.plot(x, y, marker, color=ink, ms=size, mec=rim, clip_on=False, zorder=5 if wrong else 4)
            tip(dot, f"{entry.name}: {words}, {entry.report.verdict}")
    caption = f"Times the {scale.unit}{', log scale' * logarithmic}."
    return Picture.of(figure, title, caption, "small")
