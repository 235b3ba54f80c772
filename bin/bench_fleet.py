"""`bin/bench fleet`: many checkpoints by one worker and by two, and what a worker that dies costs."""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from bench import header, table
from bench_common import ROOT, BenchError, Run, measure, read_through, say, shown

HEAD = ("measured", "wall s", "with sync s", "ratio to one process", "runs with sync s")
KILLS = ("runs with one worker killed", "targets whole", "absent", "half-written", "kills that cost a retry", "")
PROVEN = 4  # pairs that are compared
NOTES = """
Whole processes by turns; a conversion begins with an empty target. The checkpoints are {count} names of one file of
{size:.0f} MB ({what}) in the page cache. "No workers" converts one after the other in the process itself.
"""
DEATHS = """
Each run converts {count} of them by two workers, one of which is killed (SIGKILL) at a random moment. A target is whole
if its weights are, byte for byte, those that an undisturbed run wrote, and its record is there.
"""


def make_checkpoint(path: Path, depth: int, hidden: int) -> None:
    """A sigma of less depth and width, with random weights."""
    import torch
    from bench_torch import noise, sincos

    sys.path.insert(0, str(ROOT / "fixtures"))
    from make_inventories import inventory

    tensors = inventory(depth=depth, hidden_size=hidden, tokens=300, input_size=64)
    state = {key: noise(1, i, shape) for i, (key, (_, shape)) in enumerate(tensors.items())}
    state["pos_embed"] = torch.from_numpy(sincos(32, hidden, 1.0))
    torch.save({"state_dict": state}, path)


def names(source: Path, folder: Path, count: int) -> str:
    """So many names of one file, as a glob."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i in range(count):
        os.link(source, folder / f"epoch_{i + 1}.pth")
    return f"{folder}/*.pth"


def speed(what: str, command: list[str], source: Path, pairs: int, *, out: Path | None = None) -> list[tuple[str, ...]]:
    """The same command with none, one and two workers, by turns; without `out` before each."""
    ways = {"no workers": [], "--workers 1": ["--workers", "1"], "--workers 2": ["--workers", "2"]}
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for pair in range(pairs):
        for way in [*ways] if pair % 2 else [*ways][::-1]:
            if out:
                shutil.rmtree(out, ignore_errors=True)
            read_through(source)
            runs[way].append(measure([*command, *ways[way]]))
            say(f"{what} {pair + 1}, {way}: {shown(runs[way][-1])}")
    rows = []
    for way, each in runs.items():
        ratio = median(run.synced / one.synced for run, one in zip(each, runs["no workers"], strict=True))
        spread = f"{min(run.synced for run in each):.2f} to {max(run.synced for run in each):.2f}"
        wall, synced = (f"{median(column):.2f}" for column in ([r.wall for r in each], [r.synced for r in each]))
        rows.append((f"{what}, {way}", wall, synced, f"{ratio:.2f}", spread))
    return rows


def workers_of(parent: int) -> list[int]:
    """The processes that a command has started to work."""
    ours = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            owner = int(stat.read_text().rpartition(")")[2].split()[1])
            if owner == parent and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                ours.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ours


def weights(folder: Path) -> bytes | None:
    """The weights in a target that has its record, too."""
    files = [*folder.rglob("*.safetensors")]
    if not (folder / "conversion.json").exists() and not [*folder.glob("*/conversion.json")]:
        return None
    return max((file.read_bytes() for file in files), key=len, default=None)


def kill(command: list[str], out: Path, stems: list[str], runs: int, seed: int) -> Counter[str]:
    """Run the command so often; in each run one of its workers dies."""
    draw, count = random.Random(seed), Counter[str]()
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    measure(command)
    usual, whole = time.monotonic() - started, weights(out / stems[0])
    for run in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        started, moment = time.monotonic(), draw.uniform(0, usual)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not (alive := workers_of(process.pid)) or time.monotonic() - started < moment:
                if process.poll() is not None:
                    break
                time.sleep(0.002)
            for victim in draw.sample(alive, min(1, len(alive))):
                os.kill(victim, signal.SIGKILL)
                count["killed"] += 1
            _, errors = process.communicate()
        count[f"exit code {process.returncode}"] += 1
        count["retried"] += "1 worker died" in errors
        for stem in stems:
            there = (out / stem).exists()
            count["whole" if there and weights(out / stem) == whole else "half-written" if there else "absent"] += 1
        say(f"kill {run + 1}: after {moment:.2f} s, exit code {process.returncode}, {errors.strip() or 'no retry'}")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench fleet", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=64, help="checkpoints (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="runs with a worker killed (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=2, help="blocks (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="width (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=15, help="of the moments of the kills (default: %(default)s)")
    for name, default in (("converter", "convert-pixart"), ("pixart", "pixart")):
        command = shlex.quote(str(ROOT / "bin" / default))
        parser.add_argument(f"--{name}", metavar="CMD", type=shlex.split, default=command)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source, out = work / "source.pth", work / "out"
        make_checkpoint(source, options.depth, options.hidden)
        flags = [f"{out}/{{stem}}", "--num_attention_heads", "16"]
        many = names(source, work / "in", options.count)
        rows = []
        if options.pairs:
            command = [*options.converter, many, *flags, "--quiet"]
            rows += speed(f"convert {options.count}", command, source, options.pairs, out=out)
            command = [*options.pixart, "parity", names(source, work / "few", PROVEN), flags[0], "--quiet"]
            rows += speed(f"parity of {PROVEN}", command, source, options.pairs)
        few = max(1, options.count // 4)
        some, stems = names(source, work / "few", few), [f"epoch_{i + 1}" for i in range(few)]
        died = kill([*options.converter, some, *flags, "--workers", "2"], out, stems, options.kills, options.seed)
        print(header(work), end="\n\n")
        what = f"depth {options.depth}, width {options.hidden}"
        if rows:
            table(HEAD, rows)
            print(NOTES.format(count=options.count, size=source.stat().st_size / 1e6, what=what))
        if options.kills:
            codes = ", ".join(f"{count} with {code}" for code, count in sorted(died.items()) if code.startswith("exit"))
            figures = [str(died[name]) for name in ("killed", "whole", "absent", "half-written", "retried")]
            table(KILLS, [(*figures, codes)])
            print(DEATHS.format(count=few))


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench: {error}")
