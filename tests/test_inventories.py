"""The inventories are what their generator writes, and it is right about checkpoints that the original saved."""

from __future__ import annotations

import json
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import GOLDEN, inventories
from safetensors import safe_open
from shaped import INVENTORIES, ROOT, SANAS

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
    if name == "sana-controlnet":  # of which no outputs were recorded
        sizes = {"depth": 3, "hidden_size": 32, "caption_channels": 20, "tokens": 12, "input_size": 6, "in_channels": 8}
        return {"family": "sana", "copied_blocks": 2} | sizes
    with safe_open(GOLDEN / f"{name}.golden.safetensors", "np") as file:
        metadata = file.metadata()
    said = json.loads(metadata["hyperparameters"])
    if metadata["model"] == "DiT":
        sizes = {key: said[key] for key in ("depth", "hidden_size", "input_size", "patch_size")}
        return {"family": "dit", "class_rows": said["num_classes"] + 1} | sizes  # and one for no class
    if metadata["model"].startswith("SanaMS"):
        sizes = {key: said[key] for key in ("depth", "hidden_size", "caption_channels", "input_size", "in_channels")}
        assert said.get("cfg_embed", False) == said.get("logvar", False)
        switches = {"qk_norm": said.get("qk_norm", False), "sprint": said.get("logvar", False)}
        return {"family": "sana", "tokens": said["model_max_length"]} | sizes | switches
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


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_keys_shapes_and_order_are_those_of_the_original_nets(name: str) -> None:
    saved = torch.load(CHECKPOINTS[name], weights_only=name != "sana-4k", map_location="cpu")  # of a training state
    state = saved.get("state_dict", saved)
    made = inventories.inventory(**asked(name))
    assert list(made.items()) == [(key, ["F32", list(tensor.shape)]) for key, tensor in state.items()]
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_the_goldens_cover_every_switch_of_the_generator() -> None:
    by_family: dict[str, list[dict[str, Any]]] = {}
    for setting in map(asked, CHECKPOINTS):
        by_family.setdefault(setting.get("family", "pixart"), []).append(setting)
    switches = {"pixart": ("micro_conditions", "kv_compress"), "sana": ("sprint",)}
    for family, own in switches.items():
        for switch in (*own, "qk_norm", "copied_blocks"):
            assert {bool(setting.get(switch)) for setting in by_family[family]} == {True, False}, switch


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


@pytest.mark.parametrize("name", SANAS)
def test_a_sana_in_diffusers_is_what_diffusers_has(name: str) -> None:
    from diffusers import SanaTransformer2DModel

    sizes = inventories.MODELS[name][-1]
    hidden, sprint, norm = sizes.get("hidden_size", 2240), "sprint" in sizes, "qk_norm" in sizes
    heads = {"num_attention_heads": hidden // 32, "num_cross_attention_heads": 16, "cross_attention_dim": hidden}
    with torch.device("meta"):
        model = SanaTransformer2DModel(
            num_layers=sizes.get("depth", 20), qk_norm="rms_norm_across_heads" if norm else None,
            guidance_embeds=sprint, cross_attention_head_dim=hidden // 16, **heads,
        )  # fmt: skip
    shapes = {key: shape for key, (_, shape) in INVENTORIES[name]["tensors"].items()}
    made = inventories.to_diffusers(shapes, inventories.sana_table(shapes))
    assert list(made.items()) == [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]


# (keys in the original layout and in diffusers', parameters in diffusers): measured on both sides' own nets.
MEASURED = {
    "sana-0.6b-512": (438, 548, 591_747_872),
    "sana-0.6b-1024": (438, 548, 591_747_872),
    "sana-1.6b-512": (318, 396, 1_604_462_752),
    "sana-1.6b-1024": (318, 396, 1_604_462_752),
    "sana-1.6b-2k": (318, 396, 1_604_462_752),
    "sana-1.6b-4k": (318, 396, 1_604_462_752),
    "sana-1.5-1.6b": (398, 476, 1_604_641_952),
    "sana-1.5-4.8b": (1158, 1396, 4_721_825_952),
    "sana-sprint-0.6b": (556, 664, 593_501_216),
    "sana-sprint-1.6b": (404, 480, 1_610_237_472),
}


@pytest.mark.parametrize("name", MEASURED)
def test_as_many_keys_and_parameters_as_measured_on_the_nets(name: str) -> None:
    """The two buffers are keys of the original's, and no parameters."""
    shapes = {key: shape for key, (_, shape) in INVENTORIES[name]["tensors"].items()}
    made = inventories.to_diffusers(shapes, inventories.sana_table(shapes))
    keys, theirs, parameters = MEASURED[name]
    assert (len(shapes), len(made), sum(map(prod, made.values()))) == (keys, theirs, parameters)
    weights = [shape for key, shape in shapes.items() if key not in ("pos_embed", "y_embedder.y_embedding")]
    logvar = shapes["x_embedder.proj.bias"][0] + 1 if "sprint" in name else 0
    assert sum(map(prod, weights)) == parameters + logvar
