"""`pixart revert`: what it prints, and how it ends where it cannot go on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, Result, convert, diffusers_keyed, imported, pixart, raw_bytes, save, training, tree
from safetensors.torch import load_file

Cli = Callable[..., Result]
LINE = re.compile(r"pixart: error: [^\n]+\n")


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    convert(save(pixart(), tmp_path / "a.pth"), tmp_path / "out")
    return tmp_path / "out"


def test_a_process_of_its_own_that_needs_no_torch(converted: Path) -> None:
    target = converted.parent / "back.pth"
    code, out, modules, _ = imported("pixart", "revert", "--converted-path", converted, "--dump-path", target)
    assert (code, "torch" in modules) == (0, False)
    assert f"wrote: {target} (" in out
    assert "note: all 57 tensors are what conversion.json says was converted" in out
    assert re.search(r"done: \d+ tensors in [\d.]+ s, read back and verified", out)
    state = torch.load(target, weights_only=True, mmap=True)["state_dict"]
    assert all(torch.equal(tensor, pixart()[key]) for key, tensor in state.items())
    assert not [name for name in os.listdir(converted.parent) if name.startswith(".")]
    call = ["--orig_ckpt_path", converted, "--dump_path", converted.parent / "half.pth", "--to", "original"]
    code, _, modules, _ = imported("convert-pixart", *call, "--dtype", "float16")
    assert (code, "torch" in modules) == (0, False)


def test_json_and_quiet(converted: Path, cli: Cli) -> None:
    call = ["revert", "--converted_path", converted, "--dump_path", converted.parent / "back.pth"]
    made = json.loads(cli("pixart", *call, "--json").stdout)
    assert (made["ok"], made["written"], made["record"]["to"]) == (True, True, "original")
    rows = {row["targets"][0]: row for row in made["record"]["plan"]}
    assert rows["blocks.0.attn.qkv.weight"]["operation"] == "concatenate"
    assert len(rows["blocks.0.attn.qkv.weight"]["digests"]) == 3
    assert rows["pos_embed"]["operation"] == "recompute"
    done = cli("pixart", *call, "--quiet", "--overwrite")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_which_weights_of_a_training_file(weights: str, tmp_path: Path, cli: Cli) -> None:
    """With diffusers' keys, and a note that names the flag where it is not given."""
    state = {"raw": pixart(), "ema": pixart(seed=5)}
    both = save(training(*map(diffusers_keyed, state.values())), tmp_path / "both.pth")
    call = ["revert", "--converted_path", both, "--num_attention_heads", HEADS, "--image_size", 128]
    call += ["--interpolation_scale", 1]
    done = cli("pixart", *call, "--dump_path", tmp_path / "back.safetensors", "--weights", weights)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--weights" not in done.stdout
    wanted = {key: raw_bytes(value) for key, value in state[weights].items() if key != "y_embedder.y_embedding"}
    assert {key: raw_bytes(value) for key, value in load_file(tmp_path / "back.safetensors").items()} == wanted
    assert "--weights ema takes those" in cli("pixart", *call, "--dump_path", tmp_path / "x.pth", "--dry_run").stdout


def test_a_dry_run_writes_nothing(converted: Path, cli: Cli) -> None:
    before = tree(converted.parent)
    call = ["--converted_path", converted, "--dump_path", converted.parent / "b.pth"]
    done = cli("pixart", "revert", *call, "--dry_run")
    assert done.returncode == 0
    assert "transformer_blocks.{0..1}.attn1.to_k.weight" in done.stdout
    assert "-> concatenate: blocks.{0..1}.attn.qkv.weight" in done.stdout
    assert tree(converted.parent) == before


def test_comfyui_warnings_are_printed(tmp_path: Path, cli: Cli) -> None:
    convert(GOLDEN / "alpha-fixed.pth", tmp_path / "out")
    call = ["--converted_path", tmp_path / "out", "--dump_path", tmp_path / "c.safetensors", "--to", "comfyui"]
    done = cli("pixart", "revert", *call)
    assert done.returncode == 0
    assert "note: ComfyUI guesses the scale of the positions" in done.stdout
    assert "note: if this is an alpha, which nothing in the model shows (--version): ComfyUI takes" in done.stdout
    for version, said in (("alpha", True), ("sigma", False)):
        done = cli("pixart", "revert", *call, "--overwrite", "--version", version)
        assert ("note: ComfyUI takes an alpha without micro-conditions for a sigma" in done.stdout) is said
        assert "if this is an alpha" not in done.stdout
    for pred_sigma in (True, False):
        convert(save(pixart(pred_sigma=pred_sigma), tmp_path / "a.pth"), tmp_path / "out", overwrite=True)
        done = cli("pixart", "revert", *call, "--overwrite")
        assert done.returncode == 0
        assert ("ComfyUI has out_channels = 8 fixed, and this model has 4" in done.stdout) is not pred_sigma
    convert(GOLDEN / "dit.pt", tmp_path / "dit")
    done = cli("pixart", "revert", "--converted_path", tmp_path / "dit", *call[2:], "--overwrite")
    assert done.returncode == 2
    assert "ComfyUI cannot read a DiT" in done.stderr


BAD = {
    "no such folder": (["--converted_path={t}/none", "--dump_path={t}/b.pth"], 3, "No such file"),
    "no model": (["--converted_path={t}", "--dump_path=/tmp/none/b.pth"], 3, "holds no weights"),
    "a folder for a file": (["--converted_path={o}", "--dump_path={t}/b"], 2, "ends in .pth"),
    "into itself": (["--converted_path={o}", "--dump_path={o}/b.pth"], 2, "lies inside it"),
    "over its weights": (["--converted_path={w}", "--dump_path={w}", "--overwrite"], 2, "is the input"),
    "over another": (["--converted_path={o}", "--dump_path={t}/a.pth"], 2, "use --overwrite"),
    "a disk that is none": (["--converted_path={o}", "--dump_path=/proc/none/b.pth"], 2, "/proc"),
    # Beside a config, a file is as good as its folder.
    "weights without a config": (["--converted_path={b}", "--dump_path={t}/b.pth"], 2, "--image_size is needed"),
    "a null caption that is a page": (
        ["--converted_path={o}", "--dump_path={t}/b.pth", "--null_caption={t}/page"],
        3,
        "HTML",
    ),
    "a contradiction": (["--converted_path={o}", "--dump_path={t}/b.pth", "--image_size=512"], 2, "contradicts the"),
    "no such option": (["--converted_path={o}", "--dump_path={t}/b.pth", "--weights=ema"], 2, "--weights"),
    "to diffusers": (["--converted_path={o}", "--dump_path={t}/b.pth", "--to=diffusers"], 2, "--to"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, converted: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words, code, message = BAD[name]
    (converted.parent / "page").write_text("<html>")
    weights = converted / "transformer/diffusion_pytorch_model.safetensors"
    bare = Path(shutil.copy(weights, tmp_path_factory.mktemp("bare") / "bare.safetensors"))
    places = {"o": converted, "t": converted.parent, "w": weights, "b": bare}
    before = tree(converted.parent)
    done = cli("pixart", "revert", *(word.format(**places) for word in words))
    assert done.returncode == code, done.stderr
    assert LINE.fullmatch(done.stderr), done.stderr
    assert message in done.stderr
    assert tree(converted.parent) == before
    assert sorted(os.listdir(converted.parent)) == ["a.pth", "out", "page"]
