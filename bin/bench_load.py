"""The part of `bin/bench` that measures a model in memory: `converter.load` beside `from_pretrained` and a script.

Called by itself it is one of the three, in a process of its own:

    bench_load.py load|from_pretrained|script ORIGINAL CONVERTED DTYPE [TIMES]

With TIMES, a file, the libraries are imported first, and it holds the seconds after that, as JSON: until the model is
there, and until every page of its weights was read once, as its first forward does: what is mapped is read then.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median

from bench_common import measure, read_through, say

HEAD = ("measured", "load s", "load and read s", "whole process s", "ratios to from_pretrained", "peak RSS MB", "limit")
NOTES = """
By turns, both files in the page cache; ratios are medians over the turns. `load`: a process that has imported its
libraries; `read`: every page of the weights, once, as the first forward does; the whole process loads, and imports its
libraries for it. `from_pretrained` loads the converted folder and verifies nothing; the conversion is not counted. The
script is `torch.load`, renaming, `load_state_dict` and `to(dtype)`. The peak is that of a process in which every page
was read: mapped ones count.
"""
PAGE = 4096
WAYS = ("load", "from_pretrained", "script")


def contest(source: Path, folder: Path, converter: list[str], pairs: int) -> list[tuple]:
    """All three by turns, in float32 and bfloat16."""
    shutil.rmtree(folder, ignore_errors=True)
    measure([*converter, "--orig_ckpt_path", str(source), "--dump_path", str(folder), "--quiet"])
    rows, times = [], folder / "times.json"
    for dtype in ("float32", "bfloat16"):
        seconds: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
        peaks = dict.fromkeys(WAYS, 0.0)
        for turn in range(pairs):
            for way in WAYS if turn % 2 else reversed(WAYS):
                for file in (source, *folder.rglob("*.safetensors")):
                    read_through(file)
                command = [sys.executable, __file__, way, str(source), str(folder), dtype]
                run, whole = measure([*command, str(times)]), measure(command)
                seconds[way].append((*json.loads(times.read_text()), whole.wall))
                peaks[way] = max(peaks[way], run.rss)
                say(f"{way} {dtype} {turn + 1}: {seconds[way][-1]}, peak {run.rss:.0f} MB")
        for way in WAYS:
            pairs_of = zip(seconds[way], seconds["from_pretrained"], strict=True)
            ratios = zip(*([a / b for a, b in zip(one, other, strict=True)] for one, other in pairs_of), strict=True)
            cells = (f"{median(column):.2f}" for column in zip(*seconds[way], strict=True))
            shown = ", ".join(f"{median(column):.2f}" for column in ratios)
            name, limit = f"{way}, {dtype}", "1, whole process" if way == "load" else ""
            rows.append((f"**{name}**" if limit else name, *cells, shown, f"{peaks[way]:.0f}", limit))
    return rows


def loaded(way: str, source: Path, folder: Path, dtype: str):
    """The model, in memory."""
    if way == "load":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        import converter

        return converter.load(source, torch_dtype=dtype)
    import torch
    from diffusers import PixArtTransformer2DModel

    if way == "from_pretrained":
        return PixArtTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=getattr(torch, dtype))
    from bench_torch import diffusers_names

    weights = {}
    for key, tensor in torch.load(source, map_location="cpu", weights_only=True)["state_dict"].items():
        names = diffusers_names(key)
        weights.update(zip(names, tensor.chunk(len(names)) if names else (), strict=True))
    model = PixArtTransformer2DModel.from_config(json.loads((folder / "transformer" / "config.json").read_text()))
    model.load_state_dict(weights)
    return model.eval().to(getattr(torch, dtype))


def main(way: str, source: str, folder: str, dtype: str, times: str = "") -> None:
    if times:
        import accelerate
        import torch
        from diffusers import PixArtTransformer2DModel

        assert accelerate
        assert torch
        assert PixArtTransformer2DModel
    started = time.perf_counter()
    model = loaded(way, Path(source), Path(folder), dtype)
    there = time.perf_counter() - started
    if times:
        for parameter in model.parameters():
            parameter.detach().reshape(-1)[:: PAGE // parameter.element_size()].sum()
        Path(times).write_text(json.dumps([there, time.perf_counter() - started]))


if __name__ == "__main__":
    main(*sys.argv[1:])
