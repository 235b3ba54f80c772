"""What the proof found, for people and programs: JSON, Markdown, and one HTML file that opens offline."""

from __future__ import annotations

import json
from collections.abc import Callable

from ..reports.markdown_text import blocks, bullets, code, table, text
from ..reports.numbers import show
from ..reports.summary import ICONS
from .assemble import Initialisation
from .page import FAILED_ROWS, MEASURED, STAGES, page, stage_rows
from .verdict import Proof

REPORT_VERSION = 1


def render(done: Initialisation, source: str, suffix: str) -> str:
    """The report in the format of a suffix.

    Args:
        source: the DiT's name; like all text from elsewhere it is escaped.
        suffix: one of `KINDS`.
    """
    return KINDS[suffix](done, source)


def _json(done: Initialisation, source: str) -> str:
    made = {"version": REPORT_VERSION, "source": source, "choices": done.choices, "notes": done.notes}
    return json.dumps(made | done.proof.as_dict(), indent=1, allow_nan=False) + "\n"


def _markdown(done: Initialisation, source: str) -> str:
    proof = done.proof
    parts = [
        f"## {ICONS[proof.verdict]} {proof.verdict}: PixArt initialised from {code(source)}",
        f"**{text(proof.words)}**",
    ]
    if proof.distances:
        parts.append(text(proof.distances.words))
    parts += [bullets(map(text, [*done.notes, *proof.doubts])), *_failed(proof), "### Block by block at t = 500"]
    parts += [MEASURED, table(STAGES, stage_rows(proof))]
    if proof.distances:
        choices, steps = proof.distances.distances, proof.distances.timesteps
        parts += ["### At other timesteps", "Relative L2 of the output, by what `t_block` starts as."]
        rows = [[str(step), *(show(values[i]) for values in choices.values())] for i, step in enumerate(steps)]
        parts.append(table(["t", *choices], rows))
    rows = [[code(name), code(show(value))] for name, value in done.choices.items()]
    parts += ["### Choices", table(["name", "value"], rows)]
    return blocks(parts)


def _failed(proof: Proof) -> list[str]:
    if not proof.failed:
        return []
    rows = [[text(check.what), text(check.statistic), text(check.words)] for check in proof.failed[:FAILED_ROWS]]
    return ["### What failed", table(["what", "statistic", "in words"], rows)]


KINDS: dict[str, Callable[[Initialisation, str], str]] = {".json": _json, ".md": _markdown, ".html": page}
