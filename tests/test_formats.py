"""`docs/formats.md` names every field that is written, with its type, and no other: compared with what is written."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import HEADS, ROOT, dit, other, pixart, save, training
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converter.nets.net import Stage, Staged
from converter.nets.sampler import Sampler
from converter.parity import Case, noise, trajectory
from converter.parity.ci.cache import Cache
from converter.parity.determinism import environment
from converter.parity.localise import lockstep
from converter.reports.report import PASS, Report

FORMATS = ROOT / "docs" / "formats.md"
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
Field = tuple[str, ...]  # of a field: ("plan", "[]", "shape"); "*" for a name that is not fixed
Run = Callable[..., Any]


def documented(heading: str) -> dict[Field, set[str]]:
    """Path -> types, of the tables under a heading of the second level."""
    part = re.split(r"^## ", FORMATS.read_text(), flags=re.M)
    (text,) = (each for each in part if each.startswith(f"{heading}\n"))
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|", text, flags=re.M)
    assert len(rows) == len(dict(rows)), "a field stands twice"
    return {tuple(path.replace("[]", ".[]").split(".")): set(re.split(", | or ", types)) for path, types in rows}


def fields(value: Any, path: Field = ()) -> Iterator[tuple[Field, str]]:
    """(path, type) of everything in a JSON value."""
    if path and path[-1] != "[]":
        yield path, kind(value)
    if isinstance(value, dict):
        for name, each in value.items():
            yield from fields(each, (*path, name))
    elif isinstance(value, list):
        for each in value:
            yield from fields(each, (*path, "[]"))


def kind(value: Any) -> str:
    """Its type, as the tables say it."""
    if value is None or value in ("nan", "inf", "-inf"):
        return "null" if value is None else "number"
    if isinstance(value, list):
        inner = {kind(each).partition(" ")[0] for each in value}
        return f"array of {'/'.join(sorted(inner))}" if inner else "array"
    return TYPES[type(value)]


def fits(seen: str, known: set[str]) -> bool:
    """Whether a type is one of those that are documented: an integer is a number too, and an array may be empty."""
    wider = seen.replace("integer", "number")
    return bool({seen, wider} & known) or (seen == "array" and any(each.startswith("array") for each in known))


def same(known: Field, seen: Field) -> bool:
    return len(known) == len(seen) and all(one in ("*", name) for one, name in zip(known, seen, strict=True))


def compare(known: Mapping[Field, set[str]], seen: set[tuple[Field, str]]) -> list[str]:
    """What is written and not documented, or documented and not written, in words."""
    wrong, used = [], set()
    for path, seen_as in sorted(seen):
        # A name that is fixed comes before one that is not.
        match = next((each for each in sorted(known, key=lambda row: row.count("*")) if same(each, path)), None)
        if match is None:
            wrong.append(f"{'.'.join(path)}: not documented")
        else:
            used.add(match)
            if not fits(seen_as, known[match]):
                wrong.append(f"{'.'.join(path)}: is {seen_as}, documented as {known[match]}")
    return wrong + [f"{'.'.join(path)}: documented, and nothing writes it" for path in known.keys() - used]


@pytest.fixture
def convert(cli: Run, tmp_path: Path) -> Run:
    def run(source: Path, *options: object, to: str, heads: bool = True, code: int = 0) -> Any:
        flags = ["--num_attention_heads", HEADS] if heads else []
        target = tmp_path / to
        done = cli("convert-pixart", "--orig_ckpt_path", source, "--dump_path", target, *flags, *options, "--quiet")
        assert done.returncode == code, done.stderr
        return json.loads((target / "conversion.json").read_text())

    return run


def merge(cli: Run, target: Path, *options: object) -> None:
    """A base with two adapters: one whose products have no rank, and one of which a part is left out."""
    lora, base = ROOT / "fixtures" / "lora", ROOT / "fixtures" / "golden" / "sigma-ms.pth"
    names = ("d-lycoris-lokr-full.safetensors", "refuse/unknown-module.safetensors")
    adapters = (word for name in names for word in ("--lora", lora / name))
    flags = (*adapters, "--allow_partial", "--num_attention_heads", HEADS, "--quiet", *options)
    done = cli("pixart", "merge-lora", base, target, *flags)
    assert done.returncode == 0, done.stderr


def test_conversion_json(cli: Run, convert: Run, tmp_path: Path) -> None:
    state = pixart()
    # A training file of a framework that exchanges raw weights and EMA, with an object of the user's in it.
    file = training(state, None) | {"current_model_state": other(state), "args": argparse.Namespace(lr=1.0)}
    rounded = pixart() | {"pos_embed": state["pos_embed"].half().float()}
    mixed = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()} | {"vae.weight": torch.ones(2)}
    parts = ROOT / "fixtures" / "pipeline"
    seen = [
        convert(save(file, tmp_path / "training.pth"), to="training"),
        convert(save(rounded, tmp_path / "rounded.pth"), "--image_size", 128, "--interpolation_scale", 1, to="rounded"),
        convert(save(mixed, tmp_path / "mixed.pth"), to="mixed"),
        convert(save(dit(), tmp_path / "dit.pth"), to="dit"),
        convert(tmp_path / "training", "--dtype", "float16", to="half", heads=False),
        convert(tmp_path / "half", "--dtype", "bfloat16", to="bfloat16", heads=False),
        convert(parts / "sigma-ms.pth", "--only_transformer=False", "--vae", parts / "vae", to="pipeline"),
    ]
    merge(cli, tmp_path / "merged")
    seen.append(json.loads((tmp_path / "merged" / "conversion.json").read_text()))
    # Trained since.
    weights = tmp_path / "training" / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    seen.append(convert(tmp_path / "training", to="trained", heads=False))
    found = {field for record in seen for field in fields(record)}
    assert compare(documented("conversion.json"), found) == []


def test_the_sidecar(convert: Run, tmp_path: Path) -> None:
    record = convert(save({"state_dict": pixart()}, tmp_path / "a.pth"), to="out")
    with safe_open(tmp_path / "out" / "original_extras.safetensors", "pt") as file:
        kept, metadata = list(file.keys()), file.metadata()
    assert kept == [row["sidecar"] for row in record["plan"] if "sidecar" in row]
    assert not metadata
    text = FORMATS.read_text()
    assert all(f"`{key}`" in text for key in (*kept, "pos_embed"))


@pytest.mark.slow
def test_parity_json(cli: Run, convert: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save({"state_dict": pixart()}, tmp_path / "a.pth")
    convert(source, "--parity", to="out")
    reports = [json.loads((tmp_path / "out" / "parity.json").read_text())]
    reports += [_wrong(cli, source, tmp_path), _of_images(cli, convert, tmp_path)]
    merge(cli, tmp_path / "merged", "--parity")
    reports.append(json.loads((tmp_path / "merged" / "parity.json").read_text()))
    several = tmp_path / "several.json"
    pairs = ["--orig_ckpt_path", source, "--orig_ckpt_path", source, "--converted_path", tmp_path / "no"]
    cli("pixart", "parity", *pairs, "--converted_path", tmp_path / "none", "--report", several)
    together = json.loads(several.read_text())
    assert compare(documented("Several reports"), {*fields(together | {"reports": [{}]})}) == []
    reports += together["reports"]
    found = {field for report in reports for field in fields(report)}
    # What none of these runs writes, or none on this machine.
    cache = Cache(tmp_path / "cache.json")
    cache.put("key", Report(PASS, ""))
    kept = cache.get("key")
    assert kept
    found |= {*fields(kept.run, ("run",))}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    found |= {*fields(environment("cuda", ["float64"]), ("environment",))}
    found |= {*fields(_below_float64(), ("phases", "[]", "detail", "localisation", "stages"))}
    found |= {*fields(_sampled(), ("phases", "[]", "detail"))}
    assert compare(documented("parity.json"), found) == []


def _of_images(cli: Run, convert: Run, tmp: Path) -> Any:
    """The report of a comparison that draws pictures."""
    parts, report = ROOT / "fixtures" / "pipeline", tmp / "images.json"
    folders = {"vae": "vae-alpha", "text_encoder": "text_encoder-alpha", "tokenizer": "tokenizer"}
    flags = [word for part, folder in folders.items() for word in (f"--{part}", parts / folder)]
    convert(parts / "alpha-fixed.pth", "--only_transformer=False", *flags, to="pipeline")
    pair = ["--orig_ckpt_path", parts / "alpha-fixed.pth", "--converted_path", tmp / "pipeline"]
    done = cli("pixart", "parity", *pair, "--images", "--num_inference_steps", 2, "--report", report)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(report.read_text())


def _wrong(cli: Run, source: Path, tmp: Path) -> Any:
    """The report of a conversion in which queries and keys are exchanged."""
    weights = tmp / "out" / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    for end in ("weight", "bias"):
        one, two = (f"transformer_blocks.0.attn1.to_{name}.{end}" for name in "qk")
        state[one], state[two] = state[two], state[one]
    save_file(state, weights, metadata={"format": "pt"})
    report = tmp / "wrong.json"
    done = cli("pixart", "parity", "--orig_ckpt_path", source, "--converted_path", tmp / "out", "--report", report)
    assert done.returncode == 1, done.stdout + done.stderr
    return json.loads(report.read_text())


def _below_float64() -> Any:
    """A stage that is wrong, with an inside, and one that is missing, in float32."""

    def net(*factors: float) -> Staged:
        def stage(number: int, factor: float) -> Stage:
            def run(values: Any, probe: Any) -> Any:
                probe("half", values["x"] * factor / 2)
                return {"x": values["x"] * factor}

            return Stage(f"block {number}", run)

        return Staged([stage(number, factor) for number, factor in enumerate(factors)])

    case = Case("noise", {"x": noise(1, 4)})
    rows = lockstep(net(2, 3), net(5), case, dtype=torch.float32, exact=net(2, 3))
    return [row.as_dict() for row in rows]


def _sampled() -> Any:
    """A trajectory of a net of one stage."""

    def make(precision: str) -> Staged:
        return Staged([Stage("whole", lambda values, probe: {"output": values["latent"] / 8})])

    case = Case("guided", {"latent": noise(1, 2, 4, 8, 8), "timestep": noise(2, 2)})
    return trajectory.run(make, make, case, 4, sampler=Sampler("guided")).detail
