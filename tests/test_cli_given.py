"""Hyper-parameters of a family by others on the command line: `--given NAME=VALUE`, or options of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import ROOT, Result

Cli = Callable[..., Result]
FAMILY = """
import converter


def describe(plan, state, found):
    found.file("hidden_size", plan.dims["D"], plan.evidence["D"])
    for name, default in (("num_heads", 8), ("rate", 0.5), ("causal", False), ("kind", "plain")):
        found.given_or_assumed(name, default, "as ever")


def config(found):
    return {"_class_name": "Toy", **{name: found.value(name) for name in ("num_heads", "rate", "causal", "kind")}}


FAMILY = converter.Family(
    name="toy",
    title="Toy",
    keys=converter.KeyMapping({"stem [D 4]": "embed", "layers.{}.mix [D D]": "blocks.{}.mix"}),
    describe=describe,
    config=config,
    flags={"num_heads": int, "rate": float, "causal": bool, "kind": str},
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and the family that it is of."""
    from converter import families

    monkeypatch.setattr(families, "_REGISTERED", {})
    (tmp_path / "toyfamily.py").write_text(FAMILY)
    sizes = {"stem.weight": (6, 4), "stem.bias": (6,), "layers.0.mix.weight": (6, 6), "layers.0.mix.bias": (6,)}
    torch.save({key: torch.randn(size) for key, size in sizes.items()}, tmp_path / "toy.pth")
    return tmp_path


def convert(cli: Cli, toy: Path, *words: str) -> Result:
    call = ["--orig_ckpt_path", toy / "toy.pth", "--dump_path", toy / "out", "--family", toy / "toyfamily.py"]
    return cli("convert-pixart", *call, "--overwrite", *(part for word in words for part in ("--given", word)))


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("num_heads=4", "num_heads", 4), ("num-heads=4", "num_heads", 4), ("rate=0.25", "rate", 0.25),
        ("rate=1", "rate", 1.0), ("causal=true", "causal", True), ("causal=False", "causal", False),
        ("kind=a=b", "kind", "a=b"), ("kind=[1]", "kind", "[1]"), ("kind=", "kind", ""), ("kind=NaN", "kind", "NaN"),
    ],
)  # fmt: skip
def test_what_is_given_is_in_the_config(word: str, name: str, value: object, toy: Path, cli: Cli) -> None:
    done = convert(cli, toy, word)
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads((toy / "out/transformer/config.json").read_text())
    assert (config[name], type(config[name])) == (value, type(value))


def test_the_record_tells_what_was_given(toy: Path, cli: Cli) -> None:
    """To whoever reads the folder; another word has to be the same."""
    assert convert(cli, toy, "num_heads=2").returncode == 0
    family, back = ["--family", toy / "toyfamily.py"], ["--converted_path", toy / "out", "--dump_path", toy / "b.pth"]
    assert "convertible: yes" in cli("pixart", "inspect", toy / "out", *family).stdout
    assert cli("pixart", "revert", *back, *family).returncode == 0
    compare = ["parity", "--orig_ckpt_path", toy / "toy.pth", "--converted_path", toy / "out", *family]
    compared = cli("pixart", *compare)
    assert (compared.returncode, "brings no reference net" in compared.stdout) == (4, True)
    for command in (compare, ["revert", *back, *family, "--overwrite"]):
        other = cli("pixart", *command, "--given", "num_heads=3")
        assert other.returncode in (1, 3)
        assert "heads" in other.stdout + other.stderr
    for name in ("original", "converted", "base", "progress", "profile"):
        done = cli("pixart", *compare, "--given", f"{name}=1")
        assert (done.returncode, done.stdout) == (2, "")
        rule = "--given profile: use --profile" if name == "profile" else f"{name}: not a hyper-parameter of the family"
        assert done.stderr.startswith(f"pixart: error: {rule}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["num_heads"], "num_heads is not of the form NAME=VALUE"),
        (["=4"], "=4 is not of the form NAME=VALUE"),
        (["Num Heads=4"], "Num Heads=4 is not of the form NAME=VALUE"),
        (["num_heads=4", "num-heads=5"], "num_heads is given twice"),
        (["num_heads=four"], "'--given': num_heads: 'four' is not a valid integer"),
        (["num_heads=true"], "'--given': num_heads: 'true' is not a valid integer"),
        (["rate=1e999"], "--rate inf: not a finite number"),
        (
            ["heads=4"],
            "error: heads: not a hyper-parameter of the family toy, which has num_heads, rate, causal, kind",
        ),
        (["dtype=float16"], "--given dtype: use --dtype"),
        (["image_size=512"], "--given image_size: use --image_size"),
        (["progress=1"], "error: progress: not a hyper-parameter of the family toy"),
    ],
    ids=str,
)
def test_what_is_misspelt_is_one_line(words: list[str], said: str, toy: Path, cli: Cli) -> None:
    done = convert(cli, toy, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (toy / "out").exists()


@pytest.fixture
def package(toy: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`pixart` in a process of its own, where a package has brought the family."""
    (toy / "toy-1.0.dist-info").mkdir()
    (toy / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (toy / "toy-1.0.dist-info" / "entry_points.txt").write_text("[converter.families]\ntoy = toyfamily:FAMILY\n")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{toy}"}

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "converter", *map(str, words)]
        return subprocess.run(command, cwd=toy, env=environment, capture_output=True, text=True, timeout=120)

    return call


def test_a_family_of_a_package_has_options_of_its_own(
    toy: Path, package: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    call = ["convert", "--orig_ckpt_path", "toy.pth", "--dump_path", "out"]
    done = package(*call, "--num-heads=2", "--causal", "--kind", "odd")
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads((toy / "out/transformer/config.json").read_text())
    assert (config["num_heads"], config["causal"], config["kind"], config["rate"]) == (2, True, "odd", 0.5)
    assert package("parity", "--help").stdout.count("--num_heads N") == 1
    wrong = package(*call, "--overwrite", "--num_heads=two")
    assert (wrong.returncode, "--num_heads" in wrong.stderr) == (2, True)
    assert (
        "error: image_size: not a hyper-parameter of the family toy"
        in package(*call, "--overwrite", "--image_size=512").stderr
    )
    assert "No such option '--num_head'" in package(*call, "--num_head=2").stderr.replace('"', "'")
