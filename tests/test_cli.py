"""The command line: flags, exit codes, what is printed where, and never more than one line of error."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import (
    CONTAINERS,
    GOLDEN,
    HEADS,
    Result,
    convert,
    diffusers_keyed,
    imported,
    launch,
    pixart,
    save,
    start,
    terminal,
    tree,
)
from safetensors.torch import load_file

import converter
from converter.errors import human_bytes

Cli = Callable[..., Result]
SIGMA = GOLDEN / "sigma-ms.pth"
LINE = re.compile(r"(pixart|convert-pixart): error: [^\n]+\n")


def flags(source: object, out: object, *more: object) -> list[object]:
    return ["--orig_ckpt_path", source, "--dump_path", out, "--num_attention_heads", HEADS, *more]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return tree(convert(SIGMA, tmp_path_factory.mktemp("r") / "out").path)


# The same command, in both processes and under both names.


def test_the_command_converts(tmp_path: Path, reference: dict[str, bytes]) -> None:
    result = launch("convert-pixart", *flags(SIGMA, tmp_path / "out"))
    assert (result.returncode, result.stderr) == (0, "")
    assert tree(tmp_path / "out") == reference
    lines = result.stdout.splitlines()
    assert lines[0] == "source: sigma-ms.pth, 813 kB, torch archive, bare state dict"
    assert lines[-1].startswith("done: 62 tensors in ")
    for name in ("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"):
        assert f"wrote: {tmp_path / 'out' / name} (" in result.stdout
    assert all(re.match(r"[a-z ]+: \S", line) for line in lines)  # `name: value`, for a script to cut


def test_python_m_converter_is_pixart(tmp_path: Path) -> None:
    import sys

    from makers import ROOT

    command = [sys.executable, "-m", "converter", "inspect", str(SIGMA)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == launch("pixart", "inspect", SIGMA).stdout


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    result = launch("convert-pixart", *flags(SIGMA, tmp_path / "out"), preexec_fn=lambda: os.umask(0o027) and None)
    assert result.returncode == 0
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "out").rglob("*") if p.is_file()}
    folders = {p.stat().st_mode & 0o777 for p in (tmp_path / "out", tmp_path / "out/transformer")}
    assert (modes, folders) == ({0o640}, {0o750})


# Flags.

SPELLINGS = {
    "hyphens": "--orig-ckpt-path={s} --dump-path={o} --num-attention-heads=4",
    "hyphens, two words": "--orig-ckpt-path {s} --dump-path {o} --num-attention-heads 4",
    "mixed": "--orig_ckpt-path {s} --dump_path={o} --num-attention_heads 4",
    "the existing scripts' command line": (
        "--image_size=512 --multi_scale_train=True --version=sigma --orig_ckpt_path={s} --dump_path={o} "
        "--only_transformer=True --num_attention_heads=4"
    ),
    "booleans that are false": (
        "--orig_ckpt_path={s} --dump_path={o} --num_attention_heads=4 --qk_norm=False --kv-compress=no "
        "--micro_condition=0 --only-transformer=yes"
    ),
    "a boolean before another flag": (
        "--multi_scale_train --orig_ckpt_path={s} --dump_path={o} --num_attention_heads=4"
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str, tmp_path: Path, reference: dict[str, bytes], cli: Cli) -> None:
    result = cli("convert-pixart", *SPELLINGS[name].format(s=SIGMA, o=tmp_path / "a-b_c").split())
    assert (result.returncode, result.stderr) == (0, "")
    made = tree(tmp_path / "a-b_c")
    assert {k: v for k, v in made.items() if k != "conversion.json"} == {
        k: v for k, v in reference.items() if k != "conversion.json"
    }


@pytest.mark.parametrize(("flag", "value"), [("True", True), ("False", False), ("", True), ("no", False), ("1", True)])
def test_real_booleans(flag: str, value: bool, tmp_path: Path, cli: Cli) -> None:
    """`--micro_condition=False` means false: a file without micro-conditions agrees, and one with them does not."""
    spelt = f"--micro_condition={flag}" if flag else "--micro_condition"
    for name, there in (("sigma-ms.pth", False), ("alpha-ms.pth", True)):
        out = tmp_path / Path(name).stem
        result = cli("convert-pixart", *flags(GOLDEN / name, out, spelt))
        assert result.returncode == (0 if there == value else 2)
        if there != value:
            assert f"--micro_condition {value} contradicts the file, which says {there}" in result.stderr
            assert not out.exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("convert-pixart", "--help"), ("--orig_ckpt_path", "--dump_path", "--allow_nonfinite", "Exit codes:")),
        (("pixart", "--help"), ("convert Convert", "inspect Say")),
        (("pixart", "convert", "--help"), ("--orig_ckpt_path", "--weights")),
        (("pixart", "inspect", "--help"), ("PATH", "--json", "Exit codes:")),
        (("pixart", "--version"), (converter.__version__,)),
    ],
    ids=" ".join,
)
def test_help_is_complete_and_imports_nothing_heavy(command: tuple[str, ...], words: tuple[str, ...]) -> None:
    code, printed, modules, _ = imported(*command)
    assert (code, modules) == (0, set())
    assert all(word in " ".join(printed.split()) for word in words)


def test_every_flag_has_a_help_text() -> None:
    from converter.cli.main import convert, inspect

    for command in (convert, inspect):
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), parameter.name


def test_converting_and_inspecting_import_neither_torch_nor_diffusers(tmp_path: Path) -> None:
    code, _, modules, _ = imported("convert-pixart", *flags(SIGMA, tmp_path / "out"))
    assert code == 0
    assert not modules & {"torch", "diffusers", "safetensors", "transformers", "tqdm"}
    code, _, modules, _ = imported("pixart", "inspect", SIGMA)
    assert (code, modules) == (0, set())


# Bad input: one line on standard error, the right exit code, nothing written.


INPUTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "No such file or directory"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "an empty folder": (Path.mkdir, "holds no weights"),
    "a FIFO": (os.mkfifo, "not a regular file but a FIFO"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html><html>404"), "HTML"),
    "zeros": (lambda path: path.write_bytes(bytes(100)), "zeros"),
    "truncated": (lambda path: path.write_bytes(SIGMA.read_bytes()[:-1000]), "truncated"),
    "a list": (lambda path: save([1, 2], path), "not a dict of tensors"),
    "a legacy file": (
        lambda path: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
        "legacy torch file",
    ),
    "no PixArt": (lambda path: save({"conv.weight": torch.ones(2)}, path), "no model family"),
}
PLACES = {
    "a device": (Path("/dev/null"), "not a regular file but a device"),
    "a name beyond all bounds": (Path("x" * 300), "File name too long"),
}


@pytest.mark.parametrize("name", [*INPUTS, *PLACES])
def test_bad_input(name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, words = PLACES.get(name, (tmp_path / "made.pth", ""))
    if name in INPUTS:
        make, words = INPUTS[name]
        make(path)
    before = sorted(tmp_path.iterdir())
    result = cli("convert-pixart", *flags(path, tmp_path / "out"))
    assert (result.returncode, result.stdout) == (3, "")
    assert LINE.fullmatch(result.stderr), result.stderr
    assert words in result.stderr
    assert str(path)[:60] in result.stderr
    assert name not in ("missing", "an empty folder", "a FIFO") or f"error: {path}: {words}" in result.stderr
    inspected = cli("pixart", "inspect", path, "--json")
    made = json.loads(inspected.stdout)
    if name == "no PixArt":  # a sound file: described, with its problem
        assert (inspected.returncode, made["problems"][0].partition(" knows")[0]) == (0, words)
        assert cli("pixart", "inspect", path).stdout.endswith("convertible: no\n")
    else:
        error = result.stderr.removeprefix("convert-pixart: error: ").rstrip("\n")
        assert made == {"ok": False, "exit_code": 3, "error": error}
        assert (inspected.returncode, inspected.stderr) == (3, f"pixart: error: {error}\n")
    assert sorted(tmp_path.iterdir()) == before


USAGES: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "give FILE... OUT, or --orig_ckpt_path and --dump_path; got neither"),
    "no checkpoint": (["--dump_path={o}"], "give either --orig_ckpt_path or --watch; got neither"),
    "an unknown flag": (["--frobnicate"], "No such option"),
    "a misspelt flag": (["--orig_ckpt_pth={s}"], "--orig_ckpt_path"),
    "an argument too many": (["{base}", "extra"], "extra"),
    "no number": (["{base}", "--image_size=big"], "--image_size"),
    "too small": (["{base}", "--image_size=7"], "--image_size"),
    "private, and published nowhere": (["{base}", "--private"], "--private requires --push_to_hub"),
    "an idle watch of nothing": (["{base}", "--watch_idle=3"], "--watch_idle requires --watch"),
    "no heads": (["{base}", "--num_attention_heads=0"], "--num_attention_heads"),
    "heads missing": (["--orig_ckpt_path={s}", "--dump_path={o}"], "--num_attention_heads is needed"),
    "no such version": (["{base}", "--version=beta"], "--version"),
    "no such weights": (["{base}", "--weights=best"], "--weights"),
    "neither true nor false": (["{base}", "--only_transformer=perhaps"], "--only_transformer"),
    "a boolean that is none": (["{base}", "--qk_norm=maybe"], "--qk_norm"),
    "a pipeline without a VAE": (["{base}", "--only_transformer=False"], "--vae is needed for a whole pipeline"),
    "a VAE of no pipeline": (["{base}", "--vae={s}"], "--vae requires --only_transformer false"),
    "a text encoder alone": (
        ["{base}", "--only_transformer=0", "--vae=v", "--text_encoder=t"],
        "--text_encoder requires --tokenizer",
    ),
    "a pipeline in one file": (
        ["{base}", "--dump_path={o}.pth", "--to=original", "--only_transformer=0", "--vae=v"],
        "and no pipeline",
    ),
    "a published link": (
        ["{base}", "--push_to_hub=a/b", "--only_transformer=0", "--vae=v"],
        "--push_to_hub publishes no links",
    ),
    "scale 0": (["{base}", "--interpolation_scale=0"], "positive number"),
    "scale nan": (["{base}", "--interpolation_scale=nan"], "finite number"),
    "scale inf": (["{base}", "--interpolation_scale=inf"], "finite number"),
    "a contradicting size": (["{base}", "--image_size=1024"], "--image_size 1024 contradicts the file, which says 512"),
    "no such family": (["{base}", "--family=unet"], "--family unet: unknown; there are dit, pixart, pixart-controlnet"),
    "target is a file": (["--orig_ckpt_path={s}", "--dump_path={file}"], "not a folder"),
    "target is a link to nowhere": (["--orig_ckpt_path={s}", "--dump_path={dangling}"], "dangling"),
    "target is full": (["--orig_ckpt_path={s}", "--dump_path={full}"], "has no record of, mine.pth"),
    "target holds other things": (["--orig_ckpt_path={s}", "--dump_path={full}", "--overwrite"], "has no record"),
    "target is the input": (["{base}", "--dump_path={s}", "--to=original", "--overwrite"], "is the input"),
    "a file for a folder": (["--orig_ckpt_path={s}", "--dump_path={o}.pth"], "--to diffusers writes a folder"),
    "no size": (["{base}", "--max_shard_size=much"], "--max_shard_size much: give a size such as 5GB"),
    "a null caption of a file that has one": (["{base}", "--null_caption={s}"], "the checkpoint has its own"),
    "nothing to prove": (["{base}", "--parity", "--dry_run"], "--parity cannot be combined with --dry_run"),
    "a file to prove": (
        ["--orig_ckpt_path={s}", "--dump_path={o}.pth", "--to=original", "--parity"],
        "--parity requires a diffusers folder, not --to original",
    ),
    "a checkpoint and a job": (["{base}", "--watch={full}"], "got both"),
    "one target of several": (
        ["--orig_ckpt_path={s}", "--orig_ckpt_path={full}/mine.pth", "--dump_path={o}"],
        "have the same target",
    ),
    "a job without names": (["--watch={full}", "--dump_path={o}"], "must tell checkpoints apart"),
    "a job in no folder": (["--watch={file}", "--dump_path={o}/{{stem}}"], "not a folder"),
    "target holds the input": (
        ["--orig_ckpt_path={full}/mine.pth", "--dump_path={full}", "--overwrite"],
        "holds the input",
    ),
    "target below a file": (["--orig_ckpt_path={s}", "--dump_path={file}/out"], "not a folder"),
    "target cannot be written": (["{base}", "--dump_path=/proc/none/out"], "/proc"),
    "target is the current folder": (["--orig_ckpt_path={s}", "--dump_path=."], "current folder"),
}


@pytest.mark.parametrize("name", USAGES)
def test_bad_usage(name: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words, message = USAGES[name]
    places = {name: tmp_path / name for name in ("file", "dangling", "full")} | {"s": SIGMA, "o": tmp_path / "out"}
    places["file"].write_text("mine")
    places["dangling"].symlink_to("nowhere")
    places["full"].mkdir()
    (places["full"] / "mine.pth").write_bytes(SIGMA.read_bytes())
    before = tree(tmp_path)
    base = flags(SIGMA, tmp_path / "out")
    arguments = [part for word in words for part in (base if word == "{base}" else [word.format(**places)])]
    result = cli("convert-pixart", *arguments, "--json")
    assert result.returncode == 2
    assert LINE.fullmatch(result.stderr), result.stderr
    assert message in result.stderr
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file", "full"]
    error = result.stderr.removeprefix("convert-pixart: error: ").rstrip("\n")
    assert json.loads(result.stdout) == {"ok": False, "exit_code": 2, "error": error}


@pytest.mark.parametrize("arguments", [(), ("frobnicate",), ("inspect",), ("inspect", "a", "b"), ("--frob",)])
def test_bad_usage_of_the_group(arguments: tuple[str, ...], cli: Cli) -> None:
    result = cli("pixart", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert LINE.fullmatch(result.stderr), result.stderr
    assert "--help" in result.stderr  # says where to go on


def test_a_fault_of_ours_is_one_line_too(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines \x1b[31mred")

    monkeypatch.setattr("converter.conversion.convert.convert", broken)
    result = cli("convert-pixart", *flags(SIGMA, tmp_path / "out"))
    assert result.returncode == 5
    assert LINE.fullmatch(result.stderr)
    assert "internal error: RuntimeError" in result.stderr
    assert "\x1b" not in result.stderr
    monkeypatch.setenv("PIXART_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli("convert-pixart", *flags(SIGMA, tmp_path / "out"))


def test_json_is_one_object_with_the_record(tmp_path: Path) -> None:
    result = launch("convert-pixart", *flags(SIGMA, tmp_path / "out", "--json"))
    assert (result.returncode, result.stderr) == (0, "")
    made = json.loads(result.stdout)
    assert set(made) == {"ok", "path", "written", "record", "notes"}
    assert (made["ok"], made["written"], made["path"]) == (True, True, str(tmp_path / "out"))
    assert made["record"] == json.loads((tmp_path / "out" / "conversion.json").read_text())


def test_quiet_is_silent_and_errors_are_not(tmp_path: Path, reference: dict[str, bytes]) -> None:
    result = launch("convert-pixart", *flags(SIGMA, tmp_path / "out", "--quiet"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert tree(tmp_path / "out") == reference
    result = launch("convert-pixart", *flags(SIGMA, tmp_path / "out", "--quiet"))
    assert (result.returncode, result.stdout) == (2, "")
    assert LINE.fullmatch(result.stderr)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_a_dry_run_tells_all_and_writes_nothing(as_json: bool, tmp_path: Path, cli: Cli) -> None:
    more = ["--dry_run"] + (["--json"] if as_json else [])
    result = cli("convert-pixart", *flags(SIGMA, tmp_path / "deep" / "out", *more))
    assert (result.returncode, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    if as_json:
        made = json.loads(result.stdout)
        assert made["written"] is False
        assert len(made["record"]["plan"]) == 62
        assert made["record"]["hyper_parameters"]["depth"]["value"] == 3
        return
    split = "blocks.{0..2}.attn.qkv.weight [144, 48] -> split: transformer_blocks.{0..2}.attn1.to_q.weight, "
    assert split in result.stdout
    assert "pos_embed [1, 1024, 48] -> recompute" in result.stdout
    assert "y_embedder.y_embedding [20, 32] -> sidecar: y_embedder.y_embedding" in result.stdout
    assert re.search(r"hidden_size +48 +file +x_embedder.proj.weight \[48, 4, 2, 2\]", result.stdout)
    assert "nothing was written" in result.stdout
    assert "wrote:" not in result.stdout


def test_a_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path, cli: Cli) -> None:
    for source, code in ((GOLDEN / "sana-controlnet.pth", 3), (tmp_path / "absent", 3)):
        assert cli("convert-pixart", *flags(source, tmp_path / "out", "--dry_run")).returncode == code
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    assert cli("convert-pixart", *flags(SIGMA, tmp_path / "out", "--dry_run")).returncode == 2


def test_every_file_is_listed(tmp_path: Path, cli: Cli) -> None:
    result = cli("pixart", "convert", *flags(SIGMA, tmp_path / "out"))
    assert (result.returncode, result.stderr) == (0, "")
    listed = re.findall(r"^wrote: (.*) \((.*)\)$", result.stdout, re.M)
    assert {name for name, _ in listed} == {str(p) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert listed[-1][0].endswith("conversion.json")
    assert all(size == human_bytes(Path(name).stat().st_size) for name, size in listed)


def test_overwrite_and_allow_nonfinite(tmp_path: Path, cli: Cli) -> None:
    state = pixart()
    state["final_layer.linear.bias"][3] = float("nan")
    path = save(state, tmp_path / "made.pth")
    result = cli("convert-pixart", *flags(path, tmp_path / "out"))
    assert result.returncode == 3
    assert "1 element is NaN or infinite, in final_layer.linear.bias; --allow_nonfinite" in result.stderr
    assert not (tmp_path / "out").exists()
    result = cli("convert-pixart", *flags(path, tmp_path / "out", "--allow-nonfinite"))
    assert result.returncode == 0
    assert "note: 1 element is NaN or infinite" in result.stdout
    assert torch.isnan(load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")["proj_out.bias"][3])
    assert cli("convert-pixart", *flags(SIGMA, tmp_path / "out", "--overwrite")).returncode == 0
    assert json.loads((tmp_path / "out/transformer/config.json").read_text())["num_layers"] == 3


def test_inspect_names_all_that_a_conversion_may_ask_for(tmp_path: Path, cli: Cli) -> None:
    result = cli("pixart", "inspect", save(diffusers_keyed(pixart()), tmp_path / "made.safetensors"))
    last = result.stdout.splitlines()[-1]
    assert last.startswith("convertible: with --num_attention_heads, --image_size, and perhaps --")
    assert {"--image_size", "--interpolation_scale"} <= set(last.replace(",", "").split())


def test_inspect_in_words(cli: Cli) -> None:
    result = cli("pixart", "inspect", GOLDEN / "alpha-ms.pth")
    assert (result.returncode, result.stderr) == (0, "")
    for line in (
        "source: alpha-ms.pth, 1.7 MB, torch archive, {state_dict, state_dict_ema, optimizer, scheduler, epoch}",
        "weights: raw (state_dict)",
        "also there: ema weights (state_dict_ema)",
        "dropped: pos_embed",
        "sidecar: y_embedder.y_embedding",
        "convertible: with --num_attention_heads",
    ):
        assert line in result.stdout.splitlines()
    assert re.search(
        r"^model: pixart, original layout, 0\.\d+ M parameters, 70 tensors \(float32\)$", result.stdout, re.M
    )
    evidence = "the embedders of size and aspect ratio are there"
    assert re.search(rf"^  micro_condition +True +file +{evidence}$", result.stdout, re.M)
    result = cli("pixart", "inspect", GOLDEN / "alpha-ms.pth", "--weights", "ema")
    assert "weights: ema (state_dict_ema)" in result.stdout
    result = cli("pixart", "inspect", GOLDEN / "sana-controlnet.pth")
    assert result.returncode == 0
    assert result.stdout.endswith("convertible: no\n")


def test_inspect_as_json(cli: Cli) -> None:
    made = json.loads(cli("pixart", "inspect", "--json", GOLDEN / "alpha-ms.pth").stdout)
    assert made["ok"] is True
    wanted = converter.inspect(GOLDEN / "alpha-ms.pth")
    assert wanted["needs"].startswith("`num_attention_heads` is needed: ")  # and its flag, on the command line
    assert made == {"ok": True} | wanted | {"needs": wanted["needs"].replace("`", "--", 1).replace("`", "", 1)}
    assert [c["weights"] for c in made["candidates"]] == ["raw", "ema"]
    state = torch.load(GOLDEN / "alpha-ms.pth", weights_only=True)["state_dict"]
    in_model = [t for k, t in state.items() if k not in ("pos_embed", "y_embedder.y_embedding")]
    assert made["parameters"] == sum(t.numel() for t in in_model)
    assert made["bytes"] == sum(t.numel() * 4 for t in state.values())
    assert made["tensors"] == len(state)


def big(place: Path, bad: bool = False) -> Path:
    """A checkpoint of a few megabytes."""
    state = pixart(hidden_size=96, depth=4)
    if bad:
        state["final_layer.linear.bias"][0] = float("nan")
    return save(state, place / "made.pth")


def test_a_progress_bar_on_a_terminal_and_nowhere_else(tmp_path: Path) -> None:
    path = big(tmp_path)
    code, out, shown = terminal("convert-pixart", *flags(path, tmp_path / "out"))
    assert code == 0
    assert re.match(rb"\rconverting: +0%\|.*B/s\]", shown)
    assert re.search(rb"\r +\r$", shown)  # the bar is wiped in the end
    assert out.startswith("source: made.pth")  # the result goes to standard output, without any bar
    assert "%|" not in out
    result = launch("convert-pixart", *flags(path, tmp_path / "elsewhere"))
    assert (result.returncode, result.stderr) == (0, "")
    assert terminal("convert-pixart", *flags(path, tmp_path / "quiet"), "--quiet") == (0, "", b"")


def test_the_bar_is_wiped_before_an_error(tmp_path: Path) -> None:
    code, out, shown = terminal("convert-pixart", *flags(big(tmp_path, bad=True), tmp_path / "out"))
    assert (code, out) == (3, "")
    assert re.search(rb"\rconverting.*\r +\rconvert-pixart: error: [^\r\n]+\r\n$", shown)


def test_a_reader_that_leaves_is_no_error() -> None:
    for name, command in (("pixart", ["inspect", GOLDEN / "alpha-ms.pth"]), ("convert-pixart", ["--help"])):
        process = start(name, *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()  # before anything can have been written
        process.stdout = None
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")


FULL = [
    (["convert"], 0, "warning: some output was lost"),
    (["convert", "--json"], 5, "error: done, but the result could not be printed"),
    (["convert", "--to", "original", "--dump_path", "{tmp}/back.pth"], 0, "warning: some output was lost"),
    (["diff", SIGMA, SIGMA], 0, "warning: some output was lost"),
    (["diff", SIGMA, GOLDEN / "alpha-ms.pth"], 1, "warning: some output was lost"),
    (["diff", SIGMA, SIGMA, "--json"], 5, "error: done, but the result could not be printed"),
    (["new-family", "mine", SIGMA, "--out", "{tmp}/mine.py"], 0, "warning: some output was lost"),
    (["inspect", SIGMA], 5, "error: done, but the result could not be printed"),
]


@pytest.mark.parametrize(("words", "code", "said"), FULL)
def test_what_is_done_counts_though_it_cannot_be_printed(
    tmp_path: Path, words: list[object], code: int, said: str
) -> None:
    command, *more = [str(word).format(tmp=tmp_path) for word in words]
    if command == "convert":
        target = [] if "--dump_path" in more else ["--dump_path", tmp_path / "out"]
        more += map(str, ["--orig_ckpt_path", SIGMA, "--num_attention_heads", HEADS, *target])
    with open("/dev/full", "w") as full:
        result = launch("pixart", command, *more, stdout=full)
    assert result.returncode == code
    assert re.fullmatch(rf"pixart: {said}: standard output: No space left on device.*\n", result.stderr)
    assert command not in ("convert", "new-family") or os.listdir(tmp_path)


def test_a_reader_that_leaves_or_a_full_disk_stops_no_batch(tmp_path: Path) -> None:
    """Once, the second of several was not converted any more, and the exit code was 0."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.pth").write_bytes(SIGMA.read_bytes())
    command = ["--orig_ckpt_path", tmp_path / "*.pth", "--num_attention_heads", HEADS, "--dump_path"]
    with open("/dev/full", "w") as full:
        result = launch("convert-pixart", *command, tmp_path / "full" / "{stem}", stdout=full)
    assert result.returncode == 0
    process = start("convert-pixart", *command, tmp_path / "gone" / "{stem}", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert sorted(os.listdir(tmp_path / "full")) == sorted(os.listdir(tmp_path / "gone")) == ["a", "b", "c"]


def test_errors_that_cannot_be_printed_keep_their_code(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        for more in ([], ["--json"]):
            result = launch("pixart", "inspect", tmp_path / "absent", *more, stdout=full, stderr=full)
            assert result.returncode == 3
    closed = launch("pixart", "inspect", tmp_path / "absent", "--json", stderr=None, preexec_fn=lambda: os.close(2))
    assert closed.returncode == 3
    assert closed.stdout.count("\n") == 1
    done = launch("convert-pixart", *flags(SIGMA, tmp_path / "out"), stdout=None, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr, (tmp_path / "out").is_dir()) == (0, "", True)
    closed = launch("pixart", "inspect", SIGMA, "--json", stdout=None, preexec_fn=lambda: os.close(1))
    assert closed.returncode == 5
    assert "could not be printed: standard output: Bad file descriptor" in closed.stderr


def test_text_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "größe-中.pth"
    path.write_bytes(SIGMA.read_bytes())
    for encoding in ("latin-1", "utf-8"):
        options = {"env": {"PYTHONIOENCODING": encoding}, "encoding": encoding, "errors": "strict", "text": None}
        for command in (("inspect", path), ("inspect", path, "--json"), ("inspect", path.with_suffix(".absent"))):
            result = launch("pixart", *command, **options)
            printed = result.stdout + result.stderr
            assert result.returncode == (3 if "absent" in str(command) else 0)
            assert "Traceback" not in printed
            assert "internal error" not in printed
            escaped = r"\u4e2d" in printed
            assert escaped == (encoding != "utf-8" or "--json" in command)


EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e"


def harmless(*texts: str) -> bool:
    """No control characters but the ends of lines, and nothing that reverses what is read."""
    return all(c.isprintable() or c == "\n" for t in texts for c in t)


def test_control_characters_never_reach_the_terminal(tmp_path: Path, cli: Cli) -> None:
    state = pixart()
    evil = tmp_path / f"a{EVIL}b.pth"
    save(state, tmp_path / "made.pth").rename(evil)
    out = tmp_path / f"out{EVIL}"
    commands: list[tuple[int, list[object]]] = [
        (0, ["convert-pixart", *flags(evil, out)]),
        (0, ["convert-pixart", *flags(evil, tmp_path / f"dry{EVIL}", "--dry_run")]),
        (2, ["convert-pixart", *flags(evil, out)]),
        (0, ["pixart", "inspect", evil]),
        (3, ["pixart", "inspect", tmp_path / EVIL]),
        (2, ["pixart", EVIL]),
        (2, ["convert-pixart", f"--{EVIL}"]),
        (2, ["convert-pixart", *flags(evil, tmp_path / "o", f"--version={EVIL}")]),
        (2, ["convert-pixart", *flags(evil, tmp_path / "o", f"--family={EVIL}")]),
        (2, ["convert-pixart", *flags(evil, tmp_path / "o", EVIL)]),
    ]
    for code, command in commands:
        for more in ([], ["--json"]):
            if more and command in (commands[0][1], ["pixart", EVIL]):
                continue  # that target is taken by now, and the group has no --json
            result = cli(*command, *more)
            assert result.returncode == code, result
            assert harmless(result.stdout, result.stderr), result
            assert r"\x1b" in result.stdout + result.stderr or r"\u001b" in result.stdout


def test_control_characters_in_a_file_never_reach_the_terminal(tmp_path: Path, cli: Cli) -> None:
    state = pixart()
    contents: dict[str, tuple[int, Any]] = {
        "a key": (3, state | {f"blocks.0.{EVIL}.weight": torch.ones(2)}),
        "a key of many": (3, {EVIL: torch.ones(2)}),
        "a wrapper": (0, CONTAINERS["state_dict"](state) | {EVIL: EVIL, f"args{EVIL}": [1]}),
        "no tensor": (3, {"state_dict": {EVIL: 3}}),
    }
    for name, (code, content) in contents.items():
        path = save(content, tmp_path / f"{name}.pth")
        for command in (["convert-pixart", *flags(path, tmp_path / "out" / name)], ["pixart", "inspect", path]):
            result = cli(*command)
            assert result.returncode == code, result
            assert harmless(result.stdout, result.stderr), result


def stopped(number: int, place: Path, *command: object) -> Result:
    """The command, sent a signal as soon as it has begun to write."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start("convert-pixart", *command, **options) as process:
        try:
            deadline = time.monotonic() + 60
            while process.poll() is None and not list(place.glob(".out.*.partial")):
                assert time.monotonic() < deadline
            process.send_signal(number)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


@pytest.mark.parametrize(
    ("number", "code", "overwrite"),
    [
        (signal.SIGTERM, 143, False),
        (signal.SIGTERM, 143, True),
        (signal.SIGINT, 130, True),
        (signal.SIGHUP, 129, False),
    ],
)
def test_a_signal_stops_it_and_nothing_is_left(number: int, code: int, overwrite: bool, tmp_path: Path) -> None:
    path = save(pixart(hidden_size=144, depth=8), tmp_path / "made.pth")
    place = tmp_path / "work"
    place.mkdir()
    for _ in range(20):  # on a busy machine it may be done before it is seen, or before the signal arrives
        if overwrite:
            convert(SIGMA, place / "out", overwrite=True)
        result = stopped(number, place, *flags(path, place / "out", *(["--overwrite"] if overwrite else [])))
        if result.returncode != 0:
            break
        shutil.rmtree(place / "out")
    assert (result.returncode, result.stdout) == (code, "")
    assert LINE.fullmatch(result.stderr), result.stderr
    assert signal.Signals(number).name in result.stderr
    if overwrite:  # the old result, whole
        assert json.loads((place / "out/transformer/config.json").read_text())["num_layers"] == 3
        assert [p.name for p in place.iterdir()] == ["out"]
    else:
        assert list(place.iterdir()) == []
        assert launch("convert-pixart", *flags(SIGMA, place / "out")).returncode == 0
