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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nets import Memory
from ..nets.latents import parts
from ..parity import gates
from ..parity.choices import FLOAT32, FLOAT64
from ..parity.function import CaseOutcome, Judge
from ..parity.statistics import relative
from ..reports.numbers import times
from ..reports.report import FLOOR_LIMIT, Check
from .nets import OUTPUT, BothNets, CaseMaker
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
    tables, nets, memory = origin.tables, dict[torch.dtype, BothNets](), Memory()
    nets[torch.float64] = BothNets(origin, {key: state[key] for key in state} | tables, memory)
    nets[torch.float32] = BothNets(origin, state, memory)
    checks, doubts, stages = list(_rounded(state, tables)), list[str](), dict[str, StageResult]()
    inputs, judge = CaseMaker(origin), Judge(parts(origin.analysis.found), origin.dims["p"])
    cases = [inputs.case(name, *grid, [TIMESTEP] * 2) for name, grid in GRIDS.items()]
    native = inputs.case("own size", *(origin.side // origin.dims["p"],) * 2, [TIMESTEP])
    for case in [*cases, native]:
        double, single = (both.outputs(case, dtype, whole=case is not native) for dtype, both in nets.items())
        truth = double[0]
        if bad := [name for name, value in truth.items() if not torch.isfinite(value).all()]:
            origin.refuse_nonfinite()
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
            judge.judge(outcome := CaseOutcome(case, theirs, ours))
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
    what, limit = f"{stage.case} / {stage.name}", FLOOR_LIMIT
    words = f"{stage.exact:.2g} apart before tables are rounded (limit {EXACT:g})"
    yield Check(what, "float64 relative L2", stage.exact, EXACT, passed=stage.exact <= EXACT, words=words)
    floor = max(stage.floor, gates.FLOOR_LEAST)
    for against, value in (("", stage.error), (" against the DiT's", stage.apart)):
        words = f"{times(value / floor)} times the DiT's own rounding (limit {limit:g})"
        yield Check(
            what, f"float32 relative L2{against}", value, limit * floor, passed=value <= limit * floor, words=words
        )
