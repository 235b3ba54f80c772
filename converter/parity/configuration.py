"""The config audit: what the converted model says of itself, against what the original file shows.

Never against the converter's own word: what the original does not show, and nobody said, is listed as assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError, as_flags, printable
from ..families import Family, Findings
from ..nets.spec import ParitySpec
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase

QUANTISED = "quantization_config"  # acted on by diffusers' loader, whatever the class
CLASS = "_class_name"
MOST = 20  # unknown fields that are named
BORROWED = "the original does not show it and nobody said: taken as the converted model has it"


def taken(found: Findings, names: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What nobody has evidence for, in words for the report."""
    return [
        {"name": name, "value": finding.value, "why": BORROWED if name in names else finding.evidence}
        for name, finding in found.items()
        if finding.source == "assumed" or name in names
    ]


def set_aside(seen: Findings) -> list[str]:
    """What is assumed though the original holds evidence of it that was not believed, in words: a converter that
    assumes the same is no less wrong for that."""
    return [
        f"--{name} is not said, and the original's own evidence of it was set aside: {finding.aside}"
        for name, finding in seen.items()
        if finding.aside and finding.source in ("assumed", "unknown")
    ]


def audit(
    family: Family,
    model: ParitySpec,
    found: Findings,
    config: Mapping[str, Any],
    borrowed: Mapping[str, Any],
    seen: Findings,
) -> Phase:
    """Every field of `config.json` as the target's code takes it, against what it has to be.

    Args:
        borrowed: flags whose value the converted config itself gave, for want of anything else.
        seen: the findings before that.
    """
    try:
        expected = family.config(found)
    except UsageError as error:
        return Phase("config", FAIL, f"what the model should be is not known: {as_flags(str(error))}")
    have = model.resolve_config(config)
    checks, notes = [], []
    for name, ours in expected.items():
        theirs = have.get(name)
        alike = family.ignorable_config.get(name, ())
        if alike is None or theirs in alike:
            continue
        same = (
            type(theirs) in (type(ours), int, float)
            and theirs == ours
            and isinstance(theirs, bool) == isinstance(ours, bool)
        )
        finding = found.get(name)
        evidence = _evidence(name, finding, borrowed)
        quoted = repr(theirs) if isinstance(theirs, str) and not isinstance(ours, str) else theirs
        words = f"{name} is {printable(quoted)}" + (
            f": {evidence}" if same else f", and has to be {printable(ours)}: {evidence}"
        )
        if name not in config:
            words += " (not written; the target's default)"
        # What is held against itself shows nothing.
        passed = None if same and name in borrowed else same
        checks.append(Check(name, "config", printable(theirs), printable(ours), passed, words))
    if config.get(QUANTISED) is not None:
        words = f"{QUANTISED} is there: diffusers would load other weights than these, quantised ones"
        checks.append(Check(QUANTISED, "config", printable(config[QUANTISED]), None, False, words))
    unknown = [key for key in config if key not in have and not key.startswith("_") and key != QUANTISED]
    notes += [f"config.json: {printable(key)} means nothing to the target's code" for key in unknown[:MOST]]
    if len(unknown) > MOST:
        notes.append(f"config.json: {len(unknown) - MOST} more fields mean nothing to the target's code")
    failed = [check for check in checks if check.passed is False]
    # First what it is at all, then what somebody has evidence for: the rest may only follow from that.
    failed.sort(key=lambda check: (check.what != CLASS, found.get(check.what) is None))
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        return Phase("config", FAIL, f"{failed[0].words}{more}", checks, notes)
    if doubts := set_aside(seen):
        return Phase("config", INCONCLUSIVE, doubts[0], checks, [*doubts[1:], *notes])
    taken_over = [check.what for check in checks if check.passed is None]
    words = f"all {len(checks) - len(taken_over)} fields that matter are what the original shows or needs"
    words += f"; taken as they are: {', '.join(taken_over)}" if taken_over else ""
    return Phase("config", PASS, words, checks, notes)


def _evidence(name: str, finding: Any, borrowed: Mapping[str, Any]) -> str:
    if name in borrowed:
        return f"assumed ({BORROWED})"
    if finding is None:
        return "the original has no other, or none that anybody said"
    if finding.source == "assumed":
        return f"assumed ({finding.evidence})"
    return str(finding.evidence)
