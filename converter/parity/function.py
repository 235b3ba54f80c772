"""Function: the original net and the converted one on the same fixed noise, judged by the original's own rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import plural
from ..nets import Net, Values
from ..nets.inputs import Case, exact
from ..nets.net import Staged
from ..reports.limits import identical, margin
from ..reports.report import FAIL, FLOOR_LIMIT, INCONCLUSIVE, PASS, Check, Phase
from . import gates
from .choices import FLOAT32, FLOAT64, HALF
from .statistics import compare, images, relative

TRACED = 1 << 22  # numbers of one stage's output up to which a case's stages are compared one by one
Watch = Callable[[str, Values], None]
Make = Callable[..., Net]  # (precision, rounded="") -> the net in it, of weights rounded first where that is asked


@dataclass
class CaseOutcome:
    """What a case gave: the outputs of both nets by precision, and what was found."""

    case: Case
    original: dict[str, Tensor]
    converted: dict[str, Tensor]
    checks: list[Check] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        failed = any(check.failed for check in self.checks)
        return FAIL if failed else INCONCLUSIVE if self.doubts else PASS


@dataclass(frozen=True)
class StageErrors:
    """Of the first case: how far each stage's values are from the original's in float64, and the original's own."""

    case: str
    precision: str
    stages: list[str]
    converted: list[float]
    floor: list[float] | None
    limit: float = FLOOR_LIMIT


@dataclass(frozen=True)
class HeatMap:
    """Of the first case: the differences of the output at every place, by channel, row by row."""

    case: str
    precision: str
    channels: list[str]
    values: list[list[float]]
    rows: int
    columns: int
    unit: str = "|difference| / RMS of the output, mean over the batch"


@dataclass(frozen=True)
class Judge:
    """How outputs are cut before they are compared: `parts` (name -> channels), side of a `patch`."""

    parts: Mapping[str, slice]
    patch: int

    def judged(
        self,
        case: Case,
        original: dict[str, Tensor],
        converted: dict[str, Tensor],
        truths: Mapping[str, Tensor] | None = None,
    ) -> CaseOutcome:
        """The outputs of both nets by precision, with their checks and doubts.

        Args:
            truths: the original in float64, of weights and inputs that are rounded to a half precision, by that.
        """
        original, converted, truths = (
            {precision: images(output) for precision, output in outputs.items()}
            for outputs in (original, converted, truths or {})
        )
        outcome = CaseOutcome(case, original, converted)
        for part, channels in self.parts.items():
            what = f"{case.name} / {part}"
            for precision, output in converted.items():
                truth = truths.get(precision, original[FLOAT64])
                outputs = [whole[:, channels] for whole in (output, original[precision], truth)]
                if doubt := self._gate(outcome.checks, what, precision, outputs):
                    outcome.doubts.append(f"{what}: {doubt}")
        return outcome

    def _gate(self, checks: list[Check], what: str, precision: str, outputs: list[Tensor]) -> str:
        """Add the checks of a part of one output; returns why it cannot be judged, '' where it can."""
        converted, original, truth = outputs
        statistics = compare(converted, truth, self.patch)
        # Not finite where the original in this precision is not either is no fault of the conversion.
        theirs = max(statistics.nonfinite[1], int((~torch.isfinite(original)).sum()))
        if bad := gates.nonfinite(what, precision, (statistics.nonfinite[0], theirs)):
            checks.append(bad)
            unsure = bad.passed is None and precision not in HALF
            return f"the original's own output is not finite in {precision}" if unsure else ""
        if not statistics.scale:
            return "the original's output is zero everywhere, which any zero would equal"
        if precision == FLOAT64:
            gating, shown = [*gates.float64_checks(what, statistics)], statistics
        else:
            own = compare(original, truth, self.patch)
            if precision in HALF:
                checks.append(gates.half_check(what, precision, own, statistics))
                return ""
            if above := gates.above_cap(own):
                return (
                    f"the original's own noise in float32 is {above}: this machine's arithmetic is too coarse to "
                    "compare by (TF32, or a faulty kernel?)"
                )
            shown = compare(converted, original, self.patch)
            gating = [*gates.float32_checks(what, own, statistics, shown)]
        checks += [*gating, gates.smallest_passing(what, precision, gating), *gates.shown(what, precision, shown)]
        return ""


def run(
    original: Make,
    converted: Make,
    cases: Sequence[Case],
    precisions: Sequence[str],
    *,
    judge: Judge,
    device: str = "cpu",
    step: Callable[[int], None] = lambda count: None,
    keep: Watch = lambda stage, values: None,
) -> tuple[list[CaseOutcome], dict[str, Any]]:
    """Run every case through both nets.

    Args:
        original, converted: (precision, rounded) -> the net in it.
        precisions: of 'float64', 'float32', 'float16', 'bfloat16'; the original always runs in float64 as well.
        keep: told what comes of each stage of the original in float64, in the first case.
    """
    if not cases:
        return [], {}
    traced, outcomes = FLOAT32 if FLOAT32 in precisions else precisions[0], list[CaseOutcome]()
    truth: dict[str, Values] = {}
    errors: dict[str, dict[str, float]] = {"original": {}, "converted": {}}

    def watch(side: str, precision: str, stage: str, values: Values) -> None:
        """The first case is followed stage by stage."""
        step(1)
        if outcomes:
            return
        if (side, precision) == ("original", FLOAT64):
            keep(stage, values)
            if all(value.numel() <= TRACED for value in values.values()):
                truth[stage] = {name: value.cpu() for name, value in values.items()}
        elif precision == traced and (right := truth.get(stage)):
            apart = (relative(value.cpu(), right[name]) for name, value in values.items() if name in right)
            errors[side][stage] = max(apart)

    for case in cases:
        ours, theirs, truths = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
        for precision in dict.fromkeys([FLOAT64, *precisions]):
            inputs = case.tensors(getattr(torch, precision), device)
            rounded = precision if precision in HALF else ""
            net, watches = original(precision, rounded), [partial(watch, side, precision) for side in errors]
            if precision in precisions:
                outputs = side_by_side(net, converted(precision, rounded), inputs, watches)
                ours[precision], theirs[precision] = (output.cpu() for output in outputs)
            else:
                ours[precision] = net.forward(inputs, watches[0]).cpu()
            if rounded:
                truths[precision] = original(FLOAT64, rounded).forward(exact(inputs), partial(watch, "", "")).cpu()
        outcomes.append(judge.judged(case, ours, theirs, truths))
    first = outcomes[0]
    of = first.case.name, traced
    detail = {"heat": asdict(_heat(*of, first.converted[traced].double(), first.original[FLOAT64], judge.parts))}
    if errors["converted"]:
        stages, floor = list(errors["converted"]), errors["original"]
        floors = [floor[stage] for stage in stages] if floor else None
        detail["blocks"] = asdict(StageErrors(*of, stages, list(errors["converted"].values()), floors))
    return outcomes, detail


def side_by_side(net: Net, other: Net, inputs: Values, watches: Sequence[Watch]) -> tuple[Tensor, Tensor]:
    """The outputs of two nets. One that is nothing but its stages is kept a stage ahead of the other, which finds the
    weights that they share in their memory.

    Args:
        watches: the watch of each.
    """
    if not isinstance(net, Staged):
        return net.forward(inputs, watches[0]), other.forward(inputs, watches[1])
    values = dict(inputs)
    steps = net.steps(values, watches[0])

    def follow(stage: str, output: Values) -> None:
        watches[1](stage, output)
        next(steps, None)

    next(steps, None)
    theirs = other.forward(inputs, follow)
    for _ in steps:  # what the other did not tell of
        pass
    return values["output"], theirs


def _heat(case: str, precision: str, converted: Tensor, original: Tensor, parts: Mapping[str, slice]) -> HeatMap:
    """A map of the differences per output channel."""
    scale = float(original.square().mean().sqrt()) or 1.0
    apart = (converted - original).abs().mean(dim=0) / scale
    names = [f"{part} {i}" for part, channels in parts.items() for i in range(apart[channels].shape[0])]
    # Four digits are more than a colour shows.
    values = [[float(f"{value:.3e}") for value in channel.flatten().tolist()] for channel in apart]
    return HeatMap(case, precision, names, values, rows=apart.shape[1], columns=apart.shape[2])


def phase(outcomes: Sequence[CaseOutcome], detail: dict[str, Any], what: str = "") -> Phase:
    """The phase 'function': the worst of its cases decides. `what` says of which weights, if not those of the file."""
    checks = [check for outcome in outcomes for check in outcome.checks]
    doubts = [doubt for outcome in outcomes for doubt in outcome.doubts]
    result = Phase("function", PASS, "", checks, notes=doubts, detail=detail)
    gating, failed = result.gates, [*result.failed]
    if failed:
        worst = max(failed, key=_share)
        count = f"{len(failed)} of {plural(len(gating), 'statistic')} over the limit"
        result.verdict, result.words = FAIL, f"{count}; worst: {worst.what}, {worst.statistic}: {worst.words}"
    elif doubts or not gating:
        result.verdict, result.words = INCONCLUSIVE, doubts[0] if doubts else "nothing was compared"
    else:
        samples = sum(outcome.case.samples for outcome in outcomes)
        inputs = f"{plural(len(outcomes), 'case')} of {plural(samples, 'sample')}"
        count = f"{plural(len(gating), 'statistic')} checked on {inputs}{' in all' * (len(outcomes) > 1)}"
        result.words = "; ".join([*_closeness(gating), *filter(None, [what]), count])
    return result


def _closeness(gating: Sequence[Check]) -> list[str]:
    """How near the outputs are in each precision that was run, the coarser first."""
    same, near = [], []
    for precision in (FLOAT32, FLOAT64):
        mine = [check for check in gating if check.statistic.startswith(f"{precision} ") and check.limit]
        if identical(mine):
            same.append(precision)
        elif mine:
            # Whichever statistic is the worst, as the reports' pictures show it.
            worst = max(mine, key=_share)
            within = f"{worst.value:.2g} (limit {worst.limit:g})" if precision == FLOAT64 else worst.words
            near.append(f"{precision} output within {within}")
    return [*([f"outputs identical in {' and '.join(same)}"] if same else []), *near]


def _share(check: Check) -> float:
    return margin(check) or 0.0
