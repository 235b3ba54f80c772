"""The report of an initialisation, for people and programs: JSON, Markdown, and one HTML file that opens offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..reports import render as rendered
from ..reports.report import FAIL, INCONCLUSIVE, PASS, Check, Phase, Report
from ..reports.wording import Wording
from .assemble import Initialisation
from .options import TIMESTEP
from .timesteps import Distances

REPORT_VERSION = 1
KINDS = (".json", ".md", ".html")
STAGES = ("after", "case", "PixArt to DiT in float64", "to DiT in float32", "DiT's rounding", "times that", "float64")
MEASURED = (
    "Relative L2, of the case that uses most of the limit. The last column is in float64, with tables that are not "
    "rounded to float32 yet: there the mathematics has to be exact."
)
WORDING = Wording(
    title="Initialisation report",
    question=f"does the PixArt compute at t = {TIMESTEP} what the DiT does?",
    meaning={
        PASS: f"The PixArt begins as the DiT: at t = {TIMESTEP} every block computes what the DiT's does.",
        FAIL: "The PixArt does not match the DiT: nothing was written.",
        INCONCLUSIVE: "Nothing wrong was found, but the evidence does not suffice: nothing was written.",
    },
    about={
        "tables": "what is stored of the tables is their float64 values, rounded to float32 and to nothing else",
        "function": "both nets on the same noise, the DiT without a class; what the caption says does not matter yet, "
        "since the cross attention adds zero until it is trained",
        "other timesteps": f"what training starts from: they agree by design at t = {TIMESTEP} only",
    },
    subject="PixArt initialised from ",
)


def render(done: Initialisation, source: str, suffix: str) -> str:
    """The report in the format of a suffix, one of `KINDS`; `source` is the DiT's name.

    Raises: `UsageError` for HTML without jinja2 or matplotlib.
    """
    if suffix == ".json":
        about = {"version": REPORT_VERSION, "source": source, "choices": done.choices, "notes": done.notes}
        return json.dumps(about | done.proof.as_dict(), indent=1, allow_nan=False) + "\n"
    return rendered([as_report(done)], suffix, replace(WORDING, name=source))


def as_report(done: Initialisation) -> Report:
    """The proof as phases, with all that was measured on the way."""
    proof = done.proof
    rounding = [check for check in proof.checks if check.statistic == "rounding"]
    others = [check for check in proof.checks if check.statistic != "rounding"]
    blocks = {
        "stages": [stage.name for stage in proof.stages],
        "converted": [stage.distance for stage in proof.stages],
        "floor": [stage.floor for stage in proof.stages],
        "words": ["PixArt", "noise floor: the DiT's own rounding"],
    }
    rows = [[s.name, s.case, s.error, s.apart, s.floor, s.times, s.exact] for s in proof.stages]
    measured = _table(f"Block by block at t = {TIMESTEP}", MEASURED, STAGES, rows)
    choices = _table("The options, and their values for this DiT", "", ["name", "value"], [*done.choices.items()])
    phases = [
        _phase("tables", rounding, []),
        _phase("function", others, proof.doubts, blocks=blocks, tables=[measured]),
        *([_timesteps(proof.distances)] if proof.distances else []),
        Phase("choices", "", "", detail={"tables": [choices]}),
    ]
    return Report(proof.verdict, proof.words, notes=done.notes, phases=phases)


def _table(title: str, words: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {"title": title, "words": words, "header": header, "rows": rows}


def _phase(name: str, checks: list[Check], doubts: list[str], **detail: Any) -> Phase:
    failed = sum(check.failed for check in checks)
    verdict = FAIL if failed else INCONCLUSIVE if doubts or not checks else PASS
    words = f"{len(checks) - failed} of {len(checks)} checks passed"
    return Phase(name, verdict, words, checks, notes=doubts, detail=detail)


def _timesteps(distances: Distances) -> Phase:
    lines = {f"--t_block {choice}": values for choice, values in distances.distances.items()}
    words = (
        "Relative L2 of the output against the DiT's, in float32, on one latent, by what t_block starts as: the mean "
    )
    words += "of the blocks' own layers, or at random as in the paper's code."
    rows = [*zip(distances.timesteps, *lines.values(), strict=True)]
    detail = {
        "timesteps": {"timesteps": distances.timesteps, "lines": lines, "equal": TIMESTEP, "words": words},
        "tables": [_table("At other timesteps", "Relative L2 of the output.", ["t", *lines], rows)],
    }
    return Phase("other timesteps", "", distances.words, detail=detail)
