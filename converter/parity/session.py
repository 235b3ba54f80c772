"""One pair under test: the phases that run its nets, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConverterError, InputError, as_flags
from ..nets import Values, Weights
from ..nets.faults import Fault, idle
from ..nets.inputs import Case, load_cases, save_case
from ..nets.spec import ParitySpec
from ..reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase
from . import diagnosis, function, provenance, selftest, trajectory
from .catalogue import catalogue
from .choices import FLOAT64
from .diagnosis import describe
from .function import CaseOutcome, Judge
from .net_pair import NetPair, is_resource_error
from .waivers import Waiver, apply
from .weight_pair import WeightPair


class Session(NetPair):
    """Runs the nets of one pair.

    Args:
        sides, model, config: as of `NetPair`.
        borrowed: what of the hyper-parameters only that config shows.
        digest: SHA-256 of the original, which a waiver may be bound to.

    Attributes:
        waivers: those in force.
        notes: what is to be said of the whole run.
        tail: for faults that cost no more than the last two stages: the first of these, and the original's values
            before it.
    """

    def __init__(
        self,
        sides: WeightPair,
        model: ParitySpec,
        config: Mapping[str, Any],
        borrowed: Mapping[str, Any],
        device: str,
        digest: str = "",
    ) -> None:
        needed = model.fix is not None and model.fix.flag in sides.found  # not by every model of the family
        self.fix, self.as_loaded = model.fix if needed else None, model
        self.fixed = self.fix is not None and bool(sides.found[self.fix.flag].value)
        super().__init__(sides, self.fix.spec if self.fix and self.fixed else model, config, device)
        self.borrowed, self.digest = borrowed, digest
        self.judge = Judge(model.parts(sides.found), model.patch(sides.found))
        self.outcomes: list[CaseOutcome] = []
        self.waivers: Sequence[Waiver] = ()
        self.notes: list[str] = []
        self._saved: Any = None
        names = [stage.name for stage in self.original(FLOAT64).stages]
        self._early = set(names[:-2])
        self.tail: selftest.Tail = (names[-2:][0], {})

    def cases(self, profile: str, saved: Any = None) -> list[Case]:
        """The inputs of a profile, or those of a file."""
        left = {key: self.sides.original[key] for key in self.sides.plan.extras}
        cases = list(self.model.cases(self.sides.found, profile, left))
        self._saved = saved
        return load_cases(Path(saved), cases[0], self.model.optional) if saved else cases

    def function(
        self, cases: Sequence[Case], precisions: Sequence[str], step: Callable[[int], None] = lambda count: None
    ) -> Phase:
        """Phase 3, with the place and the repair where it fails."""
        doubts: list[str] = []
        try:
            self.outcomes, detail = function.run(
                self.original, self.converted, cases, precisions,
                judge=self.judge, device=self.device, step=step, keep=self._keep,
            )  # fmt: skip
            alone = diagnosis.lone_stages(self, doubts)
        except Exception as error:
            return self._failed(error, cases)
        first = self.outcomes[0]
        first.doubts += doubts
        self.notes += self.waive([check for outcome in self.outcomes for check in outcome.checks])
        first.checks += alone
        what = ""
        if effect := diagnosis.effect_of_cast(self, first, self.judge.parts):
            self.notes.append(effect)
            what = f" as that of the original's weights rounded to {self.sides.cast}"
        detail.cases = [{"name": c.name, "axes": c.axes, "sha256": c.sha256} for c in cases]
        phase = function.phase(self.outcomes, detail, what)
        if phase.verdict != FAIL:
            phase.notes += diagnosis.worse_in_half(self, self.outcomes, list(self.judge.parts))
        else:
            try:
                diagnosis.localise_failure(self, phase, self.outcomes, self.known_faults)
            except Exception as error:  # a net that is wrong may not have the parts to look into: the verdict stands
                phase.notes.append(f"where it goes wrong was not found: {describe(error)}")
        if self.fix:
            spec = self.as_loaded if self.fixed else self.fix.spec
            net = spec.converted(self.config, self.weights(self.sides.converted, FLOAT64))
            output = net.forward(first.case.tensors(torch.float64, self.device)).cpu()
            diagnosis.report_fix(phase, self.fix, self.fixed, self.judge.of_output(output, first))
        return phase

    def _failed(self, error: Exception, cases: Sequence[Case]) -> Phase:
        """The phase where a net did not run. Raises: `InputError` for saved inputs that our own net does not take."""
        if is_resource_error(error):
            return Phase("function", INCONCLUSIVE, f"this machine cannot run the nets: {describe(error)}")
        for case in cases:
            try:
                self.original(FLOAT64).forward(case.tensors(torch.float64, self.device))
            except Exception:  # our own net raises too: it is no fault of the converted one
                if self._saved:
                    rule = f"the original net does not take it: {describe(error)}"
                    raise InputError.at(self._saved, case.name, rule) from error
                raise error from None
        return Phase("function", FAIL, f"the converted net does not run: {describe(error)}")

    def waive(self, checks: Sequence[Check]) -> list[str]:
        """Let pass what the waivers in force are for; returns what is said of it."""
        return apply(self.waivers, checks, checkpoint=self.digest)

    def _keep(self, stage: str, values: Values) -> None:
        """Keep the original's values as they are before its last two stages."""
        if stage in self._early:
            self.tail[1].update(values)

    def trajectory(self, profile: str, right: bool) -> Phase:
        """Phase 4, in the larger profiles."""
        if profile == "quick":
            return Phase("trajectory", NOT_RUN, "not part of the quick profile")
        if not right:
            return Phase("trajectory", NOT_RUN, "a phase before it has not passed")
        channels = next(iter(self.judge.parts.values())).stop
        sampler = self.model.sampler
        if sampler is None:
            return Phase("trajectory", NOT_RUN, "the family describes no sampler")
        case = next((one.case for one in self.outcomes if one.case.name == sampler.case), None)
        if case is None or channels is None or len(case.arrays["latent"]) != 2:
            return Phase("trajectory", NOT_RUN, "there is no case with an unconditioned sample")
        return trajectory.run(self.original, self.converted, case, channels, sampler=sampler, device=self.device)

    def stock_loader(self, phase: Phase, folder: Path) -> None:
        """Add to the function whether the target library's own loader makes the net that was run, to the last bit."""
        case = self.outcomes[0].case
        inputs = case.tensors(torch.float32)
        assert self.model.loaded
        try:
            output = self.model.loaded(folder, inputs, provenance.loading(folder)[0])
        except Exception as error:
            same, words = False, f"from_pretrained does not load it: {describe(error)}"
        else:
            # Both on the CPU: no two devices agree to the last bit.
            weights = Weights(self.sides.converted, torch.float32)
            same = torch.equal(output, self.model.converted(self.config, weights).forward(inputs))
            words = f"from_pretrained gives {'the net that was compared, bit for bit' if same else 'another net'}"
        what = f"{case.name} / whole"
        phase.checks.append(Check(what, "float32 stock loader", None, None, passed=same, words=words))
        if not same:
            phase.verdict, phase.words = FAIL, words

    def known_faults(self, block: int | None = None) -> list[Fault]:
        """The faults that the table has in it, of one block (default: the last)."""
        spec = self.model
        return catalogue(
            self.sides.plan, spec.invisible_biases, block,
            invisible_scales=spec.invisible_scales, invisible_swaps=spec.invisible_swaps,
        )  # fmt: skip

    def self_test(self, kind: str, right: bool, step: Callable[[int], None] = lambda count: None) -> Phase:
        """Phase 5: the cheap faults on the end of the net, or the whole catalogue on all of it."""
        if not right:
            return Phase("self-test", NOT_RUN, "what has not passed cannot tell right from wrong")
        faults = self.known_faults() + list(self.model.faults(self.sides.found, self.config, self.sides.plan))
        if kind == "quick":
            faults = [fault for fault in faults if fault.cheap]
        nothing = [fault.name for fault in faults if idle(fault, self.sides.converted)]
        context = selftest.SelfTestContext(
            self,
            self.borrowed,
            self.judge,
            self.outcomes,
            tail=self.tail if kind == "quick" else None,
            waive=self.waive,
            saved=bool(self._saved),
        )
        phase = selftest.run(context, [fault for fault in faults if fault.name not in nothing], step)
        if nothing:
            phase.notes.append(f"not tried, since it is zero already and so no fault: {', '.join(nothing)}")
        return phase

    def save_failing(self, folder: Path) -> list[str]:
        """Write the inputs and outputs of every failing case; returns what is said of it."""
        try:
            return [save_case(folder, o.case, o.outputs) for o in self.outcomes if o.verdict != PASS]
        except ConverterError as error:  # the verdict is worth more than its evidence
            return [f"--save_failing: {as_flags(str(error))}"]
