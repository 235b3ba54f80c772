"""Every released SANA: what its file shows, what its user has to say, and the class that its config is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import SanaTransformer2DModel
from shaped import INVENTORIES, SANAS, FakeState, Shaped, inventory, produced, shaped

from converter import Findings, UsageError
from converter.models.sana.sana_transformer import SanaExactTransformer2DModel
from converter.models.sana.table import KEYS, SANA

CLASSES = {kind.__name__: kind for kind in (SanaTransformer2DModel, SanaExactTransformer2DModel)}
HEADS = {1152: (36, 16), 2240: (70, 20)}  # hidden size -> heads of the linear and of the cross attention


class Released(NamedTuple):
    """What is published of a model."""

    pixels: int
    positions: str | float
    normed: bool  # queries and keys
    guided: bool
    said: Mapping[str, Any]  # what no file shows


RELEASED = {
    "sana-0.6b-512": Released(512, "none", False, False, {"trained_in": "fp16"}),
    "sana-0.6b-1024": Released(1024, "none", False, False, {"trained_in": "fp16"}),
    "sana-1.6b-512": Released(512, "none", False, False, {"trained_in": "fp16"}),
    "sana-1.6b-1024": Released(1024, "none", False, False, {"trained_in": "bf16"}),  # there is one of either
    "sana-1.6b-2k": Released(2048, 1.0, False, False, {}),
    "sana-1.6b-4k": Released(4096, 2.0, False, False, {}),
    "sana-1.5-1.6b": Released(1024, "none", True, False, {"timestep_scale": 1.0}),
    "sana-1.5-4.8b": Released(1024, "none", True, False, {"timestep_scale": 1.0}),
    "sana-sprint-teacher-0.6b": Released(1024, "none", True, False, {"timestep_scale": 0.001}),
    "sana-sprint-0.6b": Released(1024, "none", True, True, {}),
    "sana-sprint-1.6b": Released(1024, "none", True, True, {}),
}
each = pytest.mark.parametrize("name", RELEASED)


def test_it_is_every_one() -> None:
    assert RELEASED.keys() == set(SANAS)
    for name, model in RELEASED.items():
        said = INVENTORIES[name]
        assert (said["image_size"], said["interpolation_scale"] or "none") == (model.pixels, model.positions)


def look(name: str, *, table: bool = True, stock: bool = False, **given: Any) -> Findings:
    """A model as its file shows it, with its positional table or without."""
    state = inventory(name)
    if not table:
        del state["pos_embed"]
    placed, found = RELEASED[name].positions, Findings(given, stock=stock)
    seen = FakeState(0 if isinstance(placed, str) else placed, hidden=state["x_embedder.proj.bias"].shape[0])
    SANA.describe(KEYS.survey(state), seen, found)
    return found


def told(found: Findings, name: str) -> tuple[Any, str]:
    return found[name].value, found[name].source


def built(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the class that a config is for."""
    with torch.device("meta"):
        model = CLASSES[config["_class_name"]](**{key: value for key, value in config.items() if key[0] != "_"})
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def in_diffusers(name: str) -> dict[str, Shaped]:
    state = inventory(name)
    return shaped(produced(KEYS.plan(state), state))


@each
def test_what_the_file_shows(name: str) -> None:
    model, found = RELEASED[name], look(name)
    hidden = 1152 if "0.6b" in name else 2240
    depth = 28 if hidden == 1152 else 60 if "4.8b" in name else 20
    shown = {
        "hidden_size": hidden, "depth": depth, "patch_size": 1, "in_channels": 32, "out_channels": 32,
        "pred_sigma": False, "mlp_ratio": 2.5, "caption_channels": 2304, "caption_tokens": 300,
        "image_size": model.pixels, "sample_size": model.pixels // 32, "positions": model.positions,
        "qk_norm": model.normed, "guidance_embeds": model.guided,
    }  # fmt: skip
    for key, value in shown.items():
        assert told(found, key) == (value, "file"), key
    linear, cross = HEADS[hidden]
    assert told(found, "num_attention_heads") == (linear, "assumed")
    assert told(found, "num_cross_attention_heads") == (cross, "assumed")
    assert told(found, "guidance_embeds_scale") == (0.1, "assumed" if model.guided else "file")
    assert (found.notes, found.problems) == ([], [])


@each
def test_the_config_is_of_a_class_that_holds_it(name: str) -> None:
    model = RELEASED[name]
    config = SANA.config(look(name, **model.said))
    hidden = config["cross_attention_dim"]
    exact = model.normed or model.said.get("trained_in") == "fp16"
    wanted = {
        "_class_name": "SanaExactTransformer2DModel" if exact else "SanaTransformer2DModel",
        "attention_bias": False, "attention_head_dim": 32, "num_attention_heads": HEADS[hidden][0],
        "num_cross_attention_heads": HEADS[hidden][1], "cross_attention_head_dim": 72 if hidden == 1152 else 112,
        "sample_size": model.pixels // 32, "mlp_ratio": 2.5,
        "interpolation_scale": None if model.positions == "none" else model.positions,
        "qk_norm": "rms_norm_across_heads" if model.normed else None,
        "guidance_embeds": model.guided, "guidance_embeds_scale": 0.1,
        "timestep_scale": 0.001 if "sprint" in name else 1.0,
    } | ({"trained_in": model.said.get("trained_in", "bf16")} if exact else {})  # fmt: skip
    assert {key: config.get(key) for key in wanted} == wanted
    assert ("trained_in" in config) == exact
    assert built(config) == {key: tensor.shape for key, tensor in in_diffusers(name).items()}


@each
def test_diffusers_own_class_where_that_is_asked_for(name: str) -> None:
    model = RELEASED[name]
    found = look(name, stock=True, **model.said)
    config = SANA.config(found)
    assert config["_class_name"] == "SanaTransformer2DModel"
    assert "trained_in" not in config
    lines = [note for note in found.diffusers_notes if "for block in model.transformer_blocks:" in note]
    assert len(lines) == (model.normed or model.said.get("trained_in") == "fp16")
    assert built(config).keys() == in_diffusers(name).keys()


def needed(found: Findings) -> list[str]:
    """The flags that one error asks for."""
    with pytest.raises(UsageError) as caught:
        SANA.config(found)
    return re.findall(r"`(\w+)` is needed: ", str(caught.value))


@pytest.mark.parametrize("name", [name for name, model in RELEASED.items() if model.said])
def test_what_no_file_shows_is_asked_for(name: str) -> None:
    assert needed(look(name)) == list(RELEASED[name].said)


@each
def test_without_its_table_all_is_asked_for_at_once(name: str) -> None:
    model = RELEASED[name]
    # Only models without positions were trained in fp16.
    more = ["timestep_scale"] if "timestep_scale" in model.said else [] if model.normed else ["trained_in"]
    assert needed(look(name, table=False)) == ["image_size", "positions", *more]
    said = {"image_size": model.pixels, "positions": model.positions, **model.said}
    assert SANA.config(look(name, table=False, **said)) == SANA.config(look(name, **model.said))


@each
def test_a_folder_is_described_by_its_config(name: str) -> None:
    config = SANA.config(look(name, **RELEASED[name].said))
    found = Findings({}, source_class=config["_class_name"])
    SANA.describe(KEYS.targets.survey(in_diffusers(name)), FakeState(config=config), found)
    assert (SANA.config(found), found.problems) == (config, [])
