"""`pixart diff`: exit codes, what is printed, and what is listed first."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, Result, State, diffusers_keyed, folder, pixart, save, start, training

import converter

Cli = Callable[..., Result]
ALPHA, SIGMA = GOLDEN / "alpha-ms.pth", GOLDEN / "sigma-ms.pth"
LINE = re.compile(r"pixart: error: [^\n]+\n")
CONFIG = {"_class_name": "PixArtTransformer2DModel", "sample_size": 16, "interpolation_scale": 1}


@pytest.fixture(scope="module")
def state() -> State:
    return pixart(depth=4, seed=2)


@pytest.fixture(scope="module")
def models(state: State, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model, a rounded one, and one of which two kinds of tensors differ: block 2 more than block 1."""
    place = tmp_path_factory.mktemp("models")
    changed = dict(state)
    for i, scale in ((1, 0.01), (2, 0.1)):
        key = f"blocks.{i}.attn.proj.weight"
        changed[key] = state[key] * (1 + scale)
    changed["t_block.1.bias"] = state["t_block.1.bias"] * 1.05
    return {
        "a": save(state, place / "a.pth"),
        "same": folder(diffusers_keyed(state), place / "same", CONFIG),
        "half": folder({k: t.half() for k, t in diffusers_keyed(state).items()}, place / "half", CONFIG),
        "changed": save(changed, place / "changed.pth"),
        "trained": save(training(state, changed), place / "trained.pth"),
    }


def test_exit_codes(models: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    for code, arguments in (
        (0, ["a", "a"]),
        (0, ["a", "same"]),
        (0, ["trained", "changed"]),
        (1, ["trained", "changed", "--weights_a", "raw"]),
        (0, ["trained", "trained", "--weights-a=ema", "--weights-b=ema"]),
        (1, ["a", "changed"]),
        (1, ["a", "changed", "--rounding_ok"]),
        (1, ["a", "half"]),
        (0, ["a", "half", "--rounding_ok"]),
        (2, ["a", "same", "--weights_a", "ema"]),
        (2, ["a", "same", "--weights_a", "best"]),
        (2, ["a"]),
        (2, ["a", "same", "a"]),
        (3, ["a", str(tmp_path / "absent")]),
        (3, [str(tmp_path), "a"]),
        (3, ["a", str(GOLDEN / "dit.pt")]),
    ):
        words = [models.get(word, word) for word in arguments]
        result = cli("pixart", "diff", *words)
        assert result.returncode == code, arguments
        assert bool(LINE.fullmatch(result.stderr)) == (code > 1)
        assert bool(result.stdout) == (code < 2)
        made = json.loads(cli("pixart", "diff", *words, "--json").stdout)
        assert made["ok"] == (code == 0)
        assert made.get("exit_code", code) == code
        quiet = cli("pixart", "diff", *words, "--quiet")
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (code, "", result.stderr)


def test_a_reader_that_leaves_does_not_make_it_identical(models: dict[str, Path]) -> None:
    for more, other, code in (([], "changed", 1), (["--json"], "changed", 1), ([], "same", 0)):
        arguments = ["diff", models["a"], models[other], *more]
        process = start("pixart", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()  # before anything can have been written
        process.stdout = None
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (code, b"")


def test_help(cli: Cli) -> None:
    result = cli("pixart", "diff", "--help")
    assert result.returncode == 0
    for word in ("--weights_a", "--weights_b", "--rounding_ok", "--all", "--json", "--quiet", "Exit codes:"):
        assert word in result.stdout
    assert "diff" in cli("pixart", "--help").stdout


def test_the_conclusion_comes_first(models: dict[str, Path], cli: Cli) -> None:
    out = cli("pixart", "diff", models["trained"], models["same"]).stdout.splitlines()
    assert re.fullmatch(r"B is the raw weights of A, byte for byte; EMA: relative L2 0\.\d+", out[0])
    assert re.fullmatch(r"A: trained\.pth, \d+ kB, torch archive, \{state_dict, state_dict_ema, .*\}", out[1])
    assert re.fullmatch(
        r"A: raw and EMA weights, pixart, original layout, 0\.\d+ M parameters, 77 tensors \(float32\)", out[2]
    )
    assert re.fullmatch(r"B: same, \d+ kB, folder of safetensors", out[3])
    assert re.fullmatch(
        r"B: raw weights, pixart, diffusers layout, 0\.\d+ M parameters, \d+ tensors \(float32\)", out[4]
    )
    assert out[5:] == [
        "weights: raw of A, raw of B",
        "tensors: 75 identical",
        "only in A: pos_embed (diffusers' layout has no place for it, so it does not count)",
        "only in A: y_embedder.y_embedding (diffusers' layout has no place for it, so it does not count)",
    ]


def test_what_differs_most_comes_first(models: dict[str, Path], cli: Cli) -> None:
    out = cli("pixart", "diff", models["a"], models["changed"]).stdout.splitlines()
    assert re.fullmatch(r"3 of 77 tensors differ, relative L2 0\.\d+ overall", out[0])
    assert out[5:7] == ["tensors: 74 identical, 3 different", "different:"]
    rows = [re.split(r"  +", line.strip()) for line in out[7:]]
    assert [name for name, _ in rows] == ["blocks.{1..2}.attn.proj.weight", "t_block.1.bias"]
    assert re.fullmatch(r"relative L2 up to 0\.091, max abs 0\.0\d+, 1152 of 1152 elements", rows[0][1])
    assert rows[1][1].startswith("relative L2 0.048, max abs ")
    whole = cli("pixart", "diff", models["a"], models["changed"], "--all").stdout.splitlines()
    names = [line.split()[0] for line in whole[7:]]
    assert names == ["blocks.2.attn.proj.weight", "t_block.1.bias", "blocks.1.attn.proj.weight"]


def test_many_lines_are_cut_unless_all_are_asked_for(models: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    b = save(pixart(depth=4, seed=3), tmp_path / "b.pth")
    few = cli("pixart", "diff", models["a"], b).stdout.splitlines()
    at = few.index("different:")
    assert few[at + 13] == "  and 17 more lines: --all"
    assert len(few) == at + 14
    every = cli("pixart", "diff", models["a"], b, "--all").stdout.splitlines()
    assert len(every) == at + 1 + 76  # all but `pos_embed`
    listed = [float(found[1]) for line in every if (found := re.search(r"relative L2 ([\d.]+), ", line))]
    assert len(listed) == 76
    assert listed == sorted(listed, reverse=True)


def test_every_kind_has_its_section(state: State, tmp_path: Path, cli: Cli) -> None:
    a = {k: t for k, t in state.items() if k != "final_layer.linear.bias"} | {"spare": torch.ones(2)}
    b = {key: tensor.half() for key, tensor in state.items()}
    b["x_embedder.proj.bias"] = torch.zeros(3)
    b["t_block.1.bias"] = b["t_block.1.bias"] + 1
    b["t_block.1.bias"][0] = float("nan")
    a["blocks.3.mlp.fc2.bias"] = state["blocks.3.mlp.fc2.bias"].half().float()
    result = cli("pixart", "diff", save(a, tmp_path / "a.pth"), save(b, tmp_path / "b.pth"))
    assert result.returncode == 1
    out = result.stdout
    assert re.search(r"\n  t_block\.1\.bias +relative L2 [\d.]+, .*, 1 not finite in B\n", out)
    assert "\nother shape:\n  x_embedder.proj.bias  [24] in A, [3] in B\n" in out
    assert "\nonly in A:\n  spare\n" in out
    assert "\nonly in B:\n  final_layer.linear.bias\n" in out
    assert "\nB is A rounded to float16:\n  " in out
    assert "\nsame numbers:\n  blocks.3.mlp.fc2.bias  float32 in A, float16 in B\n" in out
    assert out.splitlines()[0].endswith("; elements that are not finite: 1 in B")


def test_hyper_parameters_are_shown_with_their_evidence(
    state: State, models: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    b = folder(diffusers_keyed(state), tmp_path / "b", CONFIG | {"interpolation_scale": 2})
    result = cli("pixart", "diff", models["a"], b)
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("interpolation_scale: ")]
    assert line.startswith("interpolation_scale: 1.0 in A (pos_embed [1, 64, 24] has 8 x 8 positions")
    assert line.endswith("; 2 in B (config.json)")


def test_json_is_one_object(models: dict[str, Path], cli: Cli) -> None:
    result = cli("pixart", "diff", models["a"], models["changed"], "--json")
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.count("\n") == 1
    made = json.loads(result.stdout)
    assert made == {"ok": False} | converter.diff(models["a"], models["changed"]).as_dict()


EVIL = "\x1b]0;owned\x07\x1b[31m\u202e"


def test_control_characters_never_reach_the_terminal(tmp_path: Path, state: State, cli: Cli) -> None:
    a = tmp_path / f"a{EVIL}.pth"
    save(state, tmp_path / "m.pth").rename(a)
    config = CONFIG | {f"evil{EVIL}": EVIL}
    one = folder(diffusers_keyed(state), tmp_path / f"one{EVIL}", config)
    two = folder(diffusers_keyed(state), tmp_path / "two", config | {f"evil{EVIL}": EVIL + "!"})
    keyed = save(state | {f"blocks{EVIL}": torch.ones(2)}, tmp_path / "keyed.pth")
    for code, pair in ((0, (a, one)), (1, (one, two)), (3, (a, keyed)), (3, (a, EVIL))):
        for more in ([], ["--json"], ["--all"]):
            result = cli("pixart", "diff", *pair, *more)
            assert result.returncode == code, result
            assert all(c.isprintable() or c == "\n" for c in result.stdout + result.stderr), result
