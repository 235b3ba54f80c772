"""`inspect --deep`: what only the bytes show, as problems and notes; the index is what it was."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, convert, pixart, save
from safetensors.torch import load_file, save_file

import converter
from converter import inspect
from converter.conversion.sidecar import CHANGED
from converter.errors import as_flags
from converter.filenames import SIDECAR

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_sound_file() -> None:
    path = GOLDEN / "alpha-ms.pth"
    made, index = inspect(path, deep=True), inspect(path)
    assert made.pop("deep") == {"bytes": index["bytes"], "checksums": True, "nonfinite": {}, "changed": []}
    assert made == index


def test_damage_is_named_tensor_by_tensor(tmp_path: Path) -> None:
    path = save(pixart(), tmp_path / "a.pth")
    with converter.open_checkpoint(path) as checkpoint:
        places = [checkpoint[key].storage.start for key in ("t_block.1.weight", "blocks.0.mlp.fc1.weight")]
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 1
    path.write_bytes(data)
    made = inspect(path, deep=True)
    assert [problem.rpartition(": CRC-32")[2] for problem in made["problems"]] == [" mismatch: the file is damaged"] * 2
    assert made["deep"]["bytes"] >= made["bytes"] - 2 * 6 * 24 * 24 * 4
    assert inspect(path)["problems"] == []


def test_views_of_one_damaged_storage_are_one_problem(tmp_path: Path) -> None:
    state = pixart()
    both = torch.cat([state["x_embedder.proj.bias"], state["t_embedder.mlp.0.bias"]])
    state |= {"x_embedder.proj.bias": both[:24], "t_embedder.mlp.0.bias": both[24:]}
    path = save(state, tmp_path / "a.pth")
    with converter.open_checkpoint(path) as checkpoint:
        place = checkpoint["t_embedder.mlp.0.bias"].storage.start
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert len(inspect(path, deep=True)["problems"]) == 1


def test_numbers_and_zeros(tmp_path: Path, cli: Cli) -> None:
    state = pixart()
    state["blocks.1.mlp.fc1.weight"][0, :2] = torch.inf
    state["x_embedder.proj.weight"][:] = 0
    save_file(state, path := tmp_path / "a.safetensors")
    made = inspect(path, deep=True)
    assert made["deep"]["nonfinite"] == {"blocks.1.mlp.fc1.weight": 2}
    assert made["deep"]["checksums"] is False
    assert made["problems"] == [
        "2 elements are NaN or infinite, in blocks.1.mlp.fc1.weight; `allow_nonfinite` converts them as they are",
        "1 tensor is zero throughout, as no training leaves it: x_embedder.proj.weight (was its download completed?); "
        "`allow_zeros` converts them as they are",
    ]
    said = cli("pixart", "inspect", "--deep", path)
    assert said.returncode == 0
    assert f"problem: {as_flags(made['problems'][1])}" in said.stdout
    assert "which has no checksums" in said.stdout
    assert "convertible: no" in said.stdout
    assert json.loads(cli("pixart", "inspect", "--deep", "--json", path).stdout)["deep"] == made["deep"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return convert(save(pixart(), tmp_path / "a.pth"), tmp_path / "out").path


def test_what_a_record_promises(out: Path) -> None:
    made = inspect(out, deep=True)
    assert made["notes"][-1] == "all 57 tensors are what conversion.json says was converted"
    tensors = load_file(out / WEIGHTS)
    tensors["proj_out.bias"] += 1
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    made = inspect(out / "transformer", deep=True)
    words = "1 of 57 tensors are not what conversion.json says was converted (trained since?): proj_out.bias"
    assert made["notes"][-1] == words
    assert made["deep"]["changed"] == ["proj_out.bias"]
    assert made["problems"] == []


@pytest.mark.parametrize("at", [-1, -40, None])
def test_a_broken_promise_is_a_problem_in_the_words_of_a_conversion(at: int | None, out: Path) -> None:
    """Nobody trains what lies in the sidecar, or what the config says of the table."""
    if at is None:
        path = out / "transformer/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"interpolation_scale": 1.75}))
    else:
        data = bytearray((out / SIDECAR).read_bytes())
        data[at] ^= 1
        (out / SIDECAR).write_bytes(data)
    with pytest.raises(converter.InputError, match=re.escape(CHANGED)) as error:
        converter.convert(out, out.parent / "back.pth", to="original")
    made = inspect(out, deep=True)
    assert made["problems"] == [str(error.value)]
    if at is not None:
        assert made["deep"]["changed"] == ["y_embedder.y_embedding"]
        assert made["notes"][-1] == "all 57 tensors are what conversion.json says was converted"


def test_what_is_no_model_at_all_is_read_too(tmp_path: Path) -> None:
    path = save({"a": torch.ones(3, 2), "b": torch.zeros(2)}, tmp_path / "a.pth")
    made = inspect(path, deep=True)
    assert made["deep"]["bytes"] == 32
    assert made["notes"][-1] == "b: zero throughout"
