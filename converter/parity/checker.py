"""`check`: does the converted model compute the original's function? All phases, in order, and one verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import Any

from ..checkpoint.containers import asked_by
from ..checkpoint.file import reading
from ..errors import UsageError, printable
from ..survey import open_model
from . import configuration, provenance
from .audit import audit, matches
from .choices import FLOAT64, GATING_PRECISIONS, MOST_THREADS, PRECISIONS, PROFILES, SELF_TESTS, WEIGHTS
from .determinism import deterministic, environment
from .held_buffers import hold_buffers
from .held_zeros import hold_zeros
from .opening import Opened, open_pair
from .report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Phase, Report

Progress = Callable[[int], None]


def check(
    original: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    *,
    profile: str = "quick",
    family: str | None = None,
    weights: str | None = None,
    state_dict_key: str | None = None,
    device: str = "cpu",
    dtype: str | Sequence[str] | None = None,
    cast: str | None = None,
    cases: str | os.PathLike[str] | None = None,
    save_failing: str | os.PathLike[str] | None = None,
    self_test: str = "quick",
    threads: int | None = None,
    waivers: Sequence[Any] = (),
    require_evidence: bool = False,
    progress: Callable[[int], Progress] | None = None,
    **given: Any,
) -> Report:
    """Compare a converted model with the checkpoint that it was made from.

    Args:
        original: the checkpoint in its original layout; `converted`: the folder made of it (or its `transformer/`).
        profile: 'quick' (one batch of four samples), 'standard' (more cases, and sampler steps) or 'full' (also the
            model's own size and the stock loader).
        family: the family that the checkpoint has to be of.
        weights: 'raw' or 'ema'; default: what the conversion record says was taken.
        state_dict_key: where in the original the weights lie, where it holds several state dicts; default likewise.
        device: where the nets run.
        dtype: one or several of 'float64', 'float32' (both by default), 'float16', 'bfloat16' (reported; the float64
            gate is then run as well).
        cast: the dtype that the conversion rounded to, where it did.
        cases: a file of saved inputs to run instead of the profile's.
        save_failing: a folder for the inputs and outputs of failing cases.
        self_test: 'quick', or 'full' for the whole catalogue of deliberate faults.
        threads: of the CPU, for the whole run; default: as many as torch would use. They are part of the report.
        waivers: `Waiver`s that are in force.
        require_evidence: refuse (`UsageError`) a comparison that rests on an assumption, with the words that state it.
        progress: called with the number of steps to come; returns what is called with each count of steps done.
        given: hyper-parameters by flag name, such as `num_attention_heads=16`, in the user's words.

    Returns: a `Report`; its `verdict` is PASS, FAIL or INCONCLUSIVE.

    Raises: `InputError` for a file that is refused, `UsageError` for a call that is.

    Example:
        >>> made = converter.convert("fixtures/golden/sigma-ms.pth", tmp / "out", num_attention_heads=4)
        >>> check("fixtures/golden/sigma-ms.pth", tmp / "out").verdict
        'PASS'
    """
    started = time.monotonic()
    precisions = _precisions(dtype)
    named: tuple[tuple[str, object, Sequence[str]], ...] = (
        ("profile", profile, PROFILES),
        ("self_test", self_test, SELF_TESTS),
        ("weights", WEIGHTS[0] if weights is None else weights, WEIGHTS),
    )
    for name, value, known in named:
        if value not in known:
            raise UsageError(f"--{name} {printable(value)}: one of {', '.join(known)}")
    _known_device(device)
    if cast and cast not in PRECISIONS:
        raise UsageError(f"--cast {printable(cast)}: one of {', '.join(PRECISIONS)}")
    if threads is not None and not 0 < threads <= MOST_THREADS:
        raise UsageError(f"--threads {printable(threads)}: from 1 to {MOST_THREADS}")
    if save_failing is not None and os.path.lexists(save_failing) and not os.path.isdir(save_failing):
        raise UsageError(f"--save_failing {printable(save_failing)}: not a folder")
    with ExitStack() as stack:
        # Hashing needs no interpreter, and reading the same files to compare them finds them in memory.
        hashed, enough = stack.enter_context(ThreadPoolExecutor(2)), Event()
        stack.callback(enough.set)  # whoever refuses or interrupts does not wait for the rest of it
        about = [hashed.submit(provenance.about, Path(path), enough) for path in (original, converted)]
        with reading(original), reading(converted):
            pair = open_pair(stack, Path(original), Path(converted), family, weights, state_dict_key, cast, given)
        if require_evidence:
            pair.demand_evidence()
        run = _Run(pair, profile, precisions, device, self_test, waivers, cases, save_failing, progress)
        with deterministic(device, threads):
            made_on = environment(device, precisions)
            phases = run.phases(about[0], made_on)
        report = Report(
            verdict=PASS,
            reason="",
            family=pair.family.name,
            profile="saved cases" if cases else profile,
            original=about[0].result() | pair.taken,
            converted=about[1].result(),
            environment=made_on,
            assumed=configuration.taken(pair.found, pair.borrowed),
            notes=[*pair.notes, *run.notes],
            phases=phases,
        )
    report.verdict, report.reason = _verdict(phases)
    report.run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 2),
        "original": os.fspath(original),
        "converted": os.fspath(converted),
    }
    return report


def _known_device(device: str) -> None:
    """Whether there is such a device; asked before anything is read, and torch only where it is not the CPU."""
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, dtype=torch.float64, device=device).cpu()  # some have no float64, and one has no numbers at all
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"--device {printable(device)}: {printable(str(error).partition(chr(10))[0])}") from error


def _precisions(dtype: str | Sequence[str] | None) -> tuple[str, ...]:
    asked = GATING_PRECISIONS if not dtype else tuple(dtype) if isinstance(dtype, list | tuple) else (dtype,)
    for precision in asked:
        if precision not in PRECISIONS:
            raise UsageError(f"--dtype {printable(precision)}: one of {', '.join(PRECISIONS)}")
    # The float64 gate is the sharpest, and the one that the self-test vouches for; half precision gates nothing.
    return tuple(dict.fromkeys((FLOAT64, *asked)))


def _verdict(phases: Sequence[Phase]) -> tuple[str, str]:
    """The worst of the phases; never a PASS where no function was compared."""
    for verdict in (FAIL, INCONCLUSIVE):
        for phase in phases:
            if phase.verdict == verdict:
                return verdict, f"{phase.name}: {phase.words}"
    by_name = {phase.name: phase for phase in phases}
    for name in ("weights", "config", "function", "self-test"):
        if by_name[name].verdict != PASS:
            return INCONCLUSIVE, f"{name}: {by_name[name].words}"
    return PASS, by_name["function"].words


class _Run:
    """The phases of one comparison, each on its own, in their order."""

    def __init__(
        self,
        pair: Opened,
        profile: str,
        precisions: tuple[str, ...],
        device: str,
        self_test: str,
        waivers: Sequence[Any],
        cases: str | os.PathLike[str] | None,
        save_failing: str | os.PathLike[str] | None,
        progress: Callable[[int], Progress] | None,
    ) -> None:
        self.pair, self.profile, self.precisions, self.device = pair, profile, precisions, device
        self.self_test, self.waivers, self.saved, self.save_failing = self_test, waivers, cases, save_failing
        self.progress = progress
        self.notes: list[str] = []

    def phases(self, about: Future[dict[str, Any]], made_on: Mapping[str, Any]) -> list[Phase]:
        """All of them. `about` will be what there is to say of the original's bytes; `made_on` is the machine."""
        pair = self.pair
        step = self.progress(self._steps()) if self.progress else lambda count: None
        with ThreadPoolExecutor(1) as beside:
            # It imports the target's library, which takes about as long as the weights take.
            configured = beside.submit(
                configuration.audit, pair.family, pair.model, pair.found, pair.config, pair.borrowed, pair.seen
            )
            weights = hold_buffers(hold_zeros(audit(pair.sides, step), pair.sides), pair.sides)
            config = configured.result()
        if weights.verdict == FAIL and (other := self._other_weights()):
            weights.words = f"{other}; {weights.words}"
        made = [provenance.phase(about.result(), made_on), weights, config]
        why_not = _unbuildable(weights, config, pair.config)
        if pair.model is provenance.UNAVAILABLE:
            why_not = (
                f"the family {pair.family.name} brings no reference net (`parity`): what it computes was not compared"
            )
        if why_not:
            return made + [Phase(name, NOT_RUN, why_not) for name in ("function", "trajectory", "self-test")]
        from .session import Session

        session = Session(pair.sides, pair.model, pair.config, pair.borrowed, self.device, about.result()["sha256"])
        cases = session.cases(self.profile, self.saved)
        session.waivers = self.waivers
        function = session.function(cases, self.precisions, step)
        self.notes += session.notes
        made.append(function)
        if self.save_failing and function.verdict == FAIL:
            self.notes += session.save_failing(Path(self.save_failing))
        if self.profile == "full" and function.verdict == PASS and pair.model.loaded:
            session.stock_loader(function, pair.folder)
        right = all(phase.verdict == PASS for phase in (weights, config, function))
        made.append(session.trajectory(self.profile, right))
        made.append(session.self_test(self.self_test, right, step))
        return made

    def _other_weights(self) -> str:
        """Whether the converted weights are another set that the original file holds: the commonest mistake of all."""
        pair = self.pair
        for candidate in pair.original.likely:
            if candidate is not pair.original.selected:
                with open_model(pair.original.path, state_dict_key=candidate.where) as other:
                    if set(other) == set(pair.original) and matches(replace(pair.sides, original=other)):
                        flag, where = asked_by(candidate, pair.original.likely), printable(candidate.where)
                        return f"the converted model has the {candidate.weights} weights of the file, {where} ({flag})"
        return ""

    def _steps(self) -> int:
        """About how many steps there will be: tensors to audit, stages to run, faults to try."""
        blocks = self.pair.looked.plan.blocks + 4
        cases = {"quick": 1, "standard": 8, "full": 9}[self.profile]
        return len(self.pair.looked.plan.moves) + blocks * cases * (1 + len(self.precisions) * 2 - 1) + 12


def _unbuildable(weights: Phase, config: Phase, said: Mapping[str, Any]) -> str:
    """Why the converted net cannot be run at all; '' where it can, be it wrong."""
    structural = [check for check in weights.failed if check.statistic == "bijection" or " has shape " in check.words]
    if structural:
        return f"the weights are not those of the model: {structural[0].words}"
    for check in config.failed:
        if not _bounded(said.get(check.what), check.limit):
            return f"config.json is not that of the model: {check.words}"
    return ""


def _bounded(theirs: Any, ours: Any) -> bool:
    """Whether a wrong field still makes a net that can be built and run: nothing absurd is."""
    if not isinstance(theirs, int | float) or isinstance(theirs, bool):
        return True  # not written, words, and what is true or false
    try:
        return 0 < theirs <= 4 * float(ours)
    except ValueError:
        return True
