"""Measure the converter against `cp` and torch, and the parity checker against bare forwards: Markdown tables.

Everything is a whole process measured from the outside: the interpreter's start counts, and so does bringing
the result to the disk. The checkpoints are random weights in the names and shapes of a released model.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import bench_load
import bench_parity
from bench_common import ROOT, BenchError, Run, measure, memory, read_through, row, say, shown

DEPTHS = {"full": 1000, "small": 2}  # the most blocks that are made
CONVERT_LIMIT, CAST_LIMIT, BACK_LIMIT = "1x, 2.2 s of CPU, 60 MB", "1.2x, 150 MB", "1.1x, 60 MB"
HELP_LIMIT, INSPECT_LIMIT = "0.2 s", "0.3 s"
REST = 2  # seconds: a virtual machine hands back what the run before has freed, and has to get it again
HEAD = ("measured", "wall s", "with sync s", "ratio to cp", "CPU s", "peak RSS MB", "limit")
NOTES = """
Each run starts with an empty target, its source in the page cache and nothing left to sync; the ratio is of
the times with sync. `cp` copies the plain checkpoint in both parts, since of a training file only that share
is to be converted. CPU seconds are the process's own, user and system, as `wait4` counts them: what the kernel
writes back by itself, as after `cp`, is in none. Peak RSS is `ru_maxrss` from `wait4`: mapped file pages count,
page cache that is not mapped does not, and less than {floor:.0f} MB, the bench's own, cannot be seen. No time
fails this run.
"""


def torch_child(task: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "bin" / "bench_torch.py"), task, *map(str, arguments)]


def make_checkpoint(kind: str, model: str, size: str, target: Path, dtype: str = "float32") -> None:
    inventory = ROOT / "fixtures" / "inventories" / f"{model}.json"
    run = measure(torch_child("make", kind, inventory, DEPTHS[size], target, dtype))
    say(f"made {target.name}, {target.stat().st_size / 1e9:.2f} GB: {shown(run)}")


def ways_out(source: Path, out: Path, converter: list[str]) -> dict[str, list[str]]:
    """Our conversion, and those that people write around torch."""
    flags = ["--orig_ckpt_path", str(source), "--dump_path", str(out / "converted"), "--quiet"]
    commands = {
        "convert": [*converter, *flags],
        "torch.load(mmap=True) + save_file": torch_child("torch-mmap", source, out / "torch.safetensors"),
        "torch.load + save_file": torch_child("torch", source, out / "torch.safetensors"),
    }
    if source.stat().st_size * 1.2 > memory("MemAvailable"):
        say(f"{source.name}: torch.load without mmap left out, it needs memory for the whole file")
        del commands["torch.load + save_file"]
    return commands


def casts(source: Path, out: Path, converter: list[str]) -> dict[str, list[str]]:
    """The same, rounded to half precision."""
    flags = ["--orig_ckpt_path", str(source), "--dump_path", str(out / "converted"), "--quiet"]
    return {
        "convert --dtype float16": [*converter, *flags, "--dtype", "float16"],
        "convert --dtype bfloat16": [*converter, *flags, "--dtype", "bfloat16"],
        "torch.load(mmap=True) + half + save_file": torch_child("half", source, out / "torch.safetensors"),
    }


def ways_back(folder: Path, out: Path, model: str, pixart: list[str]) -> dict[str, list[str]]:
    """The way back of a conversion to a `.pth`."""
    weights, inventory = heaviest(folder), ROOT / "fixtures" / "inventories" / f"{model}.json"
    flags = ["--converted_path", str(folder), "--dump_path", str(out / "back.pth"), "--quiet"]
    return {
        "revert": [*pixart, "revert", *flags],
        "load_file + torch.save": torch_child("back", weights, inventory, out / "torch.pth"),
    }


def contest(kind: str, source: Path, copied: Path, out: Path, commands: dict, pairs: int, limit: str) -> list[tuple]:
    """`cp` of `copied` and the first of `commands` by turns, so that a machine that slows down slows both; then the
    rest, each in every round."""
    ours, commands = next(iter(commands)), {"cp": ["cp", str(copied), str(out / f"copy{copied.suffix}")], **commands}
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    digests: dict[str, str] = {}
    for pair in range(pairs):
        order = list(commands)
        if pair % 2:  # neither always goes first
            order[:2] = ours, "cp"
        for name in order:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            read_through(copied if name == "cp" else source)
            os.sync()
            time.sleep(REST)
            run = measure(commands[name])
            say(f"{kind} {pair + 1}, {name}: {shown(run)}")
            runs[name].append(run)
            if pair == 0:
                digests[name] = weights_digest(out)
    ratios = {n: [a.synced / b.synced for a, b in zip(runs[n], runs["cp"], strict=True)] for n in runs}
    rows = []
    for i, ratio in enumerate(ratios[ours]):
        rows.append(row(f"{kind}, pair {i + 1}: cp", [runs["cp"][i]]))
        rows.append(row(f"{kind}, pair {i + 1}: {ours}", [runs[ours][i]], ratio))
    for name in commands:
        what = f"{kind}, median of {pairs}: {name}"
        if name == ours:
            rows.append(row(f"**{what}**", runs[name], median(ratios[name]), limit))
        elif name != "cp":
            same = f" ({'same' if digests[name] == digests[ours] else 'other'} bytes)" if digests[name] else ""
            rows.append(row(f"{what}{same}", runs[name], median(ratios[name])))
    return rows


def small_commands(source: Path, converter: list[str], pixart: list[str]) -> list[tuple]:
    """What has to feel instant: the help text, and a look into a large file."""
    inspect, what = [*pixart, "inspect", str(source)], f"inspect, {source.stat().st_size / 1e9:.2f} GB"
    helps = [measure([*converter, "--help"]) for _ in range(20)]
    read_through(source)
    warm = [measure(inspect) for _ in range(5)]
    os.sync()  # only clean pages can be dropped
    with source.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = [measure(inspect)]
    return [
        row("--help, median of 20", helps, limit=HELP_LIMIT, synced=False),
        row(f"{what}, median of 5", warm, limit=INSPECT_LIMIT, synced=False),
        row(f"{what}, not in the page cache, once", cold, synced=False),
    ]


def heaviest(folder: Path) -> Path:
    """The largest safetensors file in a folder: the weights, whatever lies beside them."""
    return max(folder.rglob("*.safetensors"), key=lambda path: path.stat().st_size)


def weights_digest(folder: Path) -> str:
    """Of the weights in a folder; '' where there is no safetensors file (archives differ in more than weights)."""
    if not any(folder.rglob("*.safetensors")):
        return ""
    digest = hashlib.sha256()
    read_through(heaviest(folder), digest.update)
    return digest.hexdigest()


def header(work: Path) -> str:
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    disk = max((m for m in mounts if work.resolve().is_relative_to(m[0])), key=lambda m: len(m[0]))[1]
    facts = [
        f"{len(os.sched_getaffinity(0))} cores, {memory('MemTotal') / 1e9:.0f} GB memory",
        [*cpus, platform.machine()][0],
        f"Linux {platform.release()}, {disk}, Python {platform.python_version()}, torch {version('torch')}",
    ]
    return f"{time.strftime('%Y-%m-%d')}: " + ", ".join(facts)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=DEPTHS, default="full", help="small: depth 2, to try the bench")
    parser.add_argument("--model", default="sigma-1024-ms", help="an inventory (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the plain checkpoint (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="of cp and convert (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "pixart-bench")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints for the next run")
    parts = ("all", "convert", "cast", "back", "load", "parity")
    parser.add_argument("--part", choices=parts, default=parts[0], help="what to measure")
    parser.add_argument("--skip-training", action="store_true", help="leave out the 10 GB training file")
    for name, default in (("converter", "convert-pixart"), ("pixart", "pixart")):
        command = shlex.quote(str(ROOT / "bin" / default))
        use = f"instead of bin/{default}"
        parser.add_argument(f"--{name}", metavar="CMD", type=shlex.split, default=command, help=use)
    return parser.parse_args(argv)


def table(head: tuple, rows: list[tuple]) -> None:
    for line in [head, ("---", *["--:"] * (len(head) - 2), "---"), *rows]:
        print(f"| {' | '.join(line)} |")


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    for command in (options.converter, options.pixart, ["cp"]):
        if not shutil.which(command[0]):  # before gigabytes are written
            raise BenchError(f"cannot be run: {shlex.join(command)}")
    if options.pairs < 1:
        raise BenchError("--pairs: at least 1")
    work, size = options.workdir, options.size
    work.mkdir(parents=True, exist_ok=True)
    plain, training = (work / f"{options.model}-{size}-{kind}.pth" for kind in ("plain", "training"))
    made = [path for path in (plain, training) if not path.exists()]
    rows, loads, proofs, largest = [], [], [], plain
    try:
        if plain in made:
            make_checkpoint("plain", options.model, size, plain, options.dtype)
        out, pairs = work / "out", options.pairs
        if options.part in ("all", "cast"):
            rows += contest("cast", plain, plain, out, casts(plain, out, options.converter), pairs, CAST_LIMIT)
        if options.part in ("all", "back"):
            folder = work / "converted"
            shutil.rmtree(folder, ignore_errors=True)
            measure([*options.converter, "--orig_ckpt_path", str(plain), "--dump_path", str(folder), "--quiet"])
            commands = ways_back(folder, out, options.model, options.pixart)
            rows += contest("back", heaviest(folder), heaviest(folder), out, commands, pairs, BACK_LIMIT)
        if options.part in ("all", "convert"):
            rows += contest("plain", plain, plain, out, ways_out(plain, out, options.converter), pairs, CONVERT_LIMIT)
            # torch.save wants all of it in memory at once.
            if training in made and plain.stat().st_size * 4.2 > memory("MemAvailable"):
                say("no training file: too little memory to make one")
            elif not options.skip_training:
                if training in made:
                    make_checkpoint("training", options.model, size, training)
                commands = ways_out(training, out, options.converter)
                rows += contest("training", training, plain, out, commands, min(pairs, 2), CONVERT_LIMIT)
                largest = training
            rows += small_commands(largest, options.converter, options.pixart)
        if options.part in ("all", "load"):
            loads = bench_load.contest(plain, work / "converted", options.converter, pairs)
        if options.part in ("all", "parity"):
            proofs = bench_parity.contest(plain, work / "out", options.converter, options.pixart, options.pairs)
    finally:
        for folder in ("out", "converted"):
            shutil.rmtree(work / folder, ignore_errors=True)
        for path in made:
            path.with_name(path.name + ".partial").unlink(missing_ok=True)
            if not options.keep:
                path.unlink(missing_ok=True)
    print(header(work), end="\n\n")
    if rows:
        table(HEAD, rows)
        print(NOTES.format(floor=measure(["true"]).rss))
    if loads:
        table(bench_load.HEAD, loads)
        print(bench_load.NOTES)
    if proofs:
        table(bench_parity.HEAD, proofs)
        print(bench_parity.NOTES)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
