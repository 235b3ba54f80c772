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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nets.inputs import Case
from ..nets.latents import parts
from ..parity import gates
from ..parity.choices import FLOAT32, FLOAT64
from ..parity.function import Judge
from ..parity.statistics import relative
from ..reports.numbers import times
from ..reports.report import FLOOR_LIMIT, Check
from .nets import OUTPUT, PATCHES, BothNets, CaseMaker, embedded, stage_outputs
from .options import TIMESTEP
from .verdict import Proof, StageResult

if TYPE_CHECKING:
    from .origin import Origin

COARSE = gates.CAPS["relative L2"]  # a rounding that is larger would widen its own tolerance
EXACT = 1e-12  # measured: 1e-15 and below
GRIDS = {"square": (6, 6), "not square": (8, 4)}  # of patches, two different samples each


def prove(origin: Origin, state: Mapping[str, Any]) -> Proof:
    """Run both nets at t = 500, and say whether they are one.

    Args:
        state: the PixArt as it is to be written.

    Raises: `InputError` where the DiT holds numbers that are not finite.
    """
    nets, tables = BothNets(origin, state), origin.tables
    exact = BothNets(origin, {key: state[key] for key in state} | tables, nets.memory)
    checks, doubts, stages = list(_rounded(state, tables)), list[str](), dict[str, StageResult]()
    inputs, judge = CaseMaker(origin), Judge(parts(origin.analysis.found), origin.dims["p"])
    cases = [inputs.case(name, *grid, [TIMESTEP] * 2) for name, grid in GRIDS.items()]
    native = inputs.case("own size", *(origin.side // origin.dims["p"],) * 2, [TIMESTEP])
    for case in [*cases, native]:
        runs = _Runs(case, *(_run(nets, exact, case, dtype, whole=case is not native) for dtype in _PRECISIONS))
        if bad := [name for name, value in runs.truth.items() if not torch.isfinite(value).all()]:
            origin.refuse_nonfinite()
            doubts.append(f"{case.name} / {bad[0]}: what the DiT itself computes is not finite, though its weights are")
            continue
        for name in runs.truth:
            stage = runs.stage(name)
            checks += _checks(stage)
            if not stage.floor <= COARSE:
                why = f"the DiT's own rounding is {stage.floor:.2g}, above the cap of {COARSE:g}"
                doubts.append(f"{case.name} / {name}: {why}: this machine's arithmetic is too coarse to compare by")
            if name not in stages or stage.times > stages[name].times:
                stages[name] = stage
        if OUTPUT in runs.truth:
            outcome = judge.judged(case, *runs.outputs)
            checks += [check for check in outcome.checks if check.passed is not None]
            doubts += outcome.doubts
    return Proof(list(stages.values()), checks, doubts)


_PRECISIONS = (torch.float64, torch.float32)
_Pair = tuple[dict[str, Tensor], dict[str, Tensor]]  # of the DiT and of the PixArt, by stage


def _run(nets: BothNets, exact: BothNets, case: Case, dtype: torch.dtype, *, whole: bool) -> _Pair:
    """Both nets in one precision; not `whole`: only the patches, with the table of positions that is stored."""
    inputs, ours = case.tensors(dtype), exact if dtype == torch.float64 else nets
    if whole:
        return stage_outputs(nets.dit(dtype), inputs), stage_outputs(ours.pixart(dtype), inputs)
    theirs = nets.dit(dtype, stored=nets.origin.same_positions)
    return {PATCHES: embedded(theirs, inputs)}, {PATCHES: embedded(ours.pixart(dtype, stored=True), inputs)}


@dataclass(frozen=True)
class _Runs:
    """What both nets gave for a case, in float64 (the PixArt with unrounded tables) and in float32."""

    case: Case
    double: _Pair
    single: _Pair

    @property
    def truth(self) -> dict[str, Tensor]:
        return self.double[0]

    @property
    def outputs(self) -> list[dict[str, Tensor]]:
        """As the parity checker judges them: one bad pixel, channel or place in a patch counts too."""
        runs = zip(self.double, self.single, strict=True)
        return [{FLOAT64: double[OUTPUT], FLOAT32: single[OUTPUT]} for double, single in runs]

    def stage(self, name: str) -> StageResult:
        truth, (theirs, ours) = self.truth[name], self.single
        return StageResult(
            name,
            self.case.name,
            error=relative(ours[name], truth),
            apart=relative(ours[name], theirs[name]),
            floor=relative(theirs[name], truth),
            exact=relative(self.double[1][name], truth),
        )


def _rounded(state: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Iterator[Check]:
    for key, table in tables.items():
        held = state[key]
        stored = held if isinstance(held, Tensor) else held.torch()
        wrong = int((stored != table.float()).sum()) if stored.shape == table.shape else table.numel()
        words = f"{wrong} of {table.numel()} numbers are not the table's, rounded to float32"
        yield Check(key, "rounding", float(wrong), 0.0, passed=wrong == 0, words=words)


def _checks(stage: StageResult) -> Iterator[Check]:
    what, limit = f"{stage.case} / {stage.name}", FLOOR_LIMIT
    words = f"{stage.exact:.2g} apart before tables are rounded (limit {EXACT:g})"
    yield Check(what, "float64 relative L2", stage.exact, EXACT, passed=stage.exact <= EXACT, words=words)
    floor = max(stage.floor, gates.FLOOR_LEAST)
    for against, value in (("", stage.error), (" against the DiT's", stage.apart)):
        words = f"{times(value / floor)} times the DiT's own rounding (limit {limit:g})"
        yield Check(
            what, f"float32 relative L2{against}", value, limit * floor, passed=value <= limit * floor, words=words
        )
