"""One pair under test: its nets in every precision, and the phases that run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..errors import ConverterError, InputError, as_flags, printable, shortened
from ..nets import Memory, Values, Weights, no_probe
from ..nets.cases import load_cases
from ..nets.faults import Fault, idle
from ..nets.inputs import Case
from ..nets.spec import ParitySpec
from ..reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Check, Phase
from . import function, gates, localise, post_load_fix, provenance, selftest, trajectory
from .catalogue import catalogue
from .choices import FLOAT32, FLOAT64, HALF
from .function import CaseOutcome, Judge
from .nets import NetPair, is_resource_error, stage_of
from .save_failing import save_outcome
from .statistics import relative
from .weight_pair import WeightPair as Sides


class Session(NetPair):
    """Runs the nets of one pair.

    Args:
        sides, model, config: as of `NetPair`.
        borrowed: what of the hyper-parameters only that config shows.
        digest: SHA-256 of the original, which a waiver may be bound to.
    """

    def __init__(
        self,
        sides: Sides,
        model: ParitySpec,
        config: Mapping[str, Any],
        borrowed: Mapping[str, Any],
        device: str,
        digest: str = "",
    ) -> None:
        self.fix, self.as_loaded = model.fix, model
        self.fixed = model.fix is not None and bool(sides.found[model.fix.flag].value)
        super().__init__(sides, model.fix.spec if model.fix and self.fixed else model, config, device)
        self.borrowed, self.digest = borrowed, digest
        self.judge = Judge(model.parts(sides.found), model.patch(sides.found))
        self.outcomes: list[CaseOutcome] = []
        self._saved: Any = None
        self._waivers: Sequence[Any] = ()
        # The last two stages, for faults that cost no more than these, and what flows before them.
        names = [stage.name for stage in self.original(FLOAT64).stages]
        self._early, self._late = set(names[:-2]), names[-2:]
        self._before: Values = {}

    # Phases.
    def cases(self, profile: str, saved: Any = None) -> list[Case]:
        """The inputs of a profile, or those of a file."""
        left = {key: self.sides.original[key] for key in self.sides.plan.extras}
        made = list(self.model.cases(self.sides.found, profile, left))
        self._saved = saved
        return load_cases(Path(saved), made[0], self.model.optional) if saved else made

    def function(
        self,
        cases: Sequence[Case],
        precisions: Sequence[str],
        waivers: Sequence[Any],
        notes: list[str],
        step: Callable[[int], None],
    ) -> Phase:
        """Phase 3, with the place and the repair where it fails."""
        try:
            self.outcomes, detail = function.run(
                self.original, self.converted, cases, precisions,
                judge=self.judge, device=self.device, step=step, keep=self._keep,
            )  # fmt: skip
            alone = self._lone_stages()
        except Exception as error:
            if is_resource_error(error):
                return Phase("function", INCONCLUSIVE, f"this machine cannot run the nets: {_told(error)}")
            if refused := self._refused(cases):
                if self._saved:
                    rule = f"the original net does not take it: {_told(error)}"
                    raise InputError.at(self._saved, refused, rule) from error
                raise
            return Phase("function", FAIL, f"the converted net does not run: {_told(error)}")
        self._waivers = waivers
        notes += self._waive([check for outcome in self.outcomes for check in outcome.checks])
        self.outcomes[0].checks += alone
        what = self._rounded_to(notes)
        detail.cases = [{"name": c.name, "axes": c.axes, "sha256": c.sha256} for c in cases]
        made = function.phase(self.outcomes, detail, what)
        if made.verdict == FAIL:
            try:
                self._localise(made)
            except Exception as error:  # a net that is wrong may not have the parts to look into: the verdict stands
                made.notes.append(f"where it goes wrong was not found: {_told(error)}")
        else:
            made.notes += self._worse_in_half()
        if self.fix:
            spec = self.as_loaded if self.fixed else self.fix.spec
            net = spec.converted(self.config, self.weights(self.sides.converted, FLOAT64))
            other = post_load_fix.outcome_of(net, self.outcomes[0], self.judge, self.device)
            post_load_fix.report_fix(made, self.fix, self.fixed, other)
        return made

    def _worse_in_half(self) -> list[str]:
        """Of half precision, which decides nothing: which stages stand out, where the whole is worse than it may be."""
        said = []
        for precision in HALF:
            for outcome in self.outcomes:
                names = {f"{outcome.case.name} / {part}" for part in self.judge.parts}
                mine = [c for c in outcome.checks if c.statistic == f"{precision} relative L2" and c.what in names]
                if any(isinstance(c.value, float) and isinstance(c.limit, float) and c.value > c.limit for c in mine):
                    _, faulty = self.lockstep(outcome.case, precision)
                    where = ", ".join(faulty) or "no single stage"
                    said.append(
                        f"{precision}, {outcome.case.name}: worse than the original; {where} stands out by itself"
                    )
                    break
        return said

    def _waive(self, checks: Sequence[Check]) -> list[str]:
        """Let pass what the waivers in force are for; returns what is said of it."""
        if not self._waivers:
            return []
        from .waivers import apply

        return apply(self._waivers, checks, checkpoint=self.digest)

    def _lone_stages(self) -> list[Check]:
        """The stages that the family wants tried by themselves."""
        made = []
        for name, case in self.model.stages(self.sides.found):
            values = case.tensors(torch.float64, self.device)
            with torch.inference_mode():
                try:
                    ours = stage_of(self.original(FLOAT64), name).run(values, no_probe)
                except ValueError as error:  # no fault of the converted net
                    doubt = f"{case.name} / {name}: the original net does not take it: {printable(error)}"
                    self.outcomes[0].doubts.append(doubt)
                    continue
                theirs = stage_of(self.converted(FLOAT64), name).run(values, no_probe)
            made.append(gates.stage_check(f"{case.name} / {name}", localise.error_of(theirs, ours, values)))
        return made

    def _rounded_to(self, notes: list[str]) -> str:
        """What is compared where a cast was declared, in words for the phase; what the cast itself does is reported."""
        cast, first = self.sides.cast, self.outcomes[0]
        if not self.sides.rounded:
            return ""
        # Half precision loses far more than float32 does by running in it.
        precision = FLOAT32 if cast in HALF else FLOAT64
        inputs = first.case.tensors(getattr(torch, precision), self.device)
        output = self.original(precision, as_stored=True).forward(inputs).cpu()
        for part, channels in self.judge.parts.items():
            apart = relative(first.original[FLOAT64][:, channels], output[:, channels])
            words = f"rounding the weights to {cast} changes the output by {apart:.2g} (reported)"
            first.checks.append(Check(f"{first.case.name} / {part}", f"cast to {cast}", apart, None, None, words))
        apart = relative(first.original[FLOAT64], output)
        notes.append(
            f"the weights were rounded to {cast}, as declared, which changes the output by {apart:.2g} (relative L2); "
            f"both nets are compared with the rounded weights"
        )
        return f" as that of the original's weights rounded to {cast}"

    def _keep(self, stage: str, made: Values) -> None:
        """Keep the original's values as they are before its last two stages."""
        if stage in self._early:
            self._before |= made

    def _refused(self, cases: Sequence[Case]) -> str:
        """The first case on which our own net raises too, so that it is no fault of the converted one; '' for none."""
        for case in cases:
            try:
                self.original(FLOAT64).forward(case.tensors(torch.float64, self.device))
            except Exception:
                return case.name
        return ""

    def _localise(self, made: Phase) -> None:
        worst = next(outcome for outcome in self.outcomes if outcome.verdict == FAIL)
        precision = FLOAT64
        stages, faulty = self.lockstep(worst.case, precision)
        if not faulty and FLOAT32 in worst.converted:  # right in float64, it can be wrong below that only
            below, faulty = self.lockstep(worst.case, FLOAT32)
            if faulty:
                precision, stages = FLOAT32, below
        repairs = localise.repairs(
            self.original(FLOAT64),
            lambda state: self.build(self.config, state),
            self.sides.converted,
            worst.case,
            faults=self._catalogue,
            stages=faulty,
            device=self.device,
        )
        made.detail["localisation"] = {
            "precision": precision,
            "case": worst.case.name,
            "stages": [stage.as_dict() for stage in stages],
            "repairs": [asdict(repair) for repair in repairs],
        }
        where = shortened(faulty, 6)
        where += "" if precision == FLOAT64 else f", in {precision} only"
        made.words += f"; it goes wrong in {where}" if faulty else "; no single stage is wrong: look at the inputs"
        made.notes += [repair.words for repair in repairs]

    def trajectory(self, profile: str, right: bool) -> Phase:
        """Phase 4, in the larger profiles."""
        if profile == "quick":
            return Phase("trajectory", NOT_RUN, "not part of the quick profile")
        if not right:
            return Phase("trajectory", NOT_RUN, "a phase before it has not passed")
        channels = next(iter(self.judge.parts.values())).stop
        sampler = self.model.sampler
        case = next((one.case for one in self.outcomes if sampler and one.case.name == sampler.case), None)
        if sampler is None or case is None or channels is None or len(case.arrays[sampler.latent]) != 2:
            return Phase("trajectory", NOT_RUN, "there is no case with a null caption to begin with")
        return trajectory.run(self.original, self.converted, case, channels, sampler=sampler, device=self.device)

    def stock_loader(self, made: Phase, folder: Path) -> None:
        """Add to the function whether the target library's own loader makes the net that was run, to the last bit."""
        case = self.outcomes[0].case
        what, inputs = f"{case.name} / whole", case.tensors(torch.float32)
        assert self.model.loaded
        try:
            theirs = self.model.loaded(folder, inputs, provenance.loading(folder)[0])
        except Exception as error:
            same, words = False, f"from_pretrained does not load it: {_told(error)}"
        else:
            # Both on the CPU: no two devices agree to the last bit.
            weights = Weights(self.sides.converted, torch.float32, "cpu", None, Memory())
            same = torch.equal(theirs, self.model.converted(self.config, weights).forward(inputs))
            words = f"from_pretrained gives {'the net that was compared, bit for bit' if same else 'another net'}"
        made.checks.append(Check(what, "float32 stock loader", None, None, same, words))
        if not same:
            made.verdict, made.words = FAIL, words

    def _catalogue(self, block: int | None = None) -> list[Fault]:
        """The faults that the table has in it, of one block (default: the last)."""
        return catalogue(self.sides.plan, self.model.invisible_biases, block)

    def self_test(self, kind: str, right: bool, step: Callable[[int], None]) -> Phase:
        """Phase 5: the cheap faults on the end of the net, or the whole catalogue on all of it."""
        if not right:
            return Phase("self-test", NOT_RUN, "what has not passed cannot tell right from wrong")
        faults = self._catalogue() + list(self.model.faults(self.sides.found, self.config, self.sides.plan))
        tail = None
        if kind == "quick":
            faults = [fault for fault in faults if fault.cheap]
            tail = (self._late[0], self._before)
        nothing = [fault.name for fault in faults if idle(fault, self.sides.converted)]
        faults = [fault for fault in faults if fault.name not in nothing]
        context = selftest.SelfTestContext(
            self.sides,
            self.model,
            self.config,
            self.borrowed,
            self.judge,
            self.build,
            self.outcomes,
            tail,
            self.device,
            self._waive,
            bool(self._saved),
        )
        made = selftest.run(context, faults, step)
        if nothing:
            made.notes.append(f"not tried, since it is zero already and so no fault: {', '.join(nothing)}")
        return made

    def save_failing(self, folder: Path) -> list[str]:
        """Write the inputs and outputs of every failing case; returns what is said of it."""
        try:
            return [save_outcome(folder, outcome) for outcome in self.outcomes if outcome.verdict != PASS]
        except ConverterError as error:  # the verdict is worth more than its evidence
            return [f"--save_failing: {as_flags(str(error))}"]


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {printable(error)}"
