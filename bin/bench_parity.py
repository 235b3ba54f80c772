"""The part of `bin/bench` that measures the parity checker: against what a careful person writes by hand, the bare
forwards that it needs, and bare reading.

Called by itself it is the work to compare with, in a process of its own:

    bench_parity.py hand ORIGINAL CONVERTED TIMES        a float32 forward of each net at its own size, `allclose`
    bench_parity.py forwards ORIGINAL CONVERTED TIMES    the same forwards, whole nets in memory
    bench_parity.py quick ORIGINAL CONVERTED TIMES       the quick profile, once its libraries are imported
    bench_parity.py audit ORIGINAL CONVERTED TIMES       reading both files once, and the weight audit

All leave their seconds in the file TIMES, as JSON.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from bench_common import Run, measure, read_through, say

HEAD = ("measured", "s", "whole process s", "CPU s", "ratio", "peak RSS MB", "limit")
NONE = Run(0, 0, 0, 0)
NOTES = """
By hand: both nets loaded whole, one sample of the model's own size and of all caption tokens through each in float32,
and `allclose` to 1e-3 (with its defaults it calls rounding a difference). Bare forwards: those that the quick profile
needs, four samples through both nets in float64 and float32, on nets that are whole in memory already. They and the
quick profile are timed twice: in a process that has imported torch and diffusers, without that, and as whole
processes, with imports and, of the forwards, loading. Ratios are medians over runs by turns. The audit runs in one
process with the bare reading of both files, from the page cache.
"""


def contest(source: Path, out: Path, converter: list[str], pixart: list[str], pairs: int) -> list[tuple]:
    """The quick profile, what is done by hand and the bare forwards by turns."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    folder, times = out / "converted", out / "times.json"
    measure([*converter, "--orig_ckpt_path", str(source), "--dump_path", str(folder), "--quiet"])
    quick = [*pixart, "parity", "--orig_ckpt_path", str(source), "--converted_path", str(folder), "--quiet"]
    found: dict[str, list[dict[str, float]]] = {"hand": [], "forwards": [], "quick": [], "audit": []}
    runs: dict[str, list[Run]] = {task: [] for task in (*found, "ours")}
    for pair in range(min(pairs, 3)):
        for task, made in found.items():
            runs[task].append(measure([sys.executable, __file__, task, str(source), str(folder), str(times)]))
            made.append(json.loads(times.read_text()))
            say(f"parity {pair + 1}, {task}: {made[-1]}, {_shown(runs[task][-1])}")
        runs["ours"].append(measure(quick))
        say(f"parity {pair + 1}, quick profile: {_shown(runs['ours'][-1])}")
    hand, forwards, check = ([row[task] for row in found[task]] for task in ("hand", "forwards", "quick"))
    read, audit = ([row[name] for row in found["audit"]] for name in ("read", "audit"))
    walls = {task: [run.wall for run in each] for task, each in runs.items()}
    return [
        _row("by hand: two forwards, `allclose`", median(hand), runs["hand"], "1"),
        _row("bare forwards, whole nets in memory", median(forwards), runs["forwards"], "1"),
        _row("**quick profile**", median(check), runs["ours"], f"**{_ratio(walls['ours'], walls['hand'])}**"),
        _row("", 0, [], f"{_ratio(check, forwards)} of the forwards, imports left out", "1.3"),
        _row("", 0, [], f"{_ratio(walls['ours'], walls['forwards'])} of the process with the forwards"),
        _row("reading both files once", median(read), [], "1"),
        _row("**weight audit**", median(audit), [], f"**{_ratio(audit, read)}**", "2"),
    ]


def _shown(run: Run) -> str:
    return f"whole process {run.wall:.1f} s, {run.cpu:.1f} s of CPU, peak {run.rss:.0f} MB"


def _ratio(some: list[float], others: list[float]) -> str:
    return f"{median(one / other for one, other in zip(some, others, strict=True)):.2f}"


def _row(what: str, alone: float, runs: list[Run], ratio: str, limit: str = "") -> tuple:
    wall, cpu = median(run.wall for run in runs or [NONE]), median(run.cpu for run in runs or [NONE])
    peak = f"{max(run.rss for run in runs):.0f}" if runs else ""
    return (what, *(f"{value:.3g}" if value else "" for value in (alone, wall, cpu)), ratio, peak, limit)


def hand(original: Path, converted: Path) -> dict[str, float]:
    """Both nets loaded whole, one forward of each in float32 at the model's own size, and `allclose`."""
    import torch
    from diffusers import PixArtTransformer2DModel

    from converter import open_checkpoint
    from converter.conversion.analysis import analyse
    from converter.models.pixart.net import pixart
    from converter.models.pixart.parity import STOCK, cases, shape
    from converter.nets.net import HeldWeights

    with open_checkpoint(original) as checkpoint:
        found = analyse(checkpoint).findings
    case = cases(found, "full", {})[-1]
    inputs = {name: value[:1] for name, value in case.tensors(torch.float32).items()}
    started = time.perf_counter()
    with torch.inference_mode():
        state = torch.load(original, weights_only=True)["state_dict"]
        ours = pixart(HeldWeights(state, torch.float32), shape(found)).forward(inputs)
        model = PixArtTransformer2DModel.from_pretrained(converted, subfolder="transformer")
        theirs = STOCK.call(model, inputs)
    assert torch.allclose(theirs, ours, atol=1e-3), "allclose finds a difference"
    return {"hand": time.perf_counter() - started}


def forwards(original: Path, converted: Path) -> dict[str, float]:
    """The four forwards of the quick profile, one net after the other, each whole in memory."""
    import torch
    from diffusers import PixArtTransformer2DModel

    from converter import open_checkpoint
    from converter.conversion.analysis import analyse
    from converter.models.pixart.net import pixart
    from converter.models.pixart.parity import STOCK, cases, shape
    from converter.nets.net import HeldWeights

    with open_checkpoint(original) as checkpoint:
        found = analyse(checkpoint).findings
    case, spent = cases(found, "quick", {})[0], 0.0
    with torch.inference_mode():
        state = torch.load(original, weights_only=True)["state_dict"]
        for dtype in (torch.float32, torch.float64):
            state = {key: tensor.to(dtype) for key, tensor in state.items()}
            net, inputs = pixart(HeldWeights(state, dtype), shape(found)), case.tensors(dtype)
            started = time.perf_counter()
            net.forward(inputs)
            spent += time.perf_counter() - started
        del state, net
        model = PixArtTransformer2DModel.from_pretrained(converted, subfolder="transformer", low_cpu_mem_usage=False)
        for dtype in (torch.float32, torch.float64):
            model, inputs = model.to(dtype), case.tensors(dtype)
            started = time.perf_counter()
            STOCK.call(model, inputs)
            spent += time.perf_counter() - started
    return {"forwards": spent}


def quick(original: Path, converted: Path) -> dict[str, float]:
    """The quick profile as a library call, in a process that has imported what it runs."""
    from converter.parity import check

    for library in ("torch", "diffusers.models.transformers.pixart_transformer_2d"):
        importlib.import_module(library)
    started = time.perf_counter()
    made = check(original, converted)
    spent = time.perf_counter() - started
    assert made.verdict == "PASS", made.reason
    return {"quick": spent}


def audit(original: Path, converted: Path) -> dict[str, float]:
    """Reading both files once, and the audit, from the page cache."""
    from converter import open_checkpoint
    from converter.conversion.analysis import analyse
    from converter.parity.audit import audit as run
    from converter.parity.sides import Sides

    files = [original, *converted.rglob("*.safetensors")]
    for path in files:
        read_through(path)
    started = time.perf_counter()
    for path in files:
        read_through(path)
    read = time.perf_counter() - started
    with open_checkpoint(original) as ours, open_checkpoint(converted) as theirs:
        looked = analyse(ours)
        started = time.perf_counter()
        made = run(Sides(looked.require(), looked.findings, looked.plan, original=ours, converted=theirs))
        spent = time.perf_counter() - started
    assert made.verdict == "PASS", made.words
    return {"read": read, "audit": spent}


if __name__ == "__main__":
    task, *paths, times = sys.argv[1:]
    tasks = {"hand": hand, "forwards": forwards, "quick": quick, "audit": audit}
    Path(times).write_text(json.dumps(tasks[task](*map(Path, paths))))
