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

from ..checkpoint.file import reading
from ..checkpoint.state_dicts import selecting_flag
from ..conversion.model_files import open_model
from ..conversion.options import stated, with_shortcuts
from ..errors import as_flags, printable
from ..hub.redaction import redacted
from ..nets.device import checked_device
from ..remote import fetched
from ..reports.report import FAIL, INCONCLUSIVE, NOT_RUN, PASS, Phase, Report
from . import configuration, provenance
from .audit import audit, doubt, matches
from .choices import CheckOptions
from .determinism import deterministic, environment
from .opening import open_sides
from .provenance import digests_of
from .sides import UNAVAILABLE, Sides
from .waivers import Waiver

Progress = Callable[[int], None]


def check(
    original: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    options: CheckOptions | None = None,
    *,
    hyper_parameters: Mapping[str, Any] | None = None,
    waivers: Sequence[Waiver] = (),
    progress: Callable[[int], Progress] | None = None,
    **shortcuts: Any,
) -> Report:
    """Compare a converted model with the checkpoint that it was made from.

    Args:
        original: the checkpoint in its original layout; `converted`: the folder made of it (or its `transformer/`). Of
            a URL, all is fetched.
        options: what may be chosen; see `CheckOptions`.
        hyper_parameters: what the file cannot show, by name, such as `{"num_attention_heads": 16}`.
        waivers: that are in force.
        progress: called with the number of steps to come; returns what is called with each count of steps done.
        shortcuts: fields of `CheckOptions`, which take the place of those in `options`.

    Returns: a `Report`; its `verdict` is PASS, FAIL or INCONCLUSIVE.

    Raises: `InputError` for a file that is refused, `UsageError` for a call that is.

    Example:
        >>> heads = {"num_attention_heads": 4}
        >>> done = converter.convert("fixtures/golden/sigma-ms.pth", tmp / "out", hyper_parameters=heads)
        >>> check("fixtures/golden/sigma-ms.pth", tmp / "out").verdict
        'PASS'
    """
    started = time.monotonic()
    options = with_shortcuts(options or CheckOptions(), shortcuts)
    options.validate()
    checked_device(options.device)
    with ExitStack() as stack:
        # What lies in a store is hashed whole, so all of it is fetched, once.
        here = [stack.enter_context(fetched(path, whole=True)) for path in (original, converted)]
        # Hashing needs no interpreter, and reading the same files to compare them finds them in memory. One after the
        # other, so that the imports, which take the longest, have a core for themselves.
        hashing, stop = stack.enter_context(ThreadPoolExecutor(1)), Event()
        stack.callback(stop.set)  # whoever refuses or interrupts does not wait for the rest of it
        digests = [hashing.submit(digests_of, path, stop) for path in here]
        with reading(original), reading(converted):
            words = stated(hyper_parameters)
            sides = open_sides(stack, here[0], here[1], options, hyper_parameters=words)
        with deterministic(options.device, options.threads), sides.family.own_code("parity"):
            machine = environment(options.device, options.precisions)
            phases = _phases(sides, options, digests[0], machine, waivers=waivers, progress=progress)
        hashed = [digest.result() for digest in digests]
        # What was proven of a file, and not read again, has to hold to the end.
        every = [sides.original, sides.converted, *(sides.merged.sources if sides.merged else ())]
        for file in {tensor.storage.file for side in every for tensor in side.values()}:
            file.check_unchanged()
        verdict, reason = verdict_of(phases)
        source: Any = sides.original
        read = {"container": source.container, "weights": source.selected.weights, "where": source.selected.where}
        read |= {"adapters": sides.merged.told} if sides.merged else {}
        report = Report(
            verdict=verdict,
            reason=reason,
            family=sides.family.name,
            profile="saved cases" if options.cases else options.profile,
            original=hashed[0] | read,
            converted=hashed[1],
            environment=machine,
            assumed=configuration.assumptions(sides),
            notes=sides.notes + (configuration.stated(sides) if verdict == PASS else []),
            phases=phases,
        )
    report.run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 2),
        "original": redacted(os.fspath(original)),
        "converted": redacted(os.fspath(converted)),
    }
    return report


def verdict_of(phases: Sequence[Phase]) -> tuple[str, str]:
    """The worst of the phases, with the reason; never a PASS where no function was compared.

    Where undoing a known fault mends the function, that fault is the reason, whichever phase failed first.
    """
    needed = [phase for phase in phases if phase.name in ("weights", "config", "function", "self-test")]
    blamed = [phase for verdict in (FAIL, INCONCLUSIVE) for phase in phases if phase.verdict == verdict]
    for phase in [*blamed, *(phase for phase in needed if phase.verdict != PASS)]:
        reason = f"{phase.name}: {phase.words}"
        if phase.verdict != FAIL:
            return INCONCLUSIVE, reason
        mended = next((other for other in blamed if other.detail.get("localisation", {}).get("repairs")), None)
        if mended is phase:
            return FAIL, phase.words
        return FAIL, f"{mended.words.partition('; ')[0]}; {reason}" if mended else reason
    return PASS, next(phase.words for phase in needed if phase.name == "function")


def _phases(
    sides: Sides,
    options: CheckOptions,
    original: Future[dict[str, Any]],
    machine: dict[str, Any],
    *,
    waivers: Sequence[Waiver],
    progress: Callable[[int], Progress] | None,
) -> list[Phase]:
    """All phases, in their order; `original`: will be its digests. What is noted of the whole run is added to the notes
    of the sides."""
    step = progress(_steps(sides, options)) if progress else lambda count: None
    with ThreadPoolExecutor(1) as pool:
        # It imports the target's library, which takes about as long as the weights take.
        audited = pool.submit(configuration.audit, sides)
        weights = doubt(audit(sides, step), sides)
        config = audited.result()
    if weights.verdict == FAIL and (other := as_flags(sides.unlike_record) or _other_weights(sides)):
        weights.words = f"{other}; {weights.words}"
    told = sides.merged.told if sides.merged else []
    phases = [provenance.phase(original.result(), machine, told), weights, config]
    if obstacle := _obstacle(sides, weights, config):
        return phases + [Phase(name, NOT_RUN, obstacle) for name in ("function", "trajectory", "self-test")]
    from .session import Session

    session = Session(sides, device=options.device, waivers=waivers, digest=original.result()["sha256"])
    cases = session.cases(options.profile, options.cases)
    function = session.function(cases, options.precisions, step)
    phases.append(function)
    if options.save_failing and function.verdict == FAIL:
        sides.notes.extend(session.save_failing(Path(options.save_failing)))
    if options.profile == "full" and function.verdict == PASS and sides.spec.loaded:
        session.stock_loader(function)
    right = all(phase.verdict == PASS for phase in (weights, config, function))
    phases.append(session.trajectory(options.profile, right))
    phases.append(session.self_test(options.self_test, right, step))
    return phases


def _other_weights(sides: Sides) -> str:
    """Whether the converted weights are another set that the original file holds: the commonest mistake of all."""
    original: Any = sides.original
    for candidate in original.plausible:
        if candidate is original.selected:
            continue
        with open_model(original.path, state_dict_key=candidate.where) as other:
            if set(other) == set(original) and matches(replace(sides, original=other)):
                flag = as_flags(selecting_flag(candidate, original.plausible))
                where = f"{printable(candidate.where)} ({flag})"
                return f"the converted model has the {candidate.weights} weights of the file, {where}"
    return ""


def _steps(sides: Sides, options: CheckOptions) -> int:
    """About how many steps there will be: tensors to audit, stages to run, faults to try."""
    stages = sum(sides.plan.stacks.values()) + 4
    cases = {"quick": 1, "standard": 9, "full": 10}[options.profile]
    return len(sides.plan.moves) + stages * cases * 2 * len(options.precisions) + 12


def _obstacle(sides: Sides, weights: Phase, config: Phase) -> str:
    """Why the converted net cannot be run at all; '' if it can, even if wrong."""
    if sides.spec is UNAVAILABLE:
        return f"the family {sides.family.name} brings no reference net (`parity`): what it computes was not compared"
    if obstacle := sides.spec.obstacle(sides.findings):
        return obstacle
    structural = [check for check in weights.failed if check.statistic == "bijection" or " has shape " in check.words]
    if structural:
        return f"the weights are not those of the model: {structural[0].words}"
    absurd = [check for check in config.failed if not _bounded(sides.config.get(check.what), check.limit)]
    return f"config.json is not that of the model: {absurd[0].words}" if absurd else ""


def _bounded(value: Any, right: Any) -> bool:
    """Whether a wrong field still makes a net that can be built and run: nothing absurd is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return True  # not written, words, and what is true or false
    try:
        return 0 < value <= 4 * float(right)
    except ValueError:
        return True
