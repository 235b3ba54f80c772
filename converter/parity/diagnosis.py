"""What is looked into once the function was compared: faulty stages with their repairs, half precision, the cast,
and a fix that is run after loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..errors import printable, shortened
from ..nets import no_probe
from ..nets.faults import with_fault
from ..nets.inputs import Case
from ..reports.report import FAIL, PASS, Check, Phase
from . import gates, localise
from .choices import FLOAT32, FLOAT64, HALF
from .net_pair import NetPair
from .statistics import images, relative


def describe(error: Exception) -> str:
    """An error in words: its class and what it says."""
    return f"{type(error).__name__}: {printable(error)}"


def localise_failure(nets: NetPair, phase: Phase) -> None:
    """Add to a failed phase which stages are wrong by themselves, and what would mend them."""
    worst = next(outcome for outcome in nets.outcomes if outcome.verdict == FAIL)
    precision = FLOAT64
    stages = lockstep(nets, worst.case, precision)
    if not faulty(stages) and FLOAT32 in worst.converted:  # right in float64, it can be wrong below that only
        below = lockstep(nets, worst.case, FLOAT32)
        if faulty(below):
            precision, stages = FLOAT32, below
    wrong = faulty(stages)
    # In float64, in which what is wrong below that only is right as it is.
    repairs = localise.repairs(
        nets.original(FLOAT64),
        lambda fault: nets.converted(state=with_fault(nets.sides.converted, fault)),
        worst.case,
        faults=nets.known_faults,
        stages=wrong if precision == FLOAT64 else [],
        device=nets.device,
    )
    mended = {stage: f"{stage} is right again with {fault}" for stage, fault in repairs.items()}
    phase.detail["localisation"] = {
        "precision": precision,
        "case": worst.case.name,
        "stages": [stage.as_dict() for stage in stages],
        "repairs": [{"words": words, "stage": stage, "restores": True} for stage, words in mended.items()],
    }
    where = shortened(wrong, 6) + ("" if precision == FLOAT64 else f", in {precision} only")
    places = [f"it goes wrong in {where}"] if wrong else []
    phase.words = "; ".join([*_faults(repairs), *places, phase.words])
    phase.words += "" if wrong else "; no single stage is wrong: look at the inputs"
    phase.notes += mended.values()


def _faults(repairs: Mapping[str, str]) -> list[str]:
    """What is wrong by that: faults that undo what was found, each with its stages."""
    stages: dict[str, list[str]] = {}
    for stage, fault in repairs.items():
        stages.setdefault(fault.removesuffix(f" in {stage}"), []).append(stage)
    return [
        f"{fault} in {shortened(where, 1)}" if f"{fault} in {where[0]}" == repairs[where[0]] else fault
        for fault, where in stages.items()
    ]


def lockstep(nets: NetPair, case: Case, precision: str) -> list[localise.LocalError]:
    """What `localise.lockstep` finds in a precision."""
    rounded = precision if precision in HALF else ""
    return localise.lockstep(
        nets.original(precision, rounded),
        nets.converted(precision, rounded),
        case,
        nets.device,
        dtype=getattr(torch, precision),
        exact=None if precision == FLOAT64 else nets.original(FLOAT64, rounded),
    )


def faulty(stages: Sequence[localise.LocalError]) -> list[str]:
    """The names of those that are wrong by themselves."""
    return [stage.name for stage in stages if stage.faulty]


def half_precision_notes(nets: NetPair) -> list[str]:
    """Of half precision, which decides nothing: which stages stand out, where the whole is worse than it may be."""
    notes = []
    for precision in HALF:
        for outcome in nets.outcomes:
            mine = [check for check in outcome.checks if check.statistic == f"{precision} relative L2"]
            if any(isinstance(c.value, float) and isinstance(c.limit, float) and c.value > c.limit for c in mine):
                where = ", ".join(faulty(lockstep(nets, outcome.case, precision))) or "no single stage"
                notes.append(f"{precision}, {outcome.case.name}: worse than the original; {where} stands out by itself")
                break
    return notes


def check_single_stages(nets: NetPair, doubts: list[str]) -> list[Check]:
    """The stages that the model wants tried by themselves; to `doubts` is added what the original net does not take."""
    checks = []
    for name, case in nets.model.stages(nets.sides.findings):
        values = case.tensors(torch.float64, nets.device)
        ours, theirs = (
            next(stage for stage in net.stages if stage.name == name)
            for net in (nets.original(FLOAT64), nets.converted(FLOAT64))
        )
        with torch.inference_mode():
            try:
                right = ours.run(values, no_probe)
            except ValueError as error:  # no fault of the converted net
                doubts.append(f"{case.name} / {name}: the original net does not take it: {printable(error)}")
                continue
            candidate = theirs.run(values, no_probe)
        checks.append(gates.float64_check(f"{case.name} / {name}", localise.error_of(candidate, right, values)))
    return checks


def effect_of_cast(nets: NetPair) -> str:
    """Where a cast was declared that loses anything: add to the first outcome what it does to the output, and return
    that in words; '' where there is none."""
    cast, first = nets.sides.cast, nets.outcomes[0]
    if not nets.sides.rounded:
        return ""
    # Half precision loses far more than float32 does by running in it.
    precision = FLOAT32 if cast in HALF else FLOAT64
    inputs = first.case.tensors(getattr(torch, precision), nets.device)
    output = images(nets.original(precision, as_stored=True).forward(inputs).cpu())
    for part, channels in nets.judge.parts.items():
        apart = relative(first.original[FLOAT64][:, channels], output[:, channels])
        words = f"rounding the weights to {cast} changes the output by {apart:.2g} (reported)"
        what = f"{first.case.name} / {part}"
        first.checks.append(Check(what, f"cast to {cast}", apart, None, passed=None, words=words))
    apart = relative(first.original[FLOAT64], output)
    return (
        f"the weights were rounded to {cast}, as declared, which changes the output by {apart:.2g} (relative L2); "
        f"both nets are compared with the rounded weights"
    )


def report_fix(nets: NetPair, phase: Phase) -> None:
    """Say in the phase 'function' which net was compared, and what the other one gives."""
    fix, first = nets.fix, nets.outcomes[0]
    if fix is None:
        return
    spec = nets.as_loaded if nets.fixed else fix.spec
    net = spec.converted(nets.config, nets.weights(nets.sides.converted, FLOAT64))
    output = net.forward(first.case.tensors(torch.float64, nets.device)).cpu()
    other = nets.judge.judged(first.case, first.original, {FLOAT64: output})
    error, limit = relative(other.converted[FLOAT64], other.original[FLOAT64]), gates.LIMITS["relative L2"]
    how = "as from_pretrained alone loads it" if nets.fixed else "with the line run on it"
    words = f"{how}: relative L2 {error:.2g} in float64 (limit {limit:g})"
    phase.checks.append(Check(f"{other.case.name} / whole", f"float64 {how}", error, limit, passed=None, words=words))
    if nets.fixed:
        phase.words += f"; this was run on what from_pretrained loads: {fix.line}"
        phase.notes.append(
            f"{words}: {fix.why}" if other.verdict == FAIL else f"{words}: on these inputs the line changes nothing"
        )
    elif phase.verdict == FAIL and other.verdict == PASS:
        phase.words = (
            f"{fix.why}: it is the original's function (relative L2 {error:.2g}) once this is run on what "
            f"from_pretrained loads: {fix.line} (--{fix.flag} true compares that); {phase.words}"
        )
    elif phase.verdict == FAIL:
        phase.notes.append(f"{fix.why}, but that is not all: {words}")
