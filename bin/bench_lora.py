"""Measure `pixart merge-lora` at full size: two adapters of rank 64 on every linear layer, against `cp` of the base.

Every run is a whole process, in turns with `cp`; times are with `sync`. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench_common import ROOT, BenchError, measure, read_through, row, say, shown

RANK, LIMIT = 64, "2.5x, 200 MB"
HEAD = ("measured", "wall s", "with sync s", "ratio to cp", "CPU s", "peak RSS MB", "limit")


def make_adapter(base: Path, path: Path, seed: int) -> None:
    """An adapter in kohya's spelling of every module of a PixArt in its original layout."""
    import numpy as np
    from safetensors.numpy import save_file

    from converter import open_checkpoint
    from converter.lora.names import modules_of
    from converter.models.pixart.table import PIXART

    draw, tensors = np.random.default_rng(seed), {}
    with open_checkpoint(base) as checkpoint:
        for key, tensor in checkpoint.items():
            if any(row.match(key) for row in modules_of(PIXART)) and len(tensor.shape) == 2 and key.endswith(".weight"):
                name = "lora_unet_" + key.removesuffix(".weight").replace(".", "_")
                out, width = tensor.shape
                tensors[f"{name}.lora_down.weight"] = draw.standard_normal((RANK, width), np.float32) * 0.02
                tensors[f"{name}.lora_up.weight"] = draw.standard_normal((out, RANK), np.float32) * 0.02
                tensors[f"{name}.alpha"] = np.array(RANK / 2, np.float32)
    save_file(tensors, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    parser.add_argument("--pairs", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--depth", type=int, default=28, help="blocks of the model (default: 28)")
    options = parser.parse_args(argv)
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        base, loras = work / "base.pth", [work / "a.safetensors", work / "b.safetensors"]
        inventory = ROOT / "fixtures" / "inventories" / "sigma-1024-ms.json"
        measure([sys.executable, str(ROOT / "bin" / "bench_torch.py"), "make", "plain", str(inventory),
                 str(options.depth), str(base)])  # fmt: skip
        for seed, lora in enumerate(loras):
            make_adapter(base, lora, seed)
        runs: dict[str, list] = {"cp": [], "merge": []}
        merge = [str(ROOT / "bin" / "pixart"), "merge-lora", str(base), str(work / "merged"), "--quiet"]
        merge += [word for lora in loras for word in ("--lora", f"{lora}=0.8")]
        for turn in range(options.pairs + 1):  # the first of each warms caches, and is not counted
            for what, command in (("cp", ["cp", str(base), str(work / "copy")]), ("merge", merge)):
                for path in (base, *loras):
                    read_through(path)
                run = measure(command)
                say(f"{what}: {shown(run)}")
                if turn:
                    runs[what].append(run)
                (work / "copy").unlink(missing_ok=True)
                shutil.rmtree(work / "merged", ignore_errors=True)
        pairs = zip(runs["merge"], runs["cp"], strict=True)
        ratio = median(one.synced / other.synced for one, other in pairs)
        rows = [row(f"`cp`, {base.stat().st_size / 1e9:.2f} GB", runs["cp"]),
                row(f"merge of two adapters of rank {RANK}", runs["merge"], ratio, LIMIT)]  # fmt: skip
        for line in (HEAD, ("---",) * len(HEAD), *rows):
            print("| " + " | ".join(line) + " |")
        return 0
    except BenchError as error:
        say(f"error: {error}")
        return 1
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
