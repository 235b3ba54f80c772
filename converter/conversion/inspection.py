"""`inspect`: what a file is, from its index, as a report that a person and a script can read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.file import reads
from ..errors import printable
from ..mapping import fold
from .analysis import Analysis
from .model_files import open_model
from .options import stated
from .remarks import merged_into
from .sidecar import analyse_with_record

REPORT_VERSION = 1


@reads
def inspect(
    path: str | os.PathLike[str],
    *,
    weights: str | None = None,
    state_dict_key: str | None = None,
    family: str | None = None,
    hyper_parameters: Mapping[str, Any] | None = None,
    deep: bool = False,
) -> dict[str, Any]:
    """What a checkpoint is, as a JSON-ready dict. Reads its index and a few elements of the positional table, which is
    read whole where these do not explain it; no other tensor, unless told to.

    Args: as of `converter.inspect`, which knows adapters too.

    Raises: `InputError` for a malformed or unsafe file; a file that is sound but cannot be converted is described,
    with the reasons under `problems`; what a conversion would ask for first is under `needs`, '' if nothing, and
    what else could be given under `unknown`.

    Example:
        >>> inspect("fixtures/golden/alpha-ms.pth")["hyper_parameters"]["hidden_size"]["value"]
        48
    """
    with open_model(path, weights, state_dict_key, family) as checkpoint:
        analysis = analyse_with_record(checkpoint, stated(hyper_parameters), family)
        plan, findings = analysis.plan, analysis.findings
        flags = analysis.family.flags if analysis.family else ()
        content = report(analysis) | {
            "features": sorted(plan.features),
            "dropped": sorted(plan.computed),
            "sidecar": sorted(plan.extras),
            "notes": [*findings.notes, *findings.diffusers_notes, *checkpoint.notes, *merged_into(analysis.record)],
            "needs": analysis.needs,
            "unknown": [name for name, finding in findings.items() if finding.source == "unknown" and name in flags],
            "problems": ([analysis.problem] if analysis.problem else []) + plan.problems,
        }
        if deep:
            from .deep import read_through

            read = read_through(analysis)
            content["deep"] = read.as_dict()
            content["notes"] += read.notes
            content["problems"] += read.problems
        return content


def report(analysis: Analysis) -> dict[str, Any]:
    """What `inspect` and the record of a conversion have in common."""
    checkpoint = analysis.checkpoint
    chosen, family = checkpoint.selected, analysis.family
    moved = [checkpoint[key] for move in analysis.plan.moves for key in move.sources] or list(checkpoint.values())
    return {
        "version": REPORT_VERSION,
        "source": {
            "name": printable(Path(os.path.abspath(checkpoint.path)).name),
            "size": checkpoint.size,
            "container": checkpoint.container,
            "weights": chosen.weights,
            "where": chosen.where,
            "prefix": chosen.keys.prefix,
        },
        "candidates": [
            {"weights": c.weights, "where": c.where, "selected": c is chosen} | ({"why": c.why} if c.why else {})
            for c in checkpoint.plausible
        ],
        "other_entries": [*checkpoint.others, *checkpoint.unnamed_weights],
        "left_out": list(checkpoint.left_out),
        "foreign_objects": [{"name": name, "dangerous": danger} for name, danger in checkpoint.foreign_globals],
        "family": family.name if family else None,
        "layout": ("diffusers" if analysis.diffusers else "original") if family else None,
        "hyper_parameters": {
            name: {"value": f.value, "source": f.source, "evidence": f.evidence}
            for name, f in analysis.findings.items()
        },
        "parameters": sum(tensor.numel for tensor in moved),
        "tensors": len(checkpoint),
        "bytes": sum(tensor.nbytes for tensor in checkpoint.values()),
        "dtypes": dict(sorted(Counter(tensor.dtype.name for tensor in checkpoint.values()).items())),
        "keys": fold(checkpoint)[:60] if not family else [],
    }
