"""What a parity run found, as an object: phases with their checks, a verdict, and a JSON form that is canonical."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..checkpoint.weight_names import SUFFIXES
from ..errors import printable

REPORT_VERSION = 1
PASS, FAIL, REJECTED, INCONCLUSIVE, INTERNAL = "PASS", "FAIL", "REJECTED", "INCONCLUSIVE", "INTERNAL"
NOT_RUN = "NOT RUN"  # of a phase only: the profile leaves it out, or what it needs has failed
WORST_FIRST = (INTERNAL, FAIL, REJECTED, INCONCLUSIVE, PASS)
HEADLINE_WORDS = 12
NO_REASON = "no reason is given"
SHORTEST_CLAUSE = 4  # words: less would be a name without what is said of it
FLOOR_LIMIT = 3.0  # times the noise floor; measured: a clean conversion has 1.0 to 1.3
_SUFFIX = f"(?:{'|'.join(map(re.escape, (*SUFFIXES, '.json')))})"
_FILE_AT_THE_FRONT = rf"^(?:\w:)?[^:]*{_SUFFIX}(?=: )"
_BELOW = rf"(?:[/\\](?:[^:]*?{_SUFFIX}\b|\S*))?"  # what may follow on the name of a folder
_MARKS_AT_THE_FRONT = re.compile(r"^\s*(?:[;:,.]+(?:\s+|$))+")
_QUOTED = r"`[^`]*`|\"[^\"]*\"|(?<!\w)'[^']*'(?!\w)"
EXIT_CODES = {PASS: 0, FAIL: 1, REJECTED: 3, INCONCLUSIVE: 4, INTERNAL: 5}


@dataclass
class Check:
    """One comparison: something that was measured against its limit.

    Attributes:
        what: "case / part" of the function ("t999 / epsilon"), a key or field, or the name of a fault.
        statistic: what was measured, e.g. "float64 relative L2", "bytes", "config", "caught by".
        value, limit: the numbers or texts compared; None where there is none.
        passed: None for what is only shown.
        words: what a person reads: "1.06 times the noise floor (limit 3)".
        waived: the reason of the waiver that lets a failed check pass, '' without one.
    """

    what: str
    statistic: str
    value: float | str | None = None
    limit: float | str | None = None
    passed: bool | None = None
    words: str = ""
    waived: str = ""

    @property
    def failed(self) -> bool:
        return self.passed is False and not self.waived


@dataclass
class Phase:
    """One phase of the checker. `detail` holds the data of its figures, and the repairs of a failure."""

    name: str
    verdict: str
    words: str
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> Iterator[Check]:
        return (check for check in self.checks if check.failed)

    @property
    def gates(self) -> list[Check]:
        """The checks that decide; the others are only shown."""
        return [check for check in self.checks if check.passed is not None]


@dataclass
class Report:
    """The outcome of one comparison.

    Attributes:
        verdict: PASS, FAIL, REJECTED (an input is malformed or unsafe), INCONCLUSIVE, INTERNAL.
        reason: the verdict in one line, what matters most first: its beginning is the headline.
        original, converted: what was compared: name, size, sha256, ...
        assumed: hyper-parameters without evidence: name, value, why.
        run: what may differ between two runs on the same inputs: date, seconds, command, program, paths.
    """

    verdict: str
    reason: str
    family: str = ""
    profile: str = ""
    original: dict[str, Any] = field(default_factory=dict)
    converted: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    assumed: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def headline(self) -> str:
        """The reason in at most twelve words, and never nothing.

        >>> Report(PASS, "outputs identical in float32; 25 statistics checked on 1 case of 4 samples").headline
        'outputs identical in float32'
        """
        names = [self.run.get(key) for key in ("original", "converted")]
        names += [side.get("name") for side in (self.original, self.converted)]
        return beginning(self.reason, HEADLINE_WORDS, [printable(name) for name in names if name]) or NO_REASON

    @property
    def details(self) -> str:
        """What the headline leaves out of the reason; all of it where the headline ends inside a clause."""
        return _MARKS_AT_THE_FRONT.sub("", self.reason).strip().removeprefix(self.headline).lstrip(";:,. ")

    def phase(self, name: str) -> Phase | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: numbers that JSON lacks are spelled 'nan', 'inf' and '-inf'."""
        derived = {"version": REPORT_VERSION, "exit_code": self.exit_code, "headline": self.headline}
        content = derived | asdict(self)
        plain: dict[str, Any] = as_json(content)
        return plain

    def to_json(self) -> str:
        """Canonical: sorted keys, the same bytes for the same findings but for the block `run`."""
        return json.dumps(self.as_dict(), indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Report:
        """The report of a JSON form."""
        fields = {k: v for k, v in content.items() if k not in ("version", "exit_code", "headline")}
        fields["phases"] = [
            Phase(**phase | {"checks": [Check(**check) for check in phase["checks"]]}) for phase in fields["phases"]
        ]
        return cls(**fields)


def worst(reports: Iterable[Report]) -> str:
    """The verdict of several reports together: one failure outweighs any number of passes, and none is no pass.

    >>> worst([Report(PASS, ""), Report(FAIL, "")]), worst([])
    ('FAIL', 'INCONCLUSIVE')
    """
    return WORST_FIRST[min(map(gravity, reports), default=WORST_FIRST.index(INCONCLUSIVE))]


def gravity(report: Report) -> int:
    """A sort key: the worst verdict comes first.

    >>> [report.verdict for report in sorted([Report(PASS, ""), Report(REJECTED, ""), Report(FAIL, "")], key=gravity)]
    ['FAIL', 'REJECTED', 'PASS']
    """
    return WORST_FIRST.index(report.verdict if report.verdict in WORST_FIRST else INTERNAL)


def counts(reports: Iterable[Report]) -> dict[str, int]:
    """How many reports have each verdict, of all verdicts."""
    verdicts = [worst([report]) for report in reports]
    return {verdict: verdicts.count(verdict) for verdict in EXIT_CODES}


def counted(reports: Iterable[Report]) -> str:
    """The same in words.

    >>> counted([Report(REJECTED, ""), Report(FAIL, ""), Report(PASS, ""), Report(PASS, "")])
    '2 PASS, 1 FAIL, 1 REJECTED'
    """
    return ", ".join(f"{count} {verdict}" for verdict, count in counts(reports).items() if count)


def beginning(sentence: str, most: int, names: Iterable[str] = ()) -> str:
    """A sentence up to its first semicolon or full stop; of one with more words, the last clause that ends in time.

    Args:
        names: that may stand in it. Nothing ends inside of one, of what is quoted, or of the file that it begins with.

    >>> beginning("config: norm_eps is 1e-05, and has to be 1e-06: the original says so", 10)
    'config: norm_eps is 1e-05, and has to be 1e-06'
    >>> beginning("run; b.pth: not a checkpoint; save it again", 10)
    'run; b.pth: not a checkpoint'
    >>> beginning("it goes on and on", 4)
    'it goes on and…'
    """
    text = " ".join(_MARKS_AT_THE_FRONT.sub("", sentence).split())
    known = [re.escape(" ".join(name.split())) + _BELOW for name in sorted(names, key=len, reverse=True) if name]
    whole = [match.span() for match in re.finditer("|".join([_FILE_AT_THE_FRONT, _QUOTED, *known]), text)]
    words = [match.end() for match in re.finditer(r"\S+", text)]
    ends = [end for end in words[SHORTEST_CLAUSE - 1 :] if not any(start < end < stop for start, stop in whole)]
    clause = next((end for end in ends if text[end - 1] in ";."), len(text))
    if sum(end <= clause for end in words) <= most:
        return text[:clause].rstrip(";. ") or text
    starts = [text[:end] for end in reversed(ends) if end <= words[most - 1]]
    clauses = [start for start in starts if start[-1] in ":," and start.count("(") == start.count(")")]
    return clauses[0][:-1] if clauses else f"{starts[0] if starts else text[: words[most - 1]]}…"


def as_json(value: Any) -> Any:
    """The same, with numbers that JSON lacks spelled 'nan', 'inf' and '-inf'."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
