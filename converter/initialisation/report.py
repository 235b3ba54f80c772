"""What the proof found, for people and programs: JSON, Markdown, and one HTML file that opens offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from ..errors import UsageError, printable
from .assemble import Initialisation
from .options import MEAN, TIMESTEP

KINDS = (".json", ".md", ".html")
_NAMES = {MEAN: "t_block is the mean of the blocks' own layers", "paper": "t_block is random, as in the paper's code"}


def render(done: Initialisation, source: str, suffix: str) -> str:
    """The report in the format of a suffix, with its distances at other timesteps.

    Raises: `UsageError` for another suffix.
    """
    if suffix not in KINDS:
        raise UsageError(f"--report *{printable(suffix)}: there are {', '.join(KINDS)}")
    if suffix == ".json":
        return json.dumps({"version": 1, "source": source, "notes": done.notes} | done.proof, indent=1) + "\n"
    return (_markdown if suffix == ".md" else _html)(done, source)


def words(proof: dict[str, Any]) -> str:
    """The verdict in one line."""
    times = f"at worst {proof['worst']:.2f} times the DiT's own rounding (limit {proof['limit']:g})"
    said = "computes what the DiT does" if proof["passed"] else "does NOT compute what the DiT does"
    return f"at t = {TIMESTEP} it {said}, block by block: {times}"


def nearness(proof: dict[str, Any]) -> str:
    """Which choice is nearer over all timesteps, in one line."""
    mean, nearer = proof["mean"], proof["nearer"]
    other = next(choice for choice in mean if choice != nearer)
    return (
        f"over {len(proof['timesteps'])} timesteps --t_block {nearer} is nearer to the DiT: mean relative L2 of the "
        f"output {mean[nearer]:.3g}, {other}: {mean[other]:.3g}"
    )


def _markdown(done: Initialisation, source: str) -> str:
    proof = done.proof
    lines = [f"# PixArt initialised from {printable(source)}", "", f"{words(proof)}.", "", f"{nearness(proof)}.", ""]
    lines += [*(f"- {printable(note)}" for note in done.notes), ""]
    lines += ["| after | PixArt, float32 | DiT, float32 | multiple |", "|---|--:|--:|--:|"]
    for row in proof["stages"]:
        times = row["error"] / max(row["floor"], 1e-30)
        lines.append(f"| {row['name']} | {row['error']:.3g} | {row['floor']:.3g} | {times:.2f} |")
    choices = list(proof["distances"])
    lines += ["", f"| t | {' | '.join(choices)} |", "|--:|" + "--:|" * len(choices)]
    for i, step in enumerate(proof["timesteps"]):
        values = [f"{proof['distances'][choice][i]:.3g}" for choice in choices]
        lines.append(f"| {step} | {' | '.join(values)} |")
    return "\n".join(lines) + "\n"


def _html(done: Initialisation, source: str) -> str:
    from ..parity.rendering.figures.stages import blocks
    from ..parity.rendering.page import style

    proof = done.proof
    stages = {
        "stages": [row["name"] for row in proof["stages"]],
        "converted": [row["error"] for row in proof["stages"]],
        "floor": [row["floor"] for row in proof["stages"]],
        "limit": proof["limit"],
    }
    figures = [(f.title, f.caption, f.svg) for f in blocks(stages, ("PixArt", "the DiT's own rounding"))]
    figures.append(("Distance at other timesteps", f"{nearness(proof)}. Relative L2 of the output.", _distances(proof)))
    kind, seal = ("pass", "✓") if proof["passed"] else ("fail", "✗")
    title = f"PixArt from {printable(source)}"
    body = [
        f'<div class="hero v-{kind}"><div class="seal">{seal}</div><div><div class="verdict">'
        f"{'PASS' if proof['passed'] else 'FAIL'}</div><h1>{escape(words(proof))}</h1>"
        f"<p>{escape(nearness(proof))}.</p></div></div>",
        "<p class=mute>Both nets were run on the same noise with the same embedded patches; the captions say nothing "
        "yet, since the cross attention adds zero until it is trained.</p>",
        *(f"<p>{escape(printable(note))}</p>" for note in done.notes),
        *(
            f"<section class=card><h3>{escape(title)}</h3><p class=mute>{escape(caption)}</p>"
            f'<div class="scroll">{svg}</div></section>'
            for title, caption, svg in figures
        ),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    own = "main > p { margin-top: 12px; } section.card { margin-top: 18px; padding: 18px 20px; }"
    own += " section.card svg { width: 100%; height: auto; }"
    own += " .second { fill: none; stroke: var(--s1); stroke-width: 1.8; } .dot2 { fill: var(--s1); }"
    return (
        f"<!doctype html><html lang=en><head>{head}<title>{escape(title)}</title><style>{style()}{own}</style></head>"
        f"<body><main><p class=brand>{escape(title)}</p>{''.join(body)}</main></body></html>\n"
    )


def _distances(proof: dict[str, Any]) -> str:
    """A line for each choice over the timesteps. At t = 500 both touch zero."""
    from ..parity.rendering.figures.scales import Linear
    from ..parity.rendering.figures.svg import WIDTH, label, legend, line, path, picture, tag, tooltip

    steps, left, right, top, bottom = proof["timesteps"], 64.0, WIDTH - 20, 42.0, 292.0
    most = max(value for values in proof["distances"].values() for value in values)
    x, y = Linear(0, 1000, left, right), Linear(0, most * 1.08 or 1.0, bottom, top)
    kinds = dict(zip(proof["distances"], (("converted", "dot"), ("second", "dot2")), strict=True))

    def dots() -> Iterator[str]:
        for choice, values in proof["distances"].items():
            for step, value in zip(steps, values, strict=True):
                said = tooltip(f"t = {step}, {choice}: {value:.3g}")
                yield tag("circle", said, cx=x(step), cy=y(value), r=3.4, class_=kinds[choice][1])

    def lines() -> Iterator[str]:
        for choice, values in proof["distances"].items():
            points = [(x(step), y(value)) for step, value in zip(steps, values, strict=True)]
            yield path([points], kinds[choice][0])

    grid = [line(left, y(t.value), right, y(t.value), "grid") for t in y.ticks()]
    grid += [label(left - 8, y(t.value) + 4, t.words, text_anchor="end", class_="tick") for t in y.ticks()]
    ticks = [label(x(t.value), bottom + 20, t.words, text_anchor="middle", class_="tick") for t in x.ticks(10)]
    keys = [(line(0, 0, 22, 0, kinds[choice][0]), _NAMES[choice]) for choice in proof["distances"]]
    said = "how far the PixArt is from the DiT at each timestep"
    axis = label((left + right) / 2, bottom + 42, "timestep", text_anchor="middle", class_="tick")
    return picture(WIDTH, bottom + 52, said, *grid, *lines(), *dots(), *ticks, axis, legend(left, 14, keys))


def write(done: Initialisation, source: str, paths: tuple[str, ...], write_text: Any) -> None:
    """Write every report that was asked for, by `write_text(path, text)`."""
    for path in map(Path, paths):
        write_text(path, render(done, source, path.suffix))
