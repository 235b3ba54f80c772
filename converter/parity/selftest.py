"""A checker that cannot tell right from wrong must not say PASS: deliberate faults, and the gates have to kill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..nets import Net, Values, no_probe
from ..nets.faults import CONFIG, FUNCTION, WEIGHTS, Fault, with_fault
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase
from .audit import audit
from .choices import FLOAT64
from .configuration import audit as config_audit
from .function import CaseOutcome, Judge
from .net_pair import NetPair, is_resource_error
from .statistics import relative

Tail = tuple[str, Values]  # (stage at which to begin, values before it)


FAINT = 1e-7  # relative L2, in float64: a change of the output that small is below every tolerance


@dataclass(frozen=True)
class SelfTestContext:
    """What faults are tried on.

    Attributes:
        nets: makes the converted net in float64.
        borrowed: what of the hyper-parameters only the converted config shows.
        outcomes: what the right nets gave; a fault is tried on one case after the other until one shows it.
        tail: where to begin in the first case, so that a cheap fault near the end costs a stage or two and not the
            whole net; None to run whole nets.
        waive: lets failed checks pass as the waivers in force do, so that no fault survives by them unnoticed.
        saved: whether the inputs are a user's own, and not those of the profile.
    """

    nets: NetPair
    borrowed: Mapping[str, Any]
    judge: Judge
    outcomes: Sequence[CaseOutcome]
    tail: Tail | None = None
    waive: Callable[[Sequence[Check]], object] = lambda checks: None
    saved: bool = False

    def reaches(self, fault: Fault) -> bool:
        """Whether there are inputs that a fault of the inputs changes at all, such as a mask to be ignored."""
        return not fault.inputs or any(
            _changed(fault.inputs, outcome.case.tensors(torch.float64)) for outcome in self.outcomes
        )


def _changed(change: Callable[[Values], Values], inputs: Values) -> bool:
    try:
        new = change(inputs)
    except KeyError:  # of an input that is not there
        return False
    return new.keys() != inputs.keys() or not all(torch.equal(value, new[name]) for name, value in inputs.items())


@dataclass
class Trial:
    """What came of a fault: the phases that noticed it, each asked on its own, and by how much it changed outputs."""

    detected_by: set[str] = field(default_factory=set)
    effect: float = 0.0  # the largest relative L2 of any part of any output, as long as nothing noticed it


def run(context: SelfTestContext, faults: Sequence[Fault], step: Callable[[int], None] = lambda count: None) -> Phase:
    """Try every fault, and that what changes nothing passes. A phase 'self-test' with one check per fault."""
    checks = []
    for fault in faults:
        checks.append(_judged(context, fault, run_fault(context, fault)))
        step(1)
    benign = sorted(run_fault(context, BENIGN).detected_by)
    words = f"a harmless change {'is killed by ' + ' and '.join(benign) if benign else 'passes'}"
    checks.append(Check(BENIGN.name, "killed by", ", ".join(benign), "", passed=not benign, words=words))
    survived = [check for check in checks if not check.passed]
    if survived:
        first = f"{survived[0].what} ({survived[0].words})"
        words = f"{len(survived)} of {len(checks)} faults not told from a right conversion: {first}"
        return Phase("self-test", INCONCLUSIVE, words, checks)
    words = f"all {len(faults)} deliberate faults were found, by the phases that have to"
    return Phase("self-test", PASS, words, checks)


def _judged(context: SelfTestContext, fault: Fault, trial: Trial) -> Check:
    """Whether the phases that have to notice a fault did, and in words why not."""
    detected, missing = sorted(trial.detected_by), sorted(fault.expected - trial.detected_by)
    words = f"killed by {' and '.join(detected) or 'nothing'}"
    if fault.faint and missing == [FUNCTION] and detected and trial.effect <= FAINT:
        # What no output shows no run can notice; that is what the weight audit is for.
        words += f"; it changes the output by {trial.effect:.1g} only, less than any tolerance"
        missing = []
    elif missing:
        words += f", NOT by {' and '.join(missing)}"
        if not context.reaches(fault):
            words += ": it changes nothing in these inputs"
            words += ", which are not enough for a PASS; leave --cases out" if context.saved else ""
    passed = bool(fault.expected) and not missing
    wanted = ", ".join(sorted(fault.expected))
    return Check(fault.name, "killed by", ", ".join(detected), wanted, passed=passed, words=words)


BENIGN = Fault("keys in another order, tensors copied", frozenset())


def run_fault(context: SelfTestContext, fault: Fault) -> Trial:
    """Apply a fault, and ask each phase that can notice it."""
    trial = Trial()
    nets, sides = context.nets, context.nets.sides
    state = with_fault(sides.converted, fault)
    if fault is BENIGN:
        state = dict(reversed(state.items()))
    if fault.weights or fault.drop or fault is BENIGN:
        # All else was audited before, and is the same.
        touched = fault.weights.keys() or fault.drop or set(list(state)[:1])
        if audit(replace(sides, converted=state, brief=True), only=touched).verdict == FAIL:
            trial.detected_by.add(WEIGHTS)
    config = fault.config(dict(nets.config)) if fault.config else nets.config
    if fault.config:
        audited = config_audit(sides.family, nets.model, sides.found, config, borrowed=context.borrowed)
        if audited.verdict == FAIL:
            trial.detected_by.add(CONFIG)
    if not fault.drop and (FUNCTION in fault.expected or not fault.expected):
        _run_nets(context, fault, trial, config=config, state=state)
    return trial


def _run_nets(
    context: SelfTestContext, fault: Fault, trial: Trial, *, config: Mapping[str, Any], state: Mapping[str, Any]
) -> None:
    attempts: list[tuple[CaseOutcome, Tail | None]] = [(right, None) for right in context.outcomes]
    if context.tail:
        # One sample shows most faults, at the cost of one; what it does not show is tried on all, then on whole nets.
        first = context.outcomes[0]
        attempts[:1] = [(_one(first), context.tail), (first, context.tail)]
    for right, tail in attempts:
        try:
            net = context.nets.build(config, state)
            output = output_with(net, fault, right, tail, device=context.nets.device)
        except Exception as error:
            if is_resource_error(error):
                return
            if fault.config or fault.weights:  # a net that is wrong may fail in any way, and has been noticed then
                trial.detected_by.add(FUNCTION)
                return
            continue  # inputs without what the fault changes
        outcome = context.judge.of_output(output, right)
        context.waive(outcome.checks)
        if outcome.verdict != PASS:
            trial.detected_by.add(FUNCTION)
            return
        for channels in context.judge.parts.values():
            apart = relative(output[:, channels], right.converted[FLOAT64][:, channels])
            trial.effect = max(trial.effect, apart)
        if tail and not fault.expected:
            return  # nothing is going to notice it, and what is left are whole nets


def _one(outcome: CaseOutcome) -> CaseOutcome:
    """The first sample alone."""
    case = replace(outcome.case, arrays={name: array[:1] for name, array in outcome.case.arrays.items()})
    original, converted = ({p: out[:1] for p, out in side.items()} for side in (outcome.original, outcome.converted))
    return CaseOutcome(case, original, converted)


def output_with(net: Net, fault: Fault, right: CaseOutcome, tail: Tail | None = None, *, device: str = "cpu") -> Tensor:
    """The output of a faulty net: from the inputs, or from the values before one of its last stages."""
    inputs = right.case.tensors(torch.float64, device)
    if fault.inputs:
        inputs = fault.inputs(inputs)
    if tail is None and not fault.values:
        return net.forward(inputs).cpu()
    first, before = tail if tail else (net.stages[0].name, {})
    count = len(next(iter(inputs.values())))
    values = {name: value[:count] for name, value in before.items()} | inputs
    going = False
    with torch.inference_mode():
        for stage in net.stages:
            going = going or stage.name == first
            if going:
                values |= stage.run(values, no_probe)
            if going and fault.values and stage.name == fault.stage:
                values = fault.values(values)
    return values["output"].cpu()
