"""Function: the original net and the converted one on the same fixed noise, judged by the original's own rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..nets import Net, Values
from ..nets.inputs import Case, exact
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase
from . import gates
from .choices import FLOAT32, FLOAT64, HALF
from .pictures import Detail, Tracer, Watch, pictures
from .statistics import Statistics, compare

Make = Callable[..., Net]  # (precision, rounded="") -> the net in it, of weights rounded first where that is asked


@dataclass
class CaseOutcome:
    """What a case gave: the outputs by precision, and what was found.

    `truth`: the original in float64, by the precision that is held against it: in half precision of weights and inputs
    that are rounded to it, else of the weights and inputs as they are.
    """

    case: Case
    original: dict[str, Tensor] = field(default_factory=dict)
    converted: dict[str, Tensor] = field(default_factory=dict)
    truth: dict[str, Tensor] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def outputs(self) -> dict[str, dict[str, Tensor]]:
        """By side and precision."""
        return {"original": self.original, "converted": self.converted}

    @property
    def verdict(self) -> str:
        failed = any(check.passed is False and not check.waived for check in self.checks)
        return FAIL if failed else INCONCLUSIVE if self.doubts else PASS


@dataclass(frozen=True)
class Judge:
    """How outputs are cut before they are compared: `parts` (name -> channels), side of a `patch`."""

    parts: Mapping[str, slice]
    patch: int

    def of_output(self, output: Tensor, right: CaseOutcome) -> CaseOutcome:
        """What another converted net gives in float64, on the inputs of an outcome, judged."""
        outcome = CaseOutcome(right.case, right.original, {FLOAT64: output})
        self.judge(outcome)
        return outcome

    def judge(self, outcome: CaseOutcome) -> None:
        """Fill in the checks and doubts of an outcome out of its outputs."""
        for part, channels in self.parts.items():
            what = f"{outcome.case.name} / {part}"
            for precision, output in outcome.converted.items():
                truth = outcome.truth.get(precision, outcome.original[FLOAT64])
                stats = self._compare(output, truth, channels)
                # Not finite where the original in this precision is not either is no fault of the conversion.
                theirs = int((~torch.isfinite(outcome.original[precision][:, channels])).sum())
                stats = replace(stats, nonfinite=(stats.nonfinite[0], max(stats.nonfinite[1], theirs)))
                if self._unfit(outcome, what, precision, stats):
                    continue
                if precision == FLOAT64:
                    checks = list(gates.float64_checks(what, stats))
                    outcome.checks += [*checks, gates.smallest_passing(what, precision, checks)]
                    outcome.checks += gates.shown(what, precision, stats)
                    continue
                own = outcome.original[precision]
                floor = gates.Floor(self._compare(own, truth, channels), stats, self._compare(output, own, channels))
                if precision in HALF:
                    outcome.checks += gates.half_checks(what, precision, floor)
                else:
                    self._float32(outcome, what, floor)

    def _compare(self, candidate: Tensor, reference: Tensor, channels: slice) -> Statistics:
        return compare(candidate[:, channels], reference[:, channels], self.patch)

    @staticmethod
    def _unfit(outcome: CaseOutcome, what: str, precision: str, stats: Statistics) -> bool:
        """Whether there is nothing to compare: not finite, or a reference that is zero everywhere."""
        bad = gates.nonfinite(what, precision, stats)
        if bad:
            outcome.checks.append(bad)
            if bad.passed is None and precision not in HALF:
                outcome.doubts.append(f"{what}: the original's own output is not finite in {precision}")
        elif not stats.scale:
            outcome.doubts.append(f"{what}: the original's output is zero everywhere, which any zero would equal")
        return bad is not None or not stats.scale

    @staticmethod
    def _float32(outcome: CaseOutcome, what: str, floor: gates.Floor) -> None:
        if above := gates.above_cap(floor.original):
            outcome.doubts.append(
                f"{what}: the original's own noise in float32 is {above}: this machine's arithmetic is too coarse to "
                "compare by (TF32, or a faulty kernel?)"
            )
            return
        checks = list(gates.float32_checks(what, floor))
        outcome.checks += [*checks, gates.smallest_passing(what, FLOAT32, checks)]
        outcome.checks += gates.shown(what, FLOAT32, floor.between)


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
) -> tuple[list[CaseOutcome], Detail]:
    """Run every case through both nets.

    Args:
        original, converted: (precision, rounded) -> the net in it.
        precisions: of 'float64', 'float32', 'float16', 'bfloat16'; the original always runs in float64 as well.
        keep: told what comes of each stage of the original in float64, in the first case.
    """
    outcomes, tracer = [], Tracer()
    traced = FLOAT32 if FLOAT32 in precisions else precisions[0]

    def follow(*watches: Watch) -> Watch:
        def watch(stage: str, values: Values) -> None:
            step(1)
            for each in watches:
                each(stage, values)

        return watch

    for number, case in enumerate(cases):
        outcome = CaseOutcome(case)
        for precision in dict.fromkeys([FLOAT64, *precisions]):
            inputs = case.tensors(getattr(torch, precision), device)
            rounded = precision if precision in HALF else ""
            ours: list[Watch] = []
            theirs: list[Watch] = []
            if number == 0:
                if precision == FLOAT64:
                    ours = [tracer.truth, keep]
                elif precision == traced:
                    ours = [tracer.against("original")]
                if precision == traced:
                    theirs = [tracer.against("converted")]
            outcome.original[precision] = original(precision, rounded).forward(inputs, follow(*ours)).cpu()
            if rounded:
                outcome.truth[precision] = original(FLOAT64, rounded).forward(exact(inputs), follow()).cpu()
            if precision in precisions:
                outcome.converted[precision] = converted(precision, rounded).forward(inputs, follow(*theirs)).cpu()
        judge.judge(outcome)
        outcomes.append(outcome)
    if not outcomes:
        return outcomes, Detail()
    first = outcomes[0]
    outputs = first.converted[traced], first.original[FLOAT64]
    return outcomes, pictures(first.case.name, traced, outputs, tracer, parts=judge.parts)


def phase(outcomes: Sequence[CaseOutcome], shown: Detail, what: str = "") -> Phase:
    """The phase 'function': the worst of its cases decides. `what` says of which weights, if not those of the file."""
    detail = shown.as_dict()
    checks = [check for outcome in outcomes for check in outcome.checks]
    doubts = [doubt for outcome in outcomes for doubt in outcome.doubts]
    gating = [check for check in checks if check.passed is not None]
    failed = [check for check in gating if check.passed is False and not check.waived]
    if failed:
        worst = max(failed, key=_exhausted)
        words = f"{len(failed)} of {len(gating)} checks failed; worst: {worst.what}, {worst.statistic}: {worst.words}"
        return Phase("function", FAIL, words, checks, notes=doubts, detail=detail)
    if doubts or not gating:
        words = doubts[0] if doubts else "nothing was compared"
        return Phase("function", INCONCLUSIVE, words, checks, notes=doubts, detail=detail)
    numbers = []
    for precision in (FLOAT32, FLOAT64):
        # Whichever statistic is the worst, as the reports' pictures show it.
        mine = [check for check in gating if check.statistic.startswith(f"{precision} ") and check.limit]
        if mine:
            worst = max(mine, key=_exhausted)
            numbers.append(f"at worst {worst.words} in {precision}")
    words = f"the same function{what}: {', '.join(numbers)}; {len(gating)} checks in {len(outcomes)} case"
    words += "s" * (len(outcomes) > 1)
    return Phase("function", PASS, words, checks, notes=doubts, detail=detail)


def _exhausted(check: Check) -> float:
    """How much of its limit a check uses."""
    if not isinstance(check.value, float) or not isinstance(check.limit, float):
        return 0.0
    return check.value / check.limit if check.limit else float("inf")
