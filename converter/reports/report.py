"""What a parity run found, as an object: phases with their checks, a verdict, and a JSON form that is canonical."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

REPORT_VERSION = 1
PASS, FAIL, REJECTED, INCONCLUSIVE, INTERNAL = "PASS", "FAIL", "REJECTED", "INCONCLUSIVE", "INTERNAL"
NOT_RUN = "NOT RUN"  # of a phase only: the profile leaves it out, or what it needs has failed
FROM_BEST = (PASS, INCONCLUSIVE, REJECTED, FAIL, INTERNAL)
FLOOR_LIMIT = 3.0  # times the noise floor; measured: a clean conversion has 1.0 to 1.3
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
        reason: the verdict in one line.
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

    def phase(self, name: str) -> Phase | None:
        return next((phase for phase in self.phases if phase.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: numbers that JSON lacks are spelled 'nan', 'inf' and '-inf'."""
        content = {"version": REPORT_VERSION, "exit_code": self.exit_code} | asdict(self)
        plain: dict[str, Any] = as_json(content)
        return plain

    def to_json(self) -> str:
        """Canonical: sorted keys, the same bytes for the same findings but for the block `run`."""
        return json.dumps(self.as_dict(), indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Report:
        """The report of a JSON form."""
        fields = {k: v for k, v in content.items() if k not in ("version", "exit_code")}
        fields["phases"] = [
            Phase(**phase | {"checks": [Check(**check) for check in phase["checks"]]}) for phase in fields["phases"]
        ]
        return cls(**fields)


def worst(reports: Iterable[Report]) -> str:
    """The verdict of several reports together: one failure outweighs any number of passes, and none is no pass.

    >>> worst([Report(PASS, ""), Report(FAIL, "")]), worst([])
    ('FAIL', 'INCONCLUSIVE')
    """
    verdicts = {report.verdict for report in reports}
    if not verdicts <= set(FROM_BEST):
        return INTERNAL
    return max(verdicts, key=FROM_BEST.index, default=INCONCLUSIVE)


def as_json(value: Any) -> Any:
    """The same, with numbers that JSON lacks spelled 'nan', 'inf' and '-inf'."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
