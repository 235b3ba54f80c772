"""A checker that cannot tell right from wrong must not say PASS: deliberate faults, and the gates have to kill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import plural
from ..nets import Net, Values, no_probe
from ..nets.faults import CONFIG, FUNCTION, WEIGHTS, Fault, with_fault
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase
from .audit import audit
from .choices import FLOAT64
from .configuration import audit as config_audit
from .function import CaseOutcome
from .net_pair import NetPair, is_resource_error
from .statistics import relative

Tail = tuple[str, Values]  # (stage at which to begin, values before it)
FAINT = 1e-7  # relative L2, in float64: a change of the output that small is below every tolerance
BENIGN = Fault("keys in another order, tensors copied", frozenset())


def run(
    nets: NetPair,
    faults: Sequence[Fault],
    step: Callable[[int], None] = lambda count: None,
    *,
    tail: Tail | None = None,
    saved: bool = False,
) -> Phase:
    """Try every fault, on one case after the other until one shows it, and that what changes nothing passes.

    Args:
        tail: where to begin in the first case, so that a cheap fault near the end costs a stage or two and not the
            whole net; None to run whole nets.
        saved: whether the inputs are a user's own, and not those of the profile.

    Returns: a phase 'self-test' with one check per fault.
    """
    checks = []
    for fault in faults:
        detected, effect = run_fault(nets, fault, tail)
        missing = fault.expected - detected
        words = f"caught by {' and '.join(sorted(detected)) or 'nothing'}"
        if fault.faint and missing == {FUNCTION} and detected and effect <= FAINT:
            # What no output shows no run can notice; that is what the weight audit is for.
            words += f"; it changes the output by {effect:.1g} only, less than any tolerance"
            missing = frozenset()
        elif missing:
            words += f", NOT by {' and '.join(sorted(missing))}"
            cases = (outcome.case.tensors(torch.float64) for outcome in nets.outcomes)
            if fault.inputs and not any(_changes(fault.inputs, inputs) for inputs in cases):
                words += ": it changes nothing in these inputs"
                words += ", which are not enough for a PASS; leave --cases out" if saved else ""
        limit = ", ".join(sorted(fault.expected))
        passed = bool(fault.expected) and not missing
        checks.append(Check(fault.name, "caught by", ", ".join(sorted(detected)), limit, passed=passed, words=words))
        step(1)
    benign = sorted(run_fault(nets, BENIGN, tail)[0])
    words = f"a harmless change {'is caught by ' + ' and '.join(benign) if benign else 'passes'}"
    checks.append(Check(BENIGN.name, "caught by", ", ".join(benign), "", passed=not benign, words=words))
    survived = [check for check in checks if not check.passed]
    if not survived:
        return Phase("self-test", PASS, f"all {len(faults)} deliberate faults were caught", checks)
    missed = len(survived) - bool(benign)
    wrong = [f"{missed} of {plural(len(faults), 'deliberate fault')} missed"] if missed else []
    wrong += ["a harmless change taken for a fault"] if benign else []
    words = f"{' and '.join(wrong)}: {survived[0].what} ({survived[0].words})"
    return Phase("self-test", INCONCLUSIVE, words, checks)


def _changes(change: Callable[[Values], Values], inputs: Values) -> bool:
    """Whether a fault of the inputs changes these at all, such as a mask to be ignored."""
    try:
        new = change(inputs)
    except KeyError:  # of an input that is not there
        return False
    return new.keys() != inputs.keys() or not all(torch.equal(value, new[name]) for name, value in inputs.items())


def run_fault(nets: NetPair, fault: Fault, tail: Tail | None = None) -> tuple[set[str], float]:
    """(The phases that notice a fault, each asked on its own; by how much it changes any output, relative L2, where the
    function does not notice.)"""
    detected, sides = set(), nets.sides
    state = with_fault(sides.converted, fault)
    if fault is BENIGN:
        state = dict(reversed(state.items()))
    if fault.weights or fault.drop or fault is BENIGN:
        # All else was audited before, and is the same.
        touched = fault.weights.keys() or fault.drop or set(list(state)[:1])
        if audit(sides.against(state), only=touched).verdict == FAIL:
            detected.add(WEIGHTS)
    config = fault.config(dict(nets.config)) if fault.config else None
    if config is not None and config_audit(sides, config).verdict == FAIL:
        detected.add(CONFIG)
    effect: float | None = 0.0
    if not fault.drop and (FUNCTION in fault.expected or not fault.expected):
        effect = _effect(nets, fault, tail, config=config, state=state)
        detected |= {FUNCTION} if effect is None else set()
    return detected, effect or 0.0


def _effect(
    nets: NetPair, fault: Fault, tail: Tail | None, *, config: Mapping[str, Any] | None, state: Mapping[str, Any]
) -> float | None:
    """By how much a faulty net changes any output, None where the gates notice."""
    effect = 0.0
    attempts: list[tuple[CaseOutcome, Tail | None]] = [(right, None) for right in nets.outcomes]
    if tail:
        # What it does not show is tried on whole nets: the last block of another stack, or a layer in none, is not
        # among the last stages.
        attempts[:0] = [(nets.outcomes[0], tail)]
    for right, start in attempts:
        try:
            net = nets.converted(state=state, config=config, change=fault.model)
            output = output_with(net, fault, right, start, device=nets.device)
        except Exception as error:
            if is_resource_error(error):
                break
            if fault.config or fault.weights or fault.model:  # a wrong net may fail in any way: it has been noticed
                return None
            continue  # inputs without what the fault changes
        outcome = nets.judge.judged(right.case, right.original, {FLOAT64: output})
        nets.waive(outcome.checks)  # so that no fault survives by the waivers in force unnoticed
        if outcome.verdict != PASS:
            return None
        for channels in nets.judge.parts.values():
            effect = max(
                effect, relative(outcome.converted[FLOAT64][:, channels], right.converted[FLOAT64][:, channels])
            )
        if start and not fault.expected:
            break  # nothing is going to notice it, and what is left are whole nets
    return effect


def output_with(net: Net, fault: Fault, right: CaseOutcome, tail: Tail | None = None, *, device: str = "cpu") -> Tensor:
    """The output of a faulty net: from the inputs, or from the values before one of its last stages."""
    inputs = right.case.tensors(torch.float64, device)
    if fault.inputs:
        inputs = fault.inputs(inputs)
    if tail is None and not fault.values:
        return net.forward(inputs).cpu()
    first, before = tail if tail else (net.stages[0].name, {})
    values = {**before, **inputs}
    going = False
    with torch.inference_mode():
        for stage in net.stages:
            going = going or stage.name == first
            if going:
                values |= stage.run(values, no_probe)
            if going and fault.values and stage.name == fault.stage:
                values = fault.values(values)
    return values["output"].cpu()
