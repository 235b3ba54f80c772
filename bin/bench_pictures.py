"""`bin/bench pictures`: the memory and the time of a picture of 1024 px on full-size random weights, against the plan.

bench_pictures.py make FOLDER    T5-XXL's encoder in bfloat16 (9.5 GB) and a VAE, in a process of its own
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path

from bench import header, make_checkpoint, table
from bench_common import ROOT, BenchError, measure, read_through, say

HEAD = ("stage", "how", "planned", "measured", "s")
PLANNED = re.compile(r"(text encoder|transformer|VAE): (.*?)(?:: | )(?:weights|largest part) .* = (\S+ .?B)")
MEASURED = re.compile(r"peak memory: (.*) (\S+ .?B)")
T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
LEVELS = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 1024}  # of SDXL's VAE
KINDS = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
NOTES = """
One picture of 1024 x 1024 with guidance, each a process of its own. Measured is the peak of the process's resident
memory in a stage, with all its libraries; seconds are those of a whole stage, the first with imports. The peak does
not depend on the number of steps.
"""


def make(folder: Path) -> None:
    import torch
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file
    from transformers import T5Config, T5EncoderModel

    def drawn(shape: torch.Size) -> torch.Tensor:
        empty = torch.empty(shape, dtype=torch.bfloat16)
        return empty.normal_(std=0.02) if len(shape) > 1 else empty.fill_(1)

    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**T5_XXL, feed_forward_proj="gated-gelu"))
    text_encoder, weight_map = folder / "text_encoder", {}
    model.config.save_pretrained(text_encoder)
    for part, parameters in groupby(model.named_parameters(), lambda named: ".".join(named[0].split(".")[:3])):
        tensors = {name: drawn(parameter.shape) for name, parameter in parameters}  # one block at a time
        save_file(tensors, text_encoder / f"{part}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"{part}.safetensors")
    index = text_encoder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    AutoencoderKL(**LEVELS, **KINDS, scaling_factor=0.13025).save_pretrained(folder / "vae")


def make_pipeline(folder: Path, converter: list[str]) -> Path:
    pipeline, plain = folder / "pipeline", folder / "plain.pth"
    if not pipeline.exists():
        folder.mkdir(parents=True, exist_ok=True)
        measure([sys.executable, __file__, "make", str(folder)])
        make_checkpoint("plain", "sigma-1024-ms", "full", plain)
        places = {"vae": folder / "vae", "text_encoder": folder / "text_encoder"}
        places |= {"tokenizer": ROOT / "fixtures" / "pipeline" / "tokenizer"}
        flags = ["--only_transformer=False", "--quiet", *(f"--{part}={place}" for part, place in places.items())]
        measure([*converter, "--orig_ckpt_path", str(plain), "--dump_path", str(pipeline), *flags])
        plain.unlink()
    return pipeline


def lines(command: list[str]) -> Iterator[tuple[float, str]]:
    """What a command prints, each line with the seconds since the one before."""
    last = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            say(line.rstrip())
            now = time.perf_counter()
            yield now - last, line.rstrip()
            last = now
    if child.returncode:
        raise BenchError(f"exit status {child.returncode}: {shlex.join(command)}")


def picture(pipeline: Path, dtype: str, budget: str, options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The stages of one run."""
    flags = ["--pipeline", str(pipeline), "--output", str(pipeline.with_name("picture.png")), "--overwrite"]
    flags += ["--prompt", "A small cactus", "--height=1024", "--width=1024", f"--num_inference_steps={options.steps}"]
    flags += [f"--dtype={dtype}", *([f"--memory_budget={budget}"] if budget else [])]
    plans = dict[str, tuple[str, str]]()
    yield f"**{dtype}, {budget or 'no budget'}**", "", "", "", ""
    for seconds, line in lines([*options.pixart, "generate", *flags]):
        if shown := PLANNED.match(line):
            plans[shown[1]] = shown[2], shown[3]
        elif shown := MEASURED.match(line):
            yield shown[1], *plans[shown[1]], shown[2], f"{seconds:.0f}"


def reading(pipeline: Path) -> Iterator[tuple[str, ...]]:
    """What it takes to read the text encoder's files, and do nothing with them."""
    for how in ("from the disk", "from the page cache"):
        files = [path.open("rb") for path in pipeline.glob("text_encoder/*.safetensors")]
        for file in files if how == "from the disk" else ():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        for file in files:
            read_through(Path(file.name))
            file.close()
        yield "reading the text encoder's files", how, "", "", f"{time.perf_counter() - started:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench pictures", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keep the weights here, 12 GB, for the next run")
    parser.add_argument("--steps", type=int, default=1, help="of the sampler (default: %(default)s)")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="default: float32 and bfloat16")
    parser.add_argument("--memory_budget", nargs="+", default=["3GB"], help="such as 3GB 8GB '' (default: 3GB)")
    for name, default in (("converter", "convert-pixart"), ("pixart", "pixart")):
        command = shlex.quote(str(ROOT / "bin" / default))
        parser.add_argument(f"--{name}", metavar="CMD", type=shlex.split, default=command)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pipeline = make_pipeline((options.folder or Path(temporary)).absolute(), options.converter)
        rows = [*reading(pipeline)]
        for dtype, budget in product(options.dtype, options.memory_budget):
            rows += picture(pipeline, dtype, budget, options)
        print(header(pipeline), end="\n\n")
    table(HEAD, rows)
    print(NOTES)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[2])) if sys.argv[1:2] == ["make"] else main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
