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
from ..conversion.analysis import open_model
from ..conversion.options import stated, with_shortcuts
from ..errors import UsageError, as_flags, printable
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
        original: the checkpoint in its original layout; `converted`: the folder made of it (or its `transformer/`).
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
    check_device(options.device)
    with ExitStack() as stack:
        # Hashing needs no interpreter, and reading the same files to compare them finds them in memory.
        hashing, stop = stack.enter_context(ThreadPoolExecutor(2)), Event()
        stack.callback(stop.set)  # whoever refuses or interrupts does not wait for the rest of it
        digests = [hashing.submit(digests_of, Path(path), stop) for path in (original, converted)]
        with reading(original), reading(converted):
            words = stated(hyper_parameters)
            sides = open_sides(stack, Path(original), Path(converted), options, hyper_parameters=words)
        with deterministic(options.device, options.threads), sides.family.own_code("parity"):
            machine = environment(options.device, options.precisions)
            phases = _phases(sides, options, digests[0], machine, waivers=waivers, progress=progress)
        verdict, reason = verdict_of(phases)
        source: Any = sides.original
        read = {"container": source.container, "weights": source.selected.weights, "where": source.selected.where}
        report = Report(
            verdict=verdict,
            reason=reason,
            family=sides.family.name,
            profile="saved cases" if options.cases else options.profile,
            original=digests[0].result() | read,
            converted=digests[1].result(),
            environment=machine,
            assumed=configuration.assumptions(sides),
            notes=sides.notes,
            phases=phases,
        )
    report.run = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 2),
        "original": os.fspath(original),
        "converted": os.fspath(converted),
    }
    return report


def check_device(device: str, dtype: str = "float64") -> None:
    """Raise `UsageError` where there is no such device, asking torch only where it is not the CPU."""
    if device == "cpu":
        return
    import torch

    try:
        # Some have no float64, and one has no numbers at all.
        torch.zeros(1, dtype=getattr(torch, dtype), device=device).cpu()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"`device` {printable(device)}: {printable(str(error).partition(chr(10))[0])}") from error


def verdict_of(phases: Sequence[Phase]) -> tuple[str, str]:
    """The worst of the phases; never a PASS where no function was compared."""
    needed = [phase for phase in phases if phase.name in ("weights", "config", "function", "self-test")]
    blamed = [phase for verdict in (FAIL, INCONCLUSIVE) for phase in phases if phase.verdict == verdict]
    for phase in [*blamed, *(phase for phase in needed if phase.verdict != PASS)]:
        return FAIL if phase.verdict == FAIL else INCONCLUSIVE, f"{phase.name}: {phase.words}"
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
    if weights.verdict == FAIL and (other := _other_weights(sides)):
        weights.words = f"{other}; {weights.words}"
    phases = [provenance.phase(original.result(), machine), weights, config]
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
    cases = {"quick": 1, "standard": 8, "full": 9}[options.profile]
    return len(sides.plan.moves) + stages * cases * 2 * len(options.precisions) + 12


def _obstacle(sides: Sides, weights: Phase, config: Phase) -> str:
    """Why the converted net cannot be run at all; '' if it can, even if wrong."""
    if sides.spec is UNAVAILABLE:
        return f"the family {sides.family.name} brings no reference net (`parity`): what it computes was not compared"
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
