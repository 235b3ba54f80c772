"""What a command reads and writes, by position or by name, and what is said of a target that is there already."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, Result, convert, folder, pixart, save, tree
from safetensors.torch import load_file

Cli = Callable[..., Result]
SIGMA = GOLDEN / "sigma-ms.pth"
GIVEN = ("--num_attention_heads", HEADS)


def test_file_and_out(tmp_path: Path, cli: Cli) -> None:
    """The same result as by name, there and back."""
    done = cli("convert-pixart", SIGMA, tmp_path / "a", *GIVEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert cli("convert-pixart", "--orig_ckpt_path", SIGMA, "--dump_path", tmp_path / "b", *GIVEN).returncode == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert cli("pixart", "revert", tmp_path / "a", tmp_path / "back.pth").returncode == 0
    back, state = torch.load(tmp_path / "back.pth")["state_dict"], torch.load(SIGMA)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_several_files(tmp_path: Path, cli: Cli) -> None:
    files = [save(pixart(seed=seed), tmp_path / f"{seed}.pth") for seed in (1, 2, 3)]
    done = cli("convert-pixart", *files, tmp_path / "out" / "{stem}", *GIVEN)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "summary: 3 converted, 0 unchanged, 0 failed")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1", "2", "3"]


def test_a_watched_folder_needs_out_only(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "runs").mkdir()
    save(pixart(), tmp_path / "runs" / "a.pth")
    done = cli(
        "convert-pixart",
        "--watch",
        tmp_path / "runs",
        tmp_path / "{stem}",
        "--watch_idle=0",
        "--watch_settle=0",
        *GIVEN,
    )
    assert (done.returncode, (tmp_path / "a" / "conversion.json").exists()) == (0, True)


def test_reports_show_the_paths_by_name(tmp_path: Path, cli: Cli) -> None:
    convert(SIGMA, tmp_path / "out")
    done = cli("pixart", "parity", "--report", tmp_path / "r.json", SIGMA, tmp_path / "out", "--json")
    assert done.returncode == 0
    report = json.loads((tmp_path / "r.json").read_text())
    words = ["pixart", "parity", "--report", tmp_path / "r.json", "--json"]
    words += ["--orig_ckpt_path", SIGMA, "--converted_path", tmp_path / "out"]
    assert report["run"]["command"] == shlex.join(map(str, words))


def test_a_command_in_a_report_is_one_that_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """Also where a path is a word of the command, or looks like an option."""
    monkeypatch.chdir(tmp_path)
    for original, converted, dashes in (("pixart", "parity", []), ("-dash.pth", "-outd", ["--"]), ("json", "4", [])):
        shutil.copy(SIGMA, original)
        convert(Path(original), Path(converted))
        typed = ["pixart", "parity", "--report", "r.json", *map(str, GIVEN), *dashes, original, converted]
        assert cli(*typed).returncode == 0
        command = json.loads(Path("r.json").read_text())["run"]["command"]
        Path("r.json").unlink()
        assert cli(*shlex.split(command)).returncode == 0
        assert json.loads(Path("r.json").read_text())["run"]["command"] == command


EMPTY = [
    (["convert", "", "out"], "FILE is empty"),
    (["convert", "a.pth", "", "out"], "FILE is empty"),
    (["convert", "a.pth", ""], "OUT is empty"),
    (["convert", "--orig_ckpt_path", "", "--dump_path=out"], "--orig_ckpt_path is empty"),
    (["convert", "--orig_ckpt_path=a.pth", "--dump_path="], "--dump_path is empty"),
    (["revert", "", "a.pth"], "FOLDER is empty"),
    (["parity", "a.pth", ""], "CONVERTED is empty"),
    (["init-from-dit", "", "a.pth"], "FILE is empty"),
    (["inspect", ""], "PATH is empty"),
    (["diff", "a.pth", ""], "B is empty"),
    (["doctor", ""], "PATH is empty"),
    (["report", ""], "DIR is empty"),
    (["new-family", "kite", ""], "FILE is empty"),
]


@pytest.mark.parametrize(("words", "said"), EMPTY, ids=str)
def test_an_empty_path_is_named(words: list[str], said: str, cli: Cli) -> None:
    done = cli("pixart", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"pixart: error: {said} (a variable of the shell that is not set?)\n"


def test_a_dit_by_position(tmp_path: Path, cli: Cli) -> None:
    done = cli("pixart", "init-from-dit", GOLDEN / "dit.pt", tmp_path / "init.pth", *GIVEN)
    assert (done.returncode, (tmp_path / "init.pth").exists()) == (0, True)


WRONG = {
    "convert": [
        (["a.pth"], "give FILE... OUT, or --orig_ckpt_path and --dump_path; got a.pth"),
        (["a.pth", "out", "--dump_path=o"], "got a.pth, out, --dump_path"),
        (["a.pth", "--dump_path=o"], "got a.pth, --dump_path"),
        (["--orig_ckpt_path=a.pth"], "got --orig_ckpt_path"),
        (["a", "b", "--watch=c"], "give either --orig_ckpt_path or --watch; got both"),
        (["--watch=c"], "--watch needs OUT, or --dump_path"),
        (["--dump_path=o"], "give either --orig_ckpt_path or --watch; got neither"),
    ],
    "init-from-dit": [([], "give FILE OUT, or --orig_ckpt_path and --dump_path; got neither")],
    "revert": [
        ([], "give FOLDER FILE, or --converted_path and --dump_path; got neither"),
        (["out"], "got out"),
        (["out", "a.pth", "b.pth"], "got out, a.pth, b.pth"),
        (["out", "a.pth", "--converted_path=c"], "got out, a.pth, --converted_path"),
        (["--dump_path=a.pth"], "got --dump_path"),
    ],
    "parity": [
        (["a.pth"], "give ORIGINAL CONVERTED, or --orig_ckpt_path and --converted_path; got a.pth"),
        (["a.pth", "b.pth", "out"], "got a.pth, b.pth, out; put a glob in quotes"),
        (["a.pth", "out", "--converted_path=o"], "got a.pth, out, --converted_path"),
    ],
}


@pytest.mark.parametrize(
    ("command", "words", "said"), [(name, *case) for name, cases in WRONG.items() for case in cases], ids=str
)
def test_a_side_that_is_missing_or_said_twice(command: str, words: list[str], said: str, cli: Cli) -> None:
    done = cli("pixart", command, *words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


def test_sides_that_were_swapped(tmp_path: Path, cli: Cli) -> None:
    convert(SIGMA, tmp_path / "out")
    path = save(pixart(), tmp_path / "a.pth")
    for command, words in (("convert", (tmp_path / "out", path)), ("revert", (path, tmp_path / "out"))):
        done = cli("pixart", command, *words)
        assert (done.returncode, "were the source and the target swapped?" in done.stderr) == (2, True)
    done = cli("pixart", "parity", tmp_path / "out", path)
    assert (done.returncode, "were the two sides swapped?" in done.stderr) == (3, True)


def test_an_original_has_nothing_to_revert(tmp_path: Path, cli: Cli) -> None:
    done = cli("pixart", "revert", SIGMA, tmp_path / "copy.pth", *GIVEN)
    assert done.returncode == 0
    assert "note: the source is in the original layout already: there was nothing to revert" in done.stdout
    assert cli("convert-pixart", SIGMA, tmp_path / "out", *GIVEN).returncode == 0
    assert "nothing to revert" not in cli("pixart", "revert", tmp_path / "out", tmp_path / "b.pth").stdout


def test_a_source_that_is_missing_is_told_before_a_target_that_exists(tmp_path: Path, cli: Cli) -> None:
    convert(SIGMA, tmp_path / "out")
    done = cli("convert-pixart", tmp_path / "none.pth", tmp_path / "out")
    assert (done.returncode, f"{tmp_path / 'none.pth'}: No such file or directory" in done.stderr) == (3, True)


@pytest.mark.parametrize("target", ["out", "back.pth"])
def test_a_dry_run_tells_that_the_target_exists(target: str, tmp_path: Path, cli: Cli) -> None:
    convert(SIGMA, tmp_path / "out")
    cli("pixart", "revert", tmp_path / "out", tmp_path / "back.pth")
    source = ["convert", SIGMA] if target == "out" else ["revert", tmp_path / "out"]
    call, before = ["pixart", *source, tmp_path / target, *GIVEN], tree(tmp_path)
    assert cli(*call).returncode == 2
    for more, said in (
        ([], f"note: {tmp_path / target} exists: a conversion needs --overwrite, which replaces it"),
        (["--overwrite"], f"note: {tmp_path / target} exists: it would be replaced"),
    ):
        done = cli(*call, "--dry_run", *more)
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout.splitlines()
        notes = json.loads(cli(*call, "--dry_run", *more, "--json").stdout)["notes"]
        assert said.removeprefix("note: ") in notes
    assert tree(tmp_path) == before
    assert "exists" not in cli(*call[:-3], tmp_path / f"other-{target}", *GIVEN, "--dry_run").stdout


def test_the_numbers_of_tensors_add_up(tmp_path: Path, cli: Cli) -> None:
    """Those of the file are those in the model, in the sidecar and left out, and the same come back."""
    done = cli("convert-pixart", SIGMA, tmp_path / "out", *GIVEN)
    assert ", 62 tensors (float32)\n" in done.stdout
    where = "60 in the model, 1 in original_extras.safetensors, 1 left to diffusers to compute"
    assert done.stdout.endswith(f" s, read back and verified: {where}\n")
    assert done.stdout.splitlines()[-1].startswith("done: 62 tensors in ")
    compared = cli("pixart", "parity", SIGMA, tmp_path / "out")
    assert compared.returncode == 0
    assert "all 62 tensors of the original accounted for: 60 in the model" in compared.stdout
    back = cli("pixart", "revert", tmp_path / "out", tmp_path / "back.pth").stdout
    count = len(torch.load(SIGMA))
    assert back.splitlines()[-1].startswith(f"done: {count} tensors in ")
    there = len(load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors"))
    assert f", {there} tensors (float32)\n" in back
    assert back.endswith(f" read back and verified: 61 from the {there + 1} that were read, 1 computed\n")


def test_tensors_of_two_types_are_counted_by_type(tmp_path: Path, cli: Cli) -> None:
    state = pixart()
    state["final_layer.linear.bias"] = state["final_layer.linear.bias"].half()
    done = cli("pixart", "inspect", save(state, tmp_path / "a.pth"), *GIVEN)
    assert f", {len(state)} tensors (1 float16, {len(state) - 1} float32)\n" in done.stdout


def test_a_name_that_is_empty_is_shown(tmp_path: Path, cli: Cli) -> None:
    torch.save({"state_dict": pixart(), "": {"x": 3}}, tmp_path / "a.pth")
    shown = cli("pixart", "inspect", tmp_path / "a.pth", *GIVEN).stdout
    assert "torch archive, {state_dict, ''}" in shown
    assert "other entries: '': a dict of 1 item\n" in shown


def test_a_folder_of_one_tensor_is_counted_as_one(tmp_path: Path, cli: Cli) -> None:
    made = folder({"conv.weight": torch.ones(2)}, tmp_path / "one", {})
    assert ", 1 tensor (float32)\n" in cli("pixart", "inspect", made).stdout
