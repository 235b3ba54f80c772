"""What a proof found: block by block, and whether the PixArt is the DiT at t = 500."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..parity import gates
from ..reports.numbers import times as spell
from ..reports.report import EXIT_CODES, FAIL, FLOOR_LIMIT, INCONCLUSIVE, PASS, Check, as_json
from .options import TIMESTEP
from .timesteps import Distances

TOO_COARSE = (
    "Before its tables are rounded to float32 it does, so it is float32 that cannot hold them: the DiT's embedded "
    "timestep is many times as large as what its layers make of it"
)


@dataclass
class StageResult:
    """What was found after a stage, in the case that uses most of the limit.

    Attributes:
        error: relative L2 of the PixArt in float32 against the DiT in float64; `apart`: against the DiT in float32.
        floor: of the DiT in float32 against itself in float64.
        exact: of the PixArt in float64 with unrounded tables against the DiT in float64.
    """

    name: str
    case: str
    error: float
    apart: float
    floor: float
    exact: float

    @property
    def distance(self) -> float:
        """In float32, from the DiT in float64 or from the DiT in float32, whichever is farther."""
        return max(self.error, self.apart)

    @property
    def times(self) -> float:
        """The distance in multiples of the DiT's own rounding; 3 are allowed."""
        return self.distance / max(self.floor, gates.FLOOR_LEAST)


@dataclass
class Proof:
    """The verdict with everything that led to it. `distances`: at other timesteps, where that was asked for."""

    stages: list[StageResult]
    checks: list[Check]
    doubts: list[str] = field(default_factory=list)
    distances: Distances | None = None

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.failed]

    @property
    def verdict(self) -> str:
        return FAIL if self.failed else INCONCLUSIVE if self.doubts or not self.stages else PASS

    @property
    def passed(self) -> bool:
        return self.verdict == PASS

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    @property
    def worst(self) -> StageResult:
        return max(self.stages, key=lambda stage: stage.times)

    @property
    def words(self) -> str:
        """The verdict in one line."""
        if self.failed:
            what, first = f"at t = {TIMESTEP} it does NOT compute what the DiT does", self.failed[0]
            counts = f"{len(self.failed)} of {len(self.checks)} checks failed"
            only_float32 = all(check.statistic.startswith("float32") for check in self.failed)
            return f"{what}: {counts}, the first {first.what}, {first.words}" + f". {TOO_COARSE}" * only_float32
        if not self.passed:
            return f"whether it computes at t = {TIMESTEP} what the DiT does cannot be told: {self.doubts[0]}"
        times = f"at worst {spell(self.worst.times)} times the DiT's own rounding (limit {FLOOR_LIMIT:g})"
        exact = max(stage.exact for stage in self.stages)
        return (
            f"at t = {TIMESTEP} it computes what the DiT does, block by block: {times} in float32; in float64, before "
            f"the tables are rounded, {exact:.2g} apart"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: numbers that JSON lacks are spelled 'nan', 'inf' and '-inf'."""
        content = {
            "verdict": self.verdict,
            "passed": self.passed,
            "words": self.words,
            "limit": FLOOR_LIMIT,
            "worst": self.worst.times if self.stages else None,
            "stages": [asdict(stage) | {"times": stage.times} for stage in self.stages],
            "checks": [asdict(check) for check in self.checks],
            "doubts": self.doubts,
        }
        plain: dict[str, Any] = as_json(content | (self.distances.as_dict() if self.distances else {}))
        return plain
