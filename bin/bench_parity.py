"""The part of `bin/bench` that measures the parity checker: against the bare forwards that it needs, and bare reading.

Called by itself it is the work to compare with, in a process of its own:

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

from bench_common import measure, read_through, say

HEAD = ("measured", "s", "whole process s", "ratio", "peak RSS MB", "limit")
NOTES = """
`forwards` are those that the quick profile needs, four samples through both nets in float64 and float32, on nets that
are whole in memory already. They and the quick profile are timed twice: in a process that has imported torch and
diffusers, without that, and as whole processes, with imports and, of the forwards, loading. Ratios are medians over
runs by turns. The audit runs in one process with the bare reading of both files, from the page cache.
"""


def contest(source: Path, out: Path, converter: list[str], pixart: list[str], pairs: int) -> list[tuple]:
    """The quick profile and the bare forwards by turns."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    folder, times = out / "converted", out / "times.json"
    measure([*converter, "--orig_ckpt_path", str(source), "--dump_path", str(folder), "--quiet"])
    quick = [*pixart, "parity", "--orig_ckpt_path", str(source), "--converted_path", str(folder), "--quiet"]
    found: dict[str, list[dict[str, float]]] = {"forwards": [], "quick": [], "audit": []}
    bare, inside, ours = [], [], []
    for pair in range(min(pairs, 3)):
        for task, made in found.items():
            run = measure([sys.executable, __file__, task, str(source), str(folder), str(times)])
            made.append(json.loads(times.read_text()))
            say(f"parity {pair + 1}, {task}: {made[-1]}, whole {run.wall:.1f} s, peak {run.rss:.0f} MB")
            if task != "audit":
                (bare if task == "forwards" else inside).append(run)
        ours.append(measure(quick))
        say(f"parity {pair + 1}, quick profile: {ours[-1].wall:.1f} s, peak {ours[-1].rss:.0f} MB")
    forwards, check = ([row[task] for row in found[task]] for task in ("forwards", "quick"))
    read, audit = ([row[name] for row in found["audit"]] for name in ("read", "audit"))
    whole, other = [run.wall for run in ours], [run.wall for run in bare]
    return [
        _row("bare forwards, whole nets in memory", median(forwards), median(other), "1", bare),
        _row("**quick profile**", median(check), median(whole), f"**{_ratio(check, forwards)}**", ours + inside, "1.3"),
        _row("", 0, 0, f"{_ratio(whole, other)} of the process with the forwards", []),
        _row("", 0, 0, f"{_ratio(whole, forwards)}: its whole process, of the forwards alone", []),
        _row("reading both files once", median(read), 0, "1", []),
        _row("**weight audit**", median(audit), 0, f"**{_ratio(audit, read)}**", [], "2"),
    ]


def _ratio(some: list[float], others: list[float]) -> str:
    return f"{median(one / other for one, other in zip(some, others, strict=True)):.2f}"


def _row(what: str, alone: float, whole: float, ratio: str, runs: list, limit: str = "") -> tuple:
    peak = f"{max(run.rss for run in runs):.0f}" if runs else ""
    return (what, *(f"{value:.3g}" if value else "" for value in (alone, whole)), ratio, peak, limit)


def forwards(original: Path, converted: Path) -> dict[str, float]:
    """The four forwards of the quick profile, one net after the other, each whole in memory."""
    import torch
    from diffusers import PixArtTransformer2DModel

    from converter import open_checkpoint
    from converter.conversion.analysis import analyse
    from converter.models.pixart.net import pixart
    from converter.models.pixart.parity import cases, shape
    from converter.models.pixart.stock import STOCK
    from converter.nets import Weights

    class Held(Weights):
        """Weights that are in memory already are lent as they are."""

        def scratch(self, prefix: str) -> dict:
            return self.under(prefix)

    with open_checkpoint(original) as checkpoint:
        found = analyse(checkpoint).findings
    case, spent = cases(found, "quick", {})[0], 0.0
    with torch.inference_mode():
        state = torch.load(original, weights_only=True)["state_dict"]
        for dtype in (torch.float32, torch.float64):
            state = {key: tensor.to(dtype) for key, tensor in state.items()}
            net, inputs = pixart(Held(state, dtype), shape(found)), case.tensors(dtype)
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
    from converter.models.pixart.table import PIXART
    from converter.parity.audit import audit as run
    from converter.parity.weight_pair import WeightPair

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
        made = run(WeightPair(PIXART, looked.findings, looked.plan, original=ours, converted=theirs))
        spent = time.perf_counter() - started
    assert made.verdict == "PASS", made.words
    return {"read": read, "audit": spent}


if __name__ == "__main__":
    task, original, converted, times = sys.argv[1:]
    seconds = {"forwards": forwards, "quick": quick, "audit": audit}[task](Path(original), Path(converted))
    Path(times).write_text(json.dumps(seconds))
