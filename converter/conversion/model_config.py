"""`config.json` of a converted model, and what the source's own says otherwise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError, printable
from ..families import Family, Findings


def config_of(family: Family, findings: Findings) -> dict[str, Any]:
    """`config.json` of the converted model, as it is read back: a tuple is a list in JSON.

    Raises: `UsageError` where something is unknown, or what the family gives is no JSON.
    """
    with family.own_code("config"):
        config = family.config(findings)
    try:
        text = json.dumps(config, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:  # NaN, half a surrogate pair, an object
        raise UsageError(f"`family` {family.name}: config: {printable(error)}") from error
    content: dict[str, Any] = json.loads(text)
    return content


def compare_with_source(family: Family, source: Mapping[str, Any], findings: Findings) -> str:
    """Whatever the source's `config.json` says of the model has to be what ours will say; returns what ours lacks."""
    if any(not problem.startswith("config.json: ") for problem in findings.problems):
        return ""
    try:
        config = config_of(family, findings)
    except UsageError as error:
        return str(error)
    for key, ours in config.items():
        theirs, others = source.get(key), family.ignorable_config.get(key, ())
        known = any(problem.startswith(f"config.json: {key}:") for problem in findings.problems)
        if theirs is not None and theirs != ours and others is not None and theirs not in others and not known:
            findings.problems.append(
                f"config.json: {key}: {printable(theirs)}, and the converted model would have {printable(ours)}"
            )
    return ""
