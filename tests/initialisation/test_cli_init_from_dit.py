"""`pixart init-from-dit`: what it prints, its exit codes, and bad input in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, Result, save

import converter
from converter.initialisation.modulation import Modulation

Call = Callable[..., Result]
DIT = GOLDEN / "dit.pt"


def call(cli: Call, target: Path, *more: object, source: Path = DIT) -> Result:
    given = ["--orig_ckpt_path", source, "--dump_path", target, "--caption_channels", 32]
    return cli("pixart", "init-from-dit", *given, "--num_attention_heads", HEADS, *more)


def test_it_says_what_was_proven_and_written(tmp_path: Path, cli: Call) -> None:
    done = call(cli, tmp_path / "init.pth")
    assert (done.returncode, done.stderr) == (0, "")
    *notes, proof, wrote = done.stdout.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert proof.startswith("proof: at t = 500 it computes what the DiT does, block by block: at worst 1.")
    assert wrote.startswith(f"wrote: {tmp_path}/init.pth (")
    assert "is nearer" not in done.stdout  # measured for a report only
    # It is a PixArt like any other.
    made = converter.convert(tmp_path / "init.pth", tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})
    assert made.record["family"] == "pixart"


def test_with_reports(tmp_path: Path, cli: Call) -> None:
    reports = [tmp_path / f"r{suffix}" for suffix in (".json", ".md", ".html")]
    flags = [word for path in reports for word in ("--report", path)]
    done = call(cli, tmp_path / "out", "--version", "sigma", "--t-block", "paper", "--micro_condition=false", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "over 21 timesteps --t_block " in done.stdout
    assert done.stdout.count("wrote: ") == len(reports) + 4
    told = json.loads(reports[0].read_text())
    assert (told["choices"]["caption_tokens"], told["choices"]["t_block"]) == (300, "paper")
    assert set(told["distances"]) == {"mean", "paper"}
    assert all(path.stat().st_size > 1000 for path in reports)


def test_what_a_page_needs_is_asked_for_before_the_work(
    tmp_path: Path, cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = call(cli, tmp_path / "init.pth", "--report", tmp_path / "r.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the HTML report needs matplotlib: pip install 'convert-pixart[report]'" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_json_and_quiet(tmp_path: Path, cli: Call) -> None:
    done = call(cli, tmp_path / "a.pth", "--json")
    made = json.loads(done.stdout)
    assert (made["ok"], made["proof"]["verdict"], made["path"]) == (True, "PASS", str(tmp_path / "a.pth"))
    assert made["files"] == {"a.pth": (tmp_path / "a.pth").stat().st_size}
    done = call(cli, tmp_path / "b.pth", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_a_proof_that_fails_is_exit_code_1_and_still_reported(
    tmp_path: Path, cli: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Modulation, "condition", property(lambda self: self.embedded))  # the class is forgotten
    done = call(cli, tmp_path / "init.pth", "--report", tmp_path / "r.html")
    assert done.returncode == 1
    assert done.stderr.startswith("pixart: error: at t = 500 it does NOT compute what the DiT does: ")
    assert done.stderr.endswith("; nothing was written\n")
    assert done.stderr.count("\n") == 1
    assert "proof: " not in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    done = call(cli, tmp_path / "init.pth", "--json")
    made = json.loads(done.stdout)
    assert (made["ok"], made["exit_code"], made["proof"]["verdict"]) == (False, 1, "FAIL")
    assert "does NOT" in made["error"]


def test_what_cannot_be_told_is_exit_code_4(tmp_path: Path, cli: Call) -> None:
    state = dict(torch.load(DIT, weights_only=True))
    for end in ("weight", "bias"):
        state[f"final_layer.linear.{end}"] = torch.zeros_like(state[f"final_layer.linear.{end}"])
    done = call(cli, tmp_path / "i.pth", source=save(state, tmp_path / "d.pt"))
    assert (done.returncode, done.stdout.count("wrote: ")) == (4, 0)
    assert "cannot be told" in done.stderr


BAD: dict[str, tuple[list[str], int, str]] = {
    "a PixArt": (["--orig_ckpt_path={golden}/sigma-ms.pth"], 3, "this is a PixArt, and a DiT is needed"),
    "no DiT at all": (["--orig_ckpt_path={golden}/dit.golden.safetensors"], 3, "no model family knows these keys"),
    "no heads": (["--num_attention_heads="], 2, "--num_attention_heads"),
    "heads that do not divide": (["--num_attention_heads=5"], 2, "is not a multiple of it"),
    "half a patch": (["--image_size=136"], 2, "not a multiple of 16"),
    "no whole latent": (["--image_size=130"], 2, "not a multiple of 16"),
    "no scale": (["--interpolation_scale=-1"], 2, "not a sensible positive number"),
    "a sigma with sizes": (["--version=sigma", "--micro_condition"], 2, "sigma has no --micro_condition"),
    "two lengths": (["--version=alpha", "--caption_tokens=3"], 2, "give --version or --caption_tokens, not both"),
    "no such start": (["--t_block=median"], 2, "--t_block"),
    "an odd report": (["--report=r.pdf"], 2, "its suffix must be one of .json, .md, .html"),
    "a report nowhere": (["--report={tmp}/none/r.md"], 2, "cannot be written there"),
    "a report twice": (["--report={tmp}/r.md", "--report={tmp}/r.md"], 2, "two of them name the same file"),
    "nothing there": (["--orig_ckpt_path={golden}/none.pt"], 3, "No such file"),
    "a target around the input": (["--dump_path={golden}"], 2, "holds the input, which would be lost"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name: str, tmp_path: Path, cli: Call) -> None:
    words, code, message = BAD[name]
    words = [word.format(golden=GOLDEN, tmp=tmp_path) for word in words]
    done = call(cli, tmp_path / "init.pth", *words)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_nan_is_named(tmp_path: Path, cli: Call) -> None:
    state = dict(torch.load(DIT, weights_only=True))
    state["blocks.0.adaLN_modulation.1.bias"] = state["blocks.0.adaLN_modulation.1.bias"] * float("nan")
    done = call(cli, tmp_path / "i.pth", source=save(state, tmp_path / "d.pt"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    assert "288 elements are NaN or infinite, in blocks.0.adaLN_modulation.1.bias" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d.pt"]
