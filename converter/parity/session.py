"""One pair under test: the phases that run its nets, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..errors import ConverterError, InputError, UsageError, as_flags
from ..nets import Weights
from ..nets.faults import idle, within_rounding
from ..nets.inputs import Case, load_cases, save_case
from ..reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase
from . import diagnosis, function, selftest, trajectory
from .choices import FLOAT64
from .diagnosis import describe
from .net_pair import NetPair, is_resource_error
from .provenance import loading
from .statistics import images


class Session(NetPair):
    """Runs the nets of one pair."""

    def cases(self, profile: str, saved: str | os.PathLike[str] | None = None) -> list[Case]:
        """The inputs of a profile, or those of a file."""
        left = {key: self.sides.original[key] for key in self.sides.plan.extras}
        cases = list(self.model.cases(self.sides.findings, profile, left))
        if not cases:
            raise UsageError(f"`family` {self.sides.family.name}: it gives no cases to compare the nets on")
        self.saved = saved
        return load_cases(Path(saved), cases[0], self.model.optional) if saved else cases

    def function(
        self, cases: Sequence[Case], precisions: Sequence[str], step: Callable[[int], None] = lambda count: None
    ) -> Phase:
        """Phase 3, with the place and the repair where it fails."""
        doubts: list[str] = []
        try:
            self.outcomes, detail = function.run(
                self.original, self.converted, cases, precisions,
                judge=self.judge, device=self.device, step=step, keep=self.keep,
            )  # fmt: skip
            alone = diagnosis.check_single_stages(self, doubts)
        except Exception as error:
            return self._failed(error, cases)
        first, notes = self.outcomes[0], self.sides.notes
        first.doubts += doubts
        notes += self.waive([check for outcome in self.outcomes for check in outcome.checks])
        first.checks += alone
        what = ""
        if effect := diagnosis.effect_of_cast(self):
            notes.append(effect)
            what = f"compared with the original's weights rounded to {self.sides.cast}"
        detail["cases"] = [{"name": c.name, "axes": c.axes, "sha256": c.sha256} for c in cases]
        phase = function.phase(self.outcomes, detail, what)
        if phase.verdict != FAIL:
            phase.notes += diagnosis.half_precision_notes(self)
        else:
            try:
                diagnosis.localise_failure(self, phase)
            except Exception as error:  # a net that is wrong may not have the parts to look into: the verdict stands
                phase.notes.append(f"where it goes wrong was not found: {describe(error)}")
        diagnosis.report_fix(self, phase)
        return phase

    def _failed(self, error: Exception, cases: Sequence[Case]) -> Phase:
        """The phase where a net did not run. Raises: `InputError` for saved inputs that our own net does not take."""
        if is_resource_error(error):
            return Phase("function", INCONCLUSIVE, f"this machine cannot run the nets: {describe(error)}")
        for case in cases:
            try:
                self.original(FLOAT64).forward(case.tensors(torch.float64, self.device))
            except Exception:  # our own net raises too: it is no fault of the converted one
                if self.saved:
                    rule = f"the original net does not take it: {describe(error)}"
                    raise InputError.at(self.saved, case.name, rule) from error
                raise error from None
        return Phase("function", FAIL, f"the converted net does not run: {describe(error)}")

    def trajectory(self, profile: str, right: bool) -> Phase:
        """Phase 4, in the larger profiles."""
        if profile == "quick":
            return Phase("trajectory", NOT_RUN, "not part of the quick profile")
        if not right:
            return Phase("trajectory", NOT_RUN, "an earlier phase has not passed")
        channels = next(iter(self.judge.parts.values())).stop
        sampler = self.model.sampler
        if sampler is None:
            return Phase("trajectory", NOT_RUN, "the family describes no sampler")
        outcome = next((one for one in self.outcomes if one.case.name == sampler.case), None)
        latent = outcome.case.arrays.get(sampler.latent) if outcome else None
        if outcome is None or latent is None or channels is None or len(latent) != 2:
            return Phase("trajectory", NOT_RUN, "there is no case with an unconditioned sample")
        places = outcome.original[FLOAT64].shape[2:]
        if latent.ndim < 4 or images(torch.from_numpy(latent)).shape[2:] != places:
            return Phase("trajectory", NOT_RUN, "the output does not predict the latent place by place")
        case, device = outcome.case, self.device
        return trajectory.run(self.original, self.converted, case, channels, sampler=sampler, device=device)

    def stock_loader(self, phase: Phase) -> None:
        """Add to the function whether the target library's own loader makes the net that was run, to the last bit."""
        case = self.outcomes[0].case
        inputs = case.tensors(torch.float32)
        assert self.model.loaded
        try:
            place, family = self.sides.folder, self.sides.family
            by_folder = {folder: loading(self.sides.place(folder))[0] for folder in family.folders}
            options = by_folder if family.several else by_folder[family.folders[0]]
            output = self.model.loaded(place, inputs, options)
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

    def self_test(self, kind: str, right: bool, step: Callable[[int], None] = lambda count: None) -> Phase:
        """Phase 5: the cheap faults on the end of the net, or the whole catalogue on all of it."""
        if not right:
            return Phase("self-test", NOT_RUN, "an earlier phase has not passed")
        faults = self.known_faults() + list(self.model.faults(self.sides.findings, self.config, self.sides.plan))
        if kind == "quick":
            faults = [fault for fault in faults if fault.cheap]
        nothing = [fault.name for fault in faults if idle(fault, self.sides.converted)]
        merged = self.sides.merged.parts if self.sides.merged else set()
        hidden = [fault.name for fault in faults if within_rounding(fault, merged)]
        faults = [fault for fault in faults if fault.name not in {*nothing, *hidden}]
        tail = self.tail if kind == "quick" else None
        phase = selftest.run(self, faults, step, tail=tail, saved=bool(self.saved))
        if nothing:
            phase.notes.append(f"not tried, since the tensor is zero already: {', '.join(nothing)}")
        if hidden:
            phase.notes.append(f"not tried, since the rounding of a merge may hide it: {', '.join(hidden)}")
        return phase

    def save_failing(self, folder: Path) -> list[str]:
        """Write the inputs and outputs of every failing case; returns what is said of it."""
        try:
            return [
                save_case(folder, one.case, {"original": one.original, "converted": one.converted})
                for one in self.outcomes
                if one.verdict != PASS
            ]
        except ConverterError as error:  # the verdict is worth more than its evidence
            return [f"--save_failing: {as_flags(str(error))}"]
