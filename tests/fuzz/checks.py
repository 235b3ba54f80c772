"""Bad inputs: for each format a check that changes a seed, runs the command on it, and says what is wrong."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import click
import numpy as np
from makers import HEADS, tree

from converter.cli.main import pixart, run
from converter.parity.cases import load_cases
from converter.parity.inputs import Case
from converter.record import RECORD

from . import oracles
from .confined import Outcome, confined, wrong
from .mutations import changed_bytes, changed_json, changed_text
from .seeds import Seeds, cases
from .torchfiles import changed_archive, changed_pickle

GIVEN = ("--num_attention_heads", HEADS)
TENSORS = (".pth", ".safetensors")
READ, WRITTEN = (0, 3), (0, 2, 3)  # the exit codes of a look at a file, and of a conversion
LIKE = Case("", {"latent": np.zeros((1, 4, 8, 8), np.float32), "timestep": np.zeros(1, np.float32),
                 "caption": np.zeros((1, 1, 3, 4), np.float32), "caption_mask": np.zeros((1, 3), np.int64)})  # fmt: skip
# What the tool says of tensors or texts that are not what the record beside them promises.
NOTED = ("not what", "trained since")


@dataclass
class Bench:
    """One input: its own `chance`, the folder `place` where commands run and find it, and the seeds of all inputs.

    `known` keeps what the seeds become, for the inputs that follow.
    """

    chance: Random
    place: Path
    seeds: Seeds
    known: dict[Any, Any] = field(default_factory=dict)

    def command(self, *arguments: object, command: click.Command = pixart) -> Outcome:
        """The command line in a process of its own, with the place as the current folder."""
        words = [str(argument) for argument in arguments]
        return confined(lambda: run(command, "pixart", words), self.place)

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.place / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    def library(self, path: Path) -> tuple[dict[str, oracles.Held], str]:
        return oracles.read(path, self.place.with_name("library"))

    def written(self, path: Path) -> oracles.Held:
        """The tensors of a file that we wrote, as its library reads them."""
        held, refused = self.library(path)
        return max(held.values(), key=len) if held else {"refused by its own library": [refused]}


Check = Callable[[Bench], list[str]]


def archive(bench: Bench) -> list[str]:
    """The zip of a torch file."""
    return _file(bench, bench.seeds.torch, ".pth", changed_archive)


def pickle(bench: Bench) -> list[str]:
    """The pickle in a torch file, its CRC made right again; calls of what must not be called among it."""
    return _file(bench, bench.seeds.torch, ".pth", changed_pickle)


def safetensors(bench: Bench) -> list[str]:
    """Header and data of a safetensors file."""
    return _file(bench, bench.seeds.safetensors, ".safetensors", _changed_safetensors)


def _file(bench: Bench, own: list[Path], suffix: str, change: Callable[[Random, Path], bytes]) -> list[str]:
    reports = cases((suffix,))
    seed = bench.chance.choice([*own * (1 + len(reports) // len(own)), *reports])
    path = bench.write(f"input{suffix}", change(bench.chance, seed))
    looked = bench.command("inspect", path, "--json")
    found = wrong(looked, READ, bench.place)
    if looked.code == 0:
        json.loads(looked.out)
    return found + _converted(bench, path, lambda *sides: (oracles.unlike if seed in own else oracles.strange)(*sides))


def _changed_safetensors(chance: Random, path: Path) -> bytes:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    if chance.random() < 0.25:
        return changed_bytes(chance, data)
    header = changed_json(chance, data[8:start].decode()).encode("utf-8", "surrogatepass")
    rest = changed_bytes(chance, data[start:]) if chance.random() < 0.2 else data[start:]
    length = len(header) + chance.choice((0, 0, 0, 0, 1, -1, 8, 2**40))
    return max(length, 0).to_bytes(8, "little") + header + rest


def _converted(bench: Bench, path: Path, compare: Callable[..., str]) -> list[str]:
    """Convert the file to any kind of target, absent or there; and hold what was written against its library's view."""
    out = bench.place / "out"
    out.mkdir()
    target = out / bench.chance.choice(("folder", "new.pth", "new.safetensors"))
    if bench.chance.random() < 0.3:
        if target.suffix:
            shutil.copy(bench.seeds.original, target)
        else:
            shutil.copytree(bench.seeds.folders[1], target)
    before, source = tree(out), path.read_bytes()
    flags = ["--to", "original"] if target.suffix else []
    done = bench.command("convert", "--orig_ckpt_path", path, "--dump_path", target, *GIVEN, *flags, "--overwrite",
                         "--allow_nonfinite")  # fmt: skip
    found = wrong(done, WRITTEN, bench.place)
    if path.read_bytes() != source:
        found.append("the input was changed")
    if [name for name in tree(out) if name.startswith(".")] or (done.code and tree(out) != before):
        found.append(f"a failure left {sorted(tree(out))}")
    if done.code:
        return found
    if not target.suffix:
        back = bench.command("revert", "--converted_path", target, "--dump_path", out / "back.safetensors")
        found += [f"the way back: {what}" for what in wrong(back, (0,), bench.place)]
        target = out / "back.safetensors"
        if back.code:
            return found
    held, refused = bench.library(path)
    if refused and not any(reason in refused for reason in oracles.REASONS):
        found.append(f"converted, where its own library refuses it: {refused}")
    elif not refused and (other := compare(bench.written(target), held, done.out)):
        found.append(f"not what its own library reads: {other}")
    return found


def folder(bench: Bench) -> list[str]:
    """config.json, the index of shards, or conversion.json of a converted folder; what is written are its weights."""
    path = bench.place / "model"
    shutil.copytree(bench.chance.choice(bench.seeds.folders), path)
    text = bench.chance.choice(sorted(path.rglob("*.json")))
    change = changed_json(bench.chance, text.read_text())
    text.write_bytes(change.encode("utf-8", "surrogatepass"))
    found = wrong(bench.command("inspect", path, "--json"), READ, bench.place)
    found += wrong(bench.command("diff", bench.seeds.original, path), (0, 1, 2, 3), bench.place)
    again = bench.command("convert", "--orig_ckpt_path", path, "--dump_path", "again", "--max_shard_size", 3000)
    found += wrong(again, WRITTEN, bench.place)
    target = bench.place / "back.safetensors"
    back = bench.command("revert", "--converted_path", path, "--dump_path", target)
    found += wrong(back, WRITTEN, bench.place)
    if back.code == 0:
        held, _ = bench.library(bench.seeds.original)
        made = bench.written(target)
        buffers = {"pos_embed", "y_embedder.y_embedding"}
        if text.name == "config.json":  # says what the table is computed from
            made.pop("pos_embed", None)
        other = {key: value for key, value in held[""].items() if key not in buffers or key in made}
        if made != other:
            found.append(f"reverted to other tensors: {sorted(key for key in other if made.get(key) != other[key])}")
    if any(name.startswith(".") for name in tree(bench.place)):
        found.append(f"left {sorted(tree(bench.place))}")
    return found


def settings(bench: Bench) -> list[str]:
    """parity.toml, of which no checkpoint is there."""
    seed = bench.chance.choice(bench.seeds.texts["config"])
    path = bench.write("parity.toml", changed_text(bench.chance, seed.read_text()))
    return wrong(bench.command("parity", "--config", path), (2, 3), bench.place)


def waivers(bench: Bench) -> list[str]:
    """A file of waivers."""
    seed = bench.chance.choice(bench.seeds.texts["waivers"])
    path = bench.write("waivers.toml", changed_text(bench.chance, seed.read_text()))
    sides = ("--orig_ckpt_path", "nowhere.pth", "--converted_path", "nowhere")
    return wrong(bench.command("parity", "--waivers", path, *sides), (2, 3), bench.place)


def keys(bench: Bench) -> list[str]:
    """Lists of keys that a family is drafted from; the draft is a module that is run, and only says what it maps."""
    texts = bench.seeds.texts["keys"]
    source = bench.write("theirs.json", changed_json(bench.chance, bench.chance.choice(texts).read_text()))
    words = ["new-family", "drafted", source, "--out", "drafted.py"]
    if bench.chance.random() < 0.6:
        words += ["--target", bench.write("ours.json", changed_json(bench.chance, bench.chance.choice(texts).read_text()))]
    made = bench.command(*words)
    found = wrong(made, WRITTEN, bench.place)
    draft = bench.place / "drafted.py"
    if made.code == 0:
        ast.parse(draft.read_text())
        used = bench.command("inspect", bench.seeds.original, "--family", draft)
        found += [f"the draft: {what}" for what in wrong(used, WRITTEN, bench.place)]
    elif draft.exists():
        found.append("a failure left the module")
    return found


def saved_cases(bench: Bench) -> list[str]:
    """Inputs of the parity checker that were saved to a file."""
    path = bench.write("cases.safetensors", _changed_safetensors(bench.chance, bench.seeds.texts["cases"][0]))
    reading = click.Command("cases", callback=lambda: load_cases(path, LIKE) and None)
    return wrong(bench.command(command=reading), READ, bench.place)


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


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (archive, pickle, safetensors, folder, settings, waivers, keys, saved_cases, flip_in_file, flip_in_folder)
}
