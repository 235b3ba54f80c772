"""The config audit: what the converted model says of itself, against what the original file shows.

Never against the converter's own word: what the original does not show, and nobody stated, is listed as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..conversion.model_config import config_of
from ..errors import UsageError, as_flags, printable, shortened
from ..families import Finding
from ..families.travelling import AUTO_MAP, CLASS, class_in
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase
from .sides import Sides

QUANTISED = "quantization_config"  # acted on by diffusers' loader, whatever the class
MOST = 20  # unknown fields that are named
BORROWED = "the original does not show it and nobody gave it: taken from the converted model"


def assumptions(sides: Sides) -> list[dict[str, Any]]:
    """What nobody has evidence for, as it stands in the report."""
    return [
        {"name": name, "value": finding.value, "why": BORROWED if name in sides.borrowed else finding.evidence}
        for name, finding in sides.findings.items()
        if finding.source == "assumed" or name in sides.borrowed
    ]


def stated(sides: Sides) -> list[str]:
    """What a PASS rests on by the user's word, or that of the conversion's record, as a note of the report."""
    own = [name for name in sides.findings if name in sides.family.flags and name not in sides.borrowed]
    given = {name: sides.findings[name].value for name in own if sides.findings[name].source == "given"}
    words = ", ".join(f"{name} = {printable(value)}" for name, value in given.items())
    return [f"stated, and shown by nothing in the original: {words}"] if given else []


def audit(sides: Sides, config: Mapping[str, Any] | None = None) -> Phase:
    """Every field of `config.json`, or of another config, as the target's code takes it, against what it has to be."""
    config = sides.config if config is None else config
    try:
        needed = config_of(sides.family, sides.findings)
    except UsageError as error:
        return Phase("config", FAIL, f"what the model should be is not known: {as_flags(str(error))}")
    resolved, settled = sides.spec.resolve_config(config), sides.spec.resolve_config(needed)
    # Where the two are for different classes, a hyper-parameter that only the other one can hold counts too.
    held = needed.keys() | (sides.findings.keys() & resolved.keys())
    expected = needed | {name: value for name, value in settled.items() if name in held}
    checks = []
    for name, right in expected.items():
        field = name.rpartition(".")[2]  # without the folder, of a model of several
        value, alike = resolved.get(name), sides.family.ignorable_config.get(name, ())
        if alike is None or value in alike:
            continue
        same = _same(value, right)
        quoted = repr(value) if isinstance(value, str) and not isinstance(right, str) else value
        words = f"{name} is {printable(quoted)}{'' if same else f', and has to be {printable(right)}'}: "
        words += _evidence(field, sides.findings.get(field), sides.borrowed)
        if name not in config:
            words += " (not written: the target's default)"
        # What is compared with itself shows nothing.
        passed = None if same and field in sides.borrowed else same
        checks.append(Check(name, "config", printable(value), printable(right), passed=passed, words=words))
    travelling, modified = _travelling(sides, config)
    checks += travelling
    fields = {key: key.rpartition(".")[2] for key in config}
    for name in (key for key, field in fields.items() if field == QUANTISED and config[key] is not None):
        words = f"{name} is set: diffusers would load quantised weights instead of these"
        checks.append(Check(name, "config", printable(config[name]), None, passed=False, words=words))
    known = {
        *resolved,
        *(key for key, field in fields.items() if field.startswith("_") or field in (QUANTISED, AUTO_MAP)),
    }
    unknown = [key for key in config if key not in known]
    notes = [f"config.json: {printable(key)} means nothing to the target's code" for key in unknown[:MOST]]
    if len(unknown) > MOST:
        notes.append(f"config.json: {len(unknown) - MOST} more fields mean nothing to the target's code")
    failed = [check for check in checks if check.passed is False]
    # First what it is at all, then what somebody has evidence for: the rest may only follow from that.
    failed.sort(key=lambda check: (not check.what.endswith(CLASS), sides.findings.get(check.what) is None))
    if failed:
        if fix := sides.spec.fix(sides.findings, sides.config):
            failed[-1].words += f"; {fix.why}: --{fix.flag} true compares it with this run after loading: {fix.line}"
        more = f"; wrong too: {shortened([check.what for check in failed[1:]], 4)}" if len(failed) > 1 else ""
        return Phase("config", FAIL, f"{failed[0].words}{more}", checks, notes=notes)
    # What is assumed though the original has evidence of it: a converter that assumes the same may be just as wrong.
    doubts = [
        f"--{name} is not given, and the original's own evidence of it is not trusted: {finding.rejected_evidence}"
        for name, finding in (sides.seen or sides.findings).items()
        if finding.rejected_evidence and finding.source in ("assumed", "unknown")
    ]
    doubts += modified
    if doubts:
        return Phase("config", INCONCLUSIVE, doubts[0], checks, notes=[*doubts[1:], *notes])
    unproven = [check.what for check in checks if check.passed is None]
    words = f"all {len(checks) - len(unproven)} fields that matter are what the original shows or needs"
    words += f"; taken as they are: {', '.join(unproven)}" if unproven else ""
    return Phase("config", PASS, words, checks, notes=notes)


def _travelling(sides: Sides, config: Mapping[str, Any]) -> tuple[list[Check], list[str]]:
    """(checks, doubts) of what `AutoModel` would run: where the config says a class lies, and the module there."""
    checks, doubts = list[Check](), list[str]()
    for folder, fields in sides.family.by_folder(config).items() if sides.folder != Path() else ():
        kind = class_in(sides.family.classes, fields)
        value, right, what = fields.get(AUTO_MAP) or None, kind.auto_map or None, sides.family.parts[folder] + AUTO_MAP
        if value or right:
            needed = f"be {right} for AutoModel" if right else f"be left out: AutoModel would run it, not {kind.name}"
            words = f"{what} is {printable(value)}" + ("" if value == right else f", and has to {printable(needed)}")
            checks.append(Check(what, "config", printable(value), printable(right), passed=value == right, words=words))
        if kind.module is None:
            continue
        state, name = kind.difference(sides.place(folder)) or "the same", kind.module.name
        words = f"{name} is {'the module of this version' if state == 'the same' else state}"
        checks.append(Check(name, "config", state, "the same", passed=state != "missing", words=words))
        if state == "modified":
            of_this = "is not the module of this version, which was compared"
            doubts.append(f"{name} {of_this}: what trust_remote_code runs is unknown")
    return checks, doubts


def _same(value: Any, right: Any) -> bool:
    """Equality of values of one type: 1 is not true, and '4' is not 4; 1.0 is 1."""
    if isinstance(value, bool) != isinstance(right, bool) or type(value) not in (type(right), int, float):
        return False
    return bool(value == right)


def _evidence(name: str, finding: Finding | None, borrowed: Mapping[str, Any]) -> str:
    if name in borrowed:
        return f"assumed ({BORROWED})"
    if finding is None:
        return "follows from what the original shows and its user states"
    return f"assumed ({finding.evidence})" if finding.source == "assumed" else finding.evidence
