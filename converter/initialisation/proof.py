"""Does the initialised PixArt compute at t = 500 what the DiT does? Both nets are run, block by block, on fixed noise.

Three things together:
1. The mathematics, in float64: with tables that were not rounded yet the PixArt is the DiT, but for float64's own
   rounding (relative L2 up to 1e-12: sinusoids and positions are float32, and the same, in both).
2. The tables to be stored are those, rounded to float32 and to nothing else, bit for bit.
3. What is stored, in float32: no further from the DiT, in float64 and in float32, than 3 times the DiT's own rounding.
With the last alone a fault could hide in the rounding; the stored tables in float64 would be blamed for being float32.
Each net embeds the patches itself. The DiT's file has positions for one size and scale; elsewhere its positions are
those that a DiT of that size and scale would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..conversion.deep import read_through
from ..conversion.verdicts import NONFINITE
from ..conversion.write import counted
from ..errors import InputError
from ..nets import Memory
from ..nets.latents import parts
from ..parity import gates
from ..parity.choices import FLOAT32, FLOAT64
from ..parity.function import Judge
from ..parity.statistics import relative
from ..reports.limits import AGAINST
from ..reports.numbers import times
from ..reports.report import EXIT_CODES, FAIL, FLOOR_LIMIT, INCONCLUSIVE, PASS, Check, as_json
from .nets import OUTPUT, BothNets, CaseMaker
from .options import TIMESTEP
from .timesteps import Distances

if TYPE_CHECKING:
    from .origin import Origin

COARSE = gates.CAPS["relative L2"]  # a rounding that is larger would widen its own tolerance
EXACT = 1e-12  # measured: 1e-15 and below
GRIDS = {"square": (6, 6), "not square": (8, 4)}  # of patches, two different samples each
TOO_COARSE = (
    "Before its tables are rounded to float32 it does, so it is float32 that cannot hold them: the DiT's embedded "
    "timestep is many times as large as what its layers make of it"
)


@dataclass
class StageResult:
    """Relative L2 after a stage, in the case that uses most of the limit.

    `error`: of the PixArt in float32 against the DiT in float64; `apart`: against the DiT in float32; `floor`: of the
    DiT in float32 against itself in float64; `exact`: of the PixArt in float64 with unrounded tables.
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
        return self.distance / max(self.floor, gates.MIN_FLOOR)


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
        worst = f"at worst {times(self.worst.times)} times the DiT's own rounding (limit {FLOOR_LIMIT:g})"
        worst = worst if self.worst.times else "identical"
        exact = max(stage.exact for stage in self.stages)
        return (
            f"at t = {TIMESTEP} it computes what the DiT does, block by block: {worst} in float32; in float64, before "
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


def prove(origin: Origin, state: Mapping[str, Any]) -> Proof:
    """Run both nets at t = 500, and say whether they are one.

    Args:
        state: the PixArt as it is to be written.

    Raises: `InputError` where the DiT holds numbers that are not finite.
    """
    tables, nets, memory = origin.tables, dict[torch.dtype, BothNets](), Memory()
    nets[torch.float64] = BothNets(origin, {key: state[key] for key in state} | tables, memory)
    nets[torch.float32] = BothNets(origin, state, memory)
    checks, doubts, stages = list(_rounded(state, tables)), list[str](), dict[str, StageResult]()
    inputs, judge = CaseMaker(origin), Judge(parts(origin.analysis.findings), origin.dims["p"])
    cases = [inputs.case(name, *grid, [TIMESTEP] * 2) for name, grid in GRIDS.items()]
    native = inputs.case("own size", *(origin.side // origin.dims["p"],) * 2, [TIMESTEP])
    for case in [*cases, native]:
        double, single = (both.outputs(case, dtype, whole=case is not native) for dtype, both in nets.items())
        truth = double[0]
        if bad := [name for name, value in truth.items() if not torch.isfinite(value).all()]:
            if nonfinite := read_through(origin.analysis).nonfinite:
                raise InputError.at(origin.analysis.checkpoint.path, "", counted(nonfinite, NONFINITE))
            doubts.append(f"{case.name} / {bad[0]}: what the DiT itself computes is not finite, though its weights are")
            continue
        for name in truth:
            stage = StageResult(
                name,
                case.name,
                error=relative(single[1][name], truth[name]),
                apart=relative(single[1][name], single[0][name]),
                floor=relative(single[0][name], truth[name]),
                exact=relative(double[1][name], truth[name]),
            )
            checks += _checks(stage)
            if not stage.floor <= COARSE:
                why = f"the DiT's own rounding is {stage.floor:.2g}, above the cap of {COARSE:g}"
                doubts.append(f"{case.name} / {name}: {why}: this machine's arithmetic is too coarse to compare by")
            if name not in stages or stage.times > stages[name].times:
                stages[name] = stage
        if OUTPUT in truth:  # as the parity checker judges: one bad pixel, channel or place in a patch counts too
            theirs, ours = ({FLOAT64: a[OUTPUT], FLOAT32: b[OUTPUT]} for a, b in zip(double, single, strict=True))
            outcome = judge.judged(case, theirs, ours)
            checks += [check for check in outcome.checks if check.passed is not None]
            doubts += outcome.doubts
    return Proof(list(stages.values()), checks, doubts)


def _rounded(state: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Iterator[Check]:
    for key, table in tables.items():
        held = state[key]
        stored = held if isinstance(held, Tensor) else held.torch()
        wrong = int((stored != table.float()).sum()) if stored.shape == table.shape else table.numel()
        words = f"{wrong} of {table.numel()} numbers are not the table's, rounded to float32"
        yield Check(key, "rounding", float(wrong), 0.0, passed=wrong == 0, words=words)


def _checks(stage: StageResult) -> Iterator[Check]:
    what, floor = f"{stage.case} / {stage.name}", max(stage.floor, gates.MIN_FLOOR)
    words = f"{stage.exact:.2g} apart before tables are rounded (limit {EXACT:g})"
    yield Check(what, "float64 relative L2", stage.exact, EXACT, passed=stage.exact <= EXACT, words=words)
    for against, value in (("", stage.error), (f"{AGAINST}the DiT's", stage.apart)):
        limit, statistic = FLOOR_LIMIT * floor, f"float32 relative L2{against}"
        words = f"{times(value / floor)} times the DiT's own rounding (limit {FLOOR_LIMIT:g})"
        yield Check(what, statistic, value, limit, passed=value <= limit, words=words)
