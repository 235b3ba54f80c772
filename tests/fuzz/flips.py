"""One flipped bit, in what this tool wrote: of a file with checksums, or of a folder with a record of every digest."""

from __future__ import annotations

import shutil
from random import Random

from makers import tree

from converter.filenames import RECORD

from .bench import GIVEN, READ, WRITTEN, Bench, Check
from .confined import wrong

# What is said of tensors or texts that are not what the record beside them promises.
NOTED = ("are not what", "is not what", "is ignored")


def flip_in_file(bench: Bench) -> list[str]:
    """One flipped bit of a .pth that we wrote: refused, or nothing of the tensors changes."""
    flags, source = ("--to", "original", "--quiet"), bench.seeds.folders[0]
    if "pth" not in bench.known:
        bench.command("convert", "--orig_ckpt_path", source, "--dump_path", bench.place / "whole.pth", *flags)
        bench.known["pth"] = (bench.place / "whole.pth").read_bytes()
    path = bench.write("flipped.pth", flipped(bench.chance, bench.known["pth"]))
    wanted = bench.written(bench.write("whole.pth", bench.known["pth"]))
    target = bench.place / "new.safetensors"
    done = bench.command("convert", "--orig_ckpt_path", path, "--dump_path", target, *flags, *GIVEN)
    found = wrong(done, READ, bench.place)
    if done.code == 0 and bench.written(target) != wanted:
        found.append("other tensors than before the flip, and not a word")
    return found


# Every direction out of a converted folder: its name -> what is asked for, and what is made.
DIRECTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "original": (("--to", "original"), "new.safetensors"),
    "shards": (("--max_shard_size", 3000), "new"),
    "cast": (("--dtype", "bfloat16"), "new"),
    "again": ((), "new"),
}


def flip_in_folder(bench: Bench) -> list[str]:
    """One flipped bit anywhere in a converted folder with a record: refused, noted, or the result is the same."""
    path, direction = bench.place / "model", bench.chance.choice(list(DIRECTIONS))
    seed = bench.chance.choice(bench.seeds.folders)
    flags, name = DIRECTIONS[direction]
    command = ("convert", "--orig_ckpt_path", path, "--dump_path", name, *flags)

    def made() -> dict[str, bytes]:
        target = bench.place / name
        files = tree(target) if target.is_dir() else {name: target.read_bytes()}
        return {name: data for name, data in files.items() if name != RECORD}  # it names digests of its source

    if (seed, direction) not in bench.known:
        shutil.copytree(seed, path)
        found = wrong(bench.command(*command), (0,))
        if found:
            return found
        bench.known[seed, direction] = made()
        for old in bench.place.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(seed, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    victim = bench.chance.choice(files)
    victim.write_bytes(flipped(bench.chance, victim.read_bytes()))
    done = bench.command(*command)
    found = wrong(done, WRITTEN, bench.place)
    if done.code == 0 and made() != bench.known[seed, direction] and not any(word in done.out for word in NOTED):
        found.append(f"{direction}: {victim.relative_to(path)} is damaged, passed on, and not a word")
    return found


def flipped(chance: Random, data: bytes) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


FLIPS: dict[str, Check] = {check.__name__: check for check in (flip_in_file, flip_in_folder)}
