"""Bad inputs: for each format a check that changes a seed, runs the command on it, and says what is wrong."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import click
import numpy as np
from makers import tree

from converter.nets.inputs import Case, load_cases

from . import oracles
from .bench import GIVEN, READ, WRITTEN, Bench, Check
from .confined import wrong
from .mutations import changed_bytes, changed_json, changed_text
from .seeds import cases
from .torchfiles import changed_archive, changed_pickle

AXES = {"latent": (1, 4, 8, 8), "timestep": (1,), "caption": (1, 1, 3, 4)}
LIKE = Case("", {name: np.zeros(shape, np.float32) for name, shape in AXES.items()})


def archive(bench: Bench) -> list[str]:
    """The zip of a torch file."""
    return _file(bench, bench.seeds.torch, changed_archive)


def pickle(bench: Bench) -> list[str]:
    """The pickle in a torch file, its CRC made right again; calls of what must not be called among it."""
    return _file(bench, bench.seeds.torch, changed_pickle)


def safetensors(bench: Bench) -> list[str]:
    """Header and data of a safetensors file."""
    return _file(bench, bench.seeds.safetensors, _changed_safetensors)


def _file(bench: Bench, own: list[Path], change: Callable[[Random, Path], bytes]) -> list[str]:
    reports = cases({seed.suffix for seed in own})
    seed = bench.chance.choice([*own * (1 + len(reports) // len(own)), *reports])
    path = bench.write(f"input{seed.suffix}", change(bench.chance, seed))
    looked = bench.command("inspect", path, "--json")
    found = wrong(looked, READ, bench.place)
    if looked.code == 0:
        json.loads(looked.out)
    return found + _converted(bench, path, seed, oracles.unlike if seed in own else oracles.strange)


def _changed_safetensors(chance: Random, path: Path) -> bytes:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    if chance.random() < 0.25:
        return changed_bytes(chance, data)
    header = changed_json(chance, data[8:start].decode()).encode("utf-8", "surrogatepass")
    rest = changed_bytes(chance, data[start:]) if chance.random() < 0.2 else data[start:]
    length = len(header) + chance.choice((0, 0, 0, 0, 1, -1, 8, 2**40))
    return max(length, 0).to_bytes(8, "little") + header + rest


def _converted(bench: Bench, path: Path, seed: Path, compare: Callable[..., str]) -> list[str]:
    """Convert the file to any kind of target, absent or there; and hold what was written against its library's view.

    Where its library refuses the file, what was changed has to lie beside the weights (an optimizer's, say, which is
    not read here): then they are those of the seed.
    """
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
        folder, target = target, out / "back.safetensors"
        back = bench.command("revert", "--converted_path", folder, "--dump_path", target, "--allow_nonfinite")
        found += [f"the way back: {what}" for what in wrong(back, (0,), bench.place)]
        if back.code:
            return found
    held, refused = bench.library(path)
    if other := compare(bench.written(target), bench.library(seed)[0] if refused else held, done.out):
        found.append(f"not what its own library reads: {other}" + (f"; it refuses: {refused}" if refused else ""))
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
        # The config says what the table is computed from, the record what dtype it had.
        if text.name == "config.json" or "is ignored" in back.out:
            made.pop("pos_embed", None)
        other = {key: value for key, value in held[""].items() if key not in buffers or key in made}
        if made != other:
            found.append(f"reverted to other tensors: {sorted(key for key in other if made.get(key) != other[key])}")
    if any(name.startswith(".") for name in tree(bench.place)):
        found.append(f"left {sorted(tree(bench.place))}")
    return found


def settings(bench: Bench) -> list[str]:
    """parity.toml, of which no checkpoint is there; or a file of waivers."""
    seed = bench.chance.choice(bench.seeds.texts["settings"])
    path = bench.write(seed.name, changed_text(bench.chance, seed.read_text()))
    nowhere = ("--orig_ckpt_path", "nowhere.pth", "--converted_path", "nowhere", "--waivers")
    words = ("--config",) if seed.name == "parity.toml" else nowhere
    return wrong(bench.command("parity", *words, path), (2, 3), bench.place)


def keys(bench: Bench) -> list[str]:
    """Lists of keys that a family is drafted from; the draft is a module that is run, and only says what it maps."""
    texts = bench.seeds.texts["keys"]
    source = bench.write("theirs.json", changed_json(bench.chance, bench.chance.choice(texts).read_text()))
    words = ["new-family", "drafted", source, "--out", "drafted.py"]
    if bench.chance.random() < 0.6:
        words += [
            "--target",
            bench.write("ours.json", changed_json(bench.chance, bench.chance.choice(texts).read_text())),
        ]
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


BINARY: dict[str, Check] = {check.__name__: check for check in (archive, pickle, safetensors, saved_cases)}
TEXTS: dict[str, Check] = {check.__name__: check for check in (folder, settings, keys)}
