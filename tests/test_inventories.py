"""The inventories are what their generator writes, and it is right about checkpoints that the original saved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import GOLDEN, inventories
from safetensors import safe_open
from shaped import INVENTORIES, ROOT

SCRIPT = ROOT / "fixtures" / "make_inventories.py"


def test_there_is_one_for_every_model_and_no_other() -> None:
    assert INVENTORIES.keys() == inventories.MODELS.keys()


@pytest.mark.parametrize("name", INVENTORIES)
def test_the_committed_file_is_what_is_generated(name: str) -> None:
    assert (ROOT / "fixtures" / "inventories" / f"{name}.json").read_text() == inventories.render(name)


def test_check_tells_a_file_that_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    monkeypatch.setattr(inventories, "HERE", tmp_path)
    assert inventories.main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert inventories.main([]) == 0
    assert inventories.main(["--check"]) == 0
    capsys.readouterr()
    (tmp_path / "alpha-256.json").write_text("{}")
    assert inventories.main(["--check"]) == 1
    assert capsys.readouterr().out == "differs: alpha-256.json\n"


def asked(name: str) -> dict[str, Any]:
    """The original net's hyper-parameters in the generator's words."""
    with safe_open(GOLDEN / f"{name}.golden.safetensors", "np") as file:
        metadata = file.metadata()
    said = json.loads(metadata["hyperparameters"])
    if metadata["model"] == "DiT":
        sizes = {key: said[key] for key in ("depth", "hidden_size", "input_size", "patch_size")}
        return {"family": "dit", "class_rows": said["num_classes"] + 1} | sizes  # and one for no class
    multi = metadata["model"] == "PixArtMS"
    return {
        "depth": said["depth"],
        "hidden_size": said["hidden_size"],
        "caption_channels": said["caption_channels"],
        "tokens": said["model_max_length"],
        "input_size": said["input_size"],
        "micro_conditions": said.get("micro_condition", multi),  # alpha's multi-scale class always has them
        "qk_norm": said.get("qk_norm", False),
        "kv_compress": tuple(said.get("kv_compress_config", {}).get("kv_compress_layer", ())),
        "copied_blocks": said.get("copy_blocks_num", 0),
    }


CHECKPOINTS = {path.stem: path for path in sorted([*GOLDEN.glob("*.pth"), *GOLDEN.glob("*.pt")])}
CHECKPOINTS = {name: path for name, path in CHECKPOINTS.items() if not name.startswith("sana")}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_keys_shapes_and_order_are_those_of_the_original_nets(name: str) -> None:
    saved = torch.load(CHECKPOINTS[name], weights_only=True, map_location="cpu")
    state = saved.get("state_dict", saved)
    made = inventories.inventory(**asked(name))
    assert list(made.items()) == [(key, ["F32", list(tensor.shape)]) for key, tensor in state.items()]
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_the_goldens_cover_every_switch_of_the_generator() -> None:
    settings = [asked(name) for name in CHECKPOINTS if name != "dit"]
    for switch in ("micro_conditions", "qk_norm", "kv_compress", "copied_blocks"):
        assert {bool(setting[switch]) for setting in settings} == {True, False}, switch


def test_the_order_of_diffusers_is_its_own() -> None:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        model = PixArtTransformer2DModel(
            num_layers=12, sample_size=64, caption_channels=4096, use_additional_conditions=True
        )
    shapes = {key: shape for key, (_, shape) in inventories.inventory(depth=12, micro_conditions=True).items()}
    made = inventories.to_diffusers(shapes)
    assert list(made.items()) == [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_a_dit_in_diffusers_is_what_diffusers_has(patch: int) -> None:
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        model = DiTTransformer2DModel(num_layers=3, out_channels=8, patch_size=patch)
    made = {}
    for key, (_, shape) in inventories.inventory(family="dit", depth=3, patch_size=patch).items():
        names, copies = inventories.dit_names(key, 3)
        made |= dict.fromkeys(names, shape if copies else [shape[0] // max(len(names), 1), *shape[1:]])
    assert made == {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
