"""A checker that cannot tell right from wrong must not say PASS: deliberate faults, and the gates have to kill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..families import Family, Findings
from ..mapping import MappingError, Move
from ..reference import Net, Values, unheard
from .audit import Sides, difference
from .choices import FLOAT64
from .configuration import audit as config_audit
from .faults import CONFIG, FUNCTION, WEIGHTS, Fault, Faulty
from .function import Judge, Outcome
from .model import Model
from .report import FAIL, INCONCLUSIVE, PASS, Check, Phase

Build = Callable[[Mapping[str, Any], Mapping[str, Any]], Net]  # (config, converted state dict) -> the converted net


@dataclass(frozen=True)
class Bench:
    """What faults are tried on.

    Attributes:
        build: makes the converted net in float64.
        outcomes: what the right nets gave; a fault is tried on one case after the other until one kills it.
        tail: (stage at which to begin, values before it) of the first case: so that a cheap fault near the end costs
            a stage or two and not the whole net; None to run whole nets.
    """

    sides: Sides
    model: Model
    config: Mapping[str, Any]
    borrowed: Mapping[str, Any]
    judge: Judge
    build: Build
    outcomes: Sequence[Outcome]
    tail: tuple[str, Values] | None = None
    device: str = "cpu"

    @property
    def family(self) -> Family:
        return self.sides.family

    @cached_property
    def back(self) -> list[Move]:
        """The way back, which only another set of keys would change."""
        return self.family.keys.plan_back(self.sides.converted).moves

    @property
    def found(self) -> Findings:
        return self.sides.found


def run(bench: Bench, faults: Sequence[Fault], step: Callable[[int], None] = lambda count: None) -> Phase:
    """Try every fault, and that what changes nothing passes. A phase 'self-test' with one check per fault."""
    checks = []
    for fault in faults:
        killers = killed_by(bench, fault)
        passed = bool(fault.expected) and fault.expected <= killers
        missing = sorted(fault.expected - killers)
        words = f"killed by {' and '.join(sorted(killers)) or 'nothing'}"
        if missing:
            words += f", NOT by {' and '.join(missing)}"
        checks.append(
            Check(fault.name, "killed by", ", ".join(sorted(killers)), ", ".join(sorted(fault.expected)), passed, words)
        )
        step(1)
    benign = killed_by(bench, BENIGN)
    words = (
        "a harmless change passes" if not benign else f"a harmless change is killed by {' and '.join(sorted(benign))}"
    )
    checks.append(Check(BENIGN.name, "killed by", ", ".join(sorted(benign)), "", not benign, words))
    survived = [check for check in checks if not check.passed]
    if survived:
        first = f"{survived[0].what} ({survived[0].words})"
        words = f"{len(survived)} of {len(checks)} faults not told from a right conversion: {first}"
        return Phase("self-test", INCONCLUSIVE, words, checks)
    return Phase(
        "self-test", PASS, f"all {len(faults)} deliberate faults were found, by the phases that have to", checks
    )


BENIGN = Fault("keys in another order, tensors copied", frozenset())


class _Reordered(Mapping[str, Any]):
    """The same tensors in the reverse order."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state, self._keys = state, list(state)[::-1]

    def __getitem__(self, key: str) -> Any:
        return self._state[key]

    def __iter__(self) -> Any:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def killed_by(bench: Bench, fault: Fault) -> set[str]:
    """The phases that notice a fault, each asked on its own."""
    killers = set()
    state = _Reordered(bench.sides.converted) if fault is BENIGN else Faulty(bench.sides.converted, fault)
    if (fault.weights or fault.drop or fault is BENIGN) and not _weights_pass(bench, fault, state):
        killers.add(WEIGHTS)
    config = fault.config(dict(bench.config)) if fault.config else bench.config
    if fault.config and config_audit(bench.family, bench.model, bench.found, config, bench.borrowed).verdict == FAIL:
        killers.add(CONFIG)
    if (
        not fault.drop
        and (FUNCTION in fault.expected or not fault.expected)
        and _function_fails(bench, fault, config, state)
    ):
        killers.add(FUNCTION)
    return killers


def _weights_pass(bench: Bench, fault: Fault, state: Mapping[str, Any]) -> bool:
    """The audit of what a fault touches; everything else was audited already."""
    moves = bench.back
    if fault.drop or fault is BENIGN:
        try:
            moves = bench.family.keys.plan_back(state).moves
        except MappingError:
            return False
        if {move.targets[0] for move in moves} != {move.sources[0] for move in bench.sides.plan.moves}:
            return False
    touched = fault.weights.keys() or set(list(state)[:1])
    sides = replace(bench.sides, converted=state)
    return not any(difference(sides, move) for move in moves if touched & set(move.sources))


def _function_fails(bench: Bench, fault: Fault, config: Mapping[str, Any], state: Mapping[str, Any]) -> bool:
    for number, right in enumerate(bench.outcomes):
        right = _pair(right) if bench.tail else right
        made = Outcome(right.case, right.original)
        try:
            net = bench.build(config, state)
            made.converted[FLOAT64] = _output(net, fault, right, bench.tail if number == 0 else None, bench.device)
        except Exception:  # a net that is wrong may fail in any way, and has been noticed then
            return bool(fault.config or fault.weights)
        bench.judge.judge(made)
        if made.verdict != PASS:
            return True
        if bench.tail:
            break
    return False


def _pair(outcome: Outcome) -> Outcome:
    """The first two samples, which differ in everything: enough to tell a fault by, at the cost of two."""
    case = replace(outcome.case, arrays={name: array[:2] for name, array in outcome.case.arrays.items()})
    return Outcome(case, {precision: output[:2] for precision, output in outcome.original.items()})


def _output(net: Net, fault: Fault, right: Outcome, tail: tuple[str, Values] | None, device: str) -> Tensor:
    """The output of a faulty net: from the inputs, or from the values before one of its last stages."""
    inputs = right.case.tensors(torch.float64, device)
    if fault.inputs:
        inputs = fault.inputs(inputs)
    if tail is None and not fault.values:
        return net.forward(inputs).cpu()
    first, before = tail if tail else (net.stages[0].name, {})
    values = {name: value[:2] for name, value in before.items()} | inputs
    going = False
    with torch.inference_mode():
        for stage in net.stages:
            going = going or stage.name == first
            if going:
                values |= stage.run(values, unheard)
            if going and fault.values and stage.name == fault.stage:
                values = fault.values(values)
    return values["output"].cpu()
