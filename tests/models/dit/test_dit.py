"""The DiT table: the laws on every size, what a file shows, and the config that stock diffusers is built from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import dit, dit_keyed, inventories
from shaped import DITS, INVENTORIES, FakeState, Shaped, inventory, produced, shaped

from converter import Findings, InputError, MappingError, UsageError
from converter.models.dit.dit_transformer import DiTExactTransformer2DModel
from converter.models.dit.table import AMENDED, DIT, KEYS, buffer_mismatch

Shapes = Mapping[str, Shaped]
# facebookresearch/DiT, models.py: hidden size, blocks, heads.
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}

EXACT_LINE = AMENDED.line(Findings({}))


def small(**sizes: Any) -> dict[str, Shaped]:
    return shaped({key: shape for key, (_, shape) in inventories.inventory(family="dit", **sizes).items()})


def look(state: Shapes, seen: FakeState | None = None, **given: Any) -> Findings:
    found = Findings(given)
    hidden = state["x_embedder.proj.bias"].shape[0]
    DIT.describe(KEYS.survey(state), seen or FakeState(1.0, hidden=hidden), found)
    return found


def told(found: Findings, name: str) -> tuple[Any, str]:
    return found[name].value, found[name].source


def built(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the class that a config is for."""
    assert config["_class_name"] == "DiTExactTransformer2DModel"
    with torch.device("meta"):
        model = DiTExactTransformer2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


# The laws.


@settings(max_examples=20)
@given(
    st.fixed_dictionaries({
        "depth": st.integers(1, 3), "hidden_size": st.sampled_from([8, 24]), "patch_size": st.sampled_from([2, 4, 8]),
        "class_rows": st.integers(1, 4), "learn_sigma": st.booleans(), "in_channels": st.sampled_from([3, 4]),
    })
)  # fmt: skip
def test_live_state_dicts_of_any_size(sizes: dict[str, Any]) -> None:
    state = dit(**sizes)
    made, by_hand = KEYS(state), dit_keyed(state, sizes["depth"])
    assert made.keys() == by_hand.keys()
    assert all(torch.equal(made[key], by_hand[key]) for key in made)
    back = KEYS.inverse(by_hand, KEYS.left(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_one_embedder_that_differs_in_one_block_has_no_way_back() -> None:
    made = dit_keyed(dit(depth=4), 4)
    key = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.bias"
    made[key][3] += 1e-6
    with pytest.raises(MappingError) as caught:
        KEYS.inverse(made)
    (problem,) = caught.value.problems
    other = key.replace("2", "0", 1)
    assert problem == f"{key} is not what {other} is, and both have to be copies of t_embedder.mlp.0.bias"
    del made[key]
    with pytest.raises(MappingError, match=r"^missing transformer_blocks\.2\.norm1\.emb\.timestep_embedder"):
        KEYS.plan_back(made)


def test_the_published_embedders_of_a_model_that_was_trained_on_apart() -> None:
    """Trained on in diffusers every block has an embedder of its own: a model that the original cannot hold."""
    made = dit_keyed(dit(depth=3), 3)
    for i in range(3):
        made[f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"] += i
    with pytest.raises(MappingError, match=r"^transformer_blocks\.\{1\.\.2\}\.norm1\.emb\.class_embedder"):
        KEYS.inverse(made)


# What a file shows.


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_size_and_patch(name: str, patch: int) -> None:
    hidden, depth, heads = SIZES[name]
    state = small(hidden_size=hidden, depth=depth, patch_size=patch, input_size=64)
    found = look(state)
    assert told(found, "size") == (f"DiT-{name}/{patch}", "file")
    assert told(found, "num_attention_heads") == (heads, "assumed")
    shown = {"hidden_size": hidden, "depth": depth, "patch_size": patch, "in_channels": 4, "out_channels": 8,
             "pred_sigma": True, "num_classes": 1000, "image_size": 512, "sample_size": 64}  # fmt: skip
    for key, value in shown.items():
        assert told(found, key) == (value, "file"), key
    assert found.problems == []
    config = DIT.config(found)
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (heads, hidden // heads)
    assert (config["norm_eps"], config["sample_size"], config["patch_size"]) == (1e-6, 64, patch)
    assert produced(KEYS.plan(state), state) == built(config)


@pytest.mark.parametrize("name", DITS)
def test_the_released_models_are_described_without_a_flag(name: str) -> None:
    found = look(inventory(name))
    assert told(found, "image_size") == (INVENTORIES[name]["image_size"], "file")
    assert DIT.config(found)["num_embeds_ada_norm"] == 1000
    assert not any("DiTPipeline" in note or "missing" in note for note in [*found.notes, *found.diffusers_notes])


def test_without_a_predicted_variance() -> None:
    state = small(hidden_size=384, depth=12, learn_sigma=False)
    found = look(state)
    assert (told(found, "pred_sigma"), told(found, "out_channels")) == ((False, "file"), (4, "file"))
    assert produced(KEYS.plan(state), state) == built(DIT.config(found))


@pytest.mark.parametrize("rows", [1, 11, 1000, 1002])
def test_the_classes_are_one_less_than_the_rows_and_the_pipeline_knows_one_number_only(rows: int) -> None:
    state = small(hidden_size=384, depth=12, class_rows=rows)
    found = look(state)
    assert told(found, "num_classes") == (rows - 1, "file")
    assert f"[{rows}, 384]" in found["num_classes"].evidence
    (note,) = [note for note in found.diffusers_notes if "DiTPipeline" in note]
    assert f"{rows} rows" in note
    assert built(DIT.config(found)) == produced(KEYS.plan(state), state)


def test_blocks_that_may_be_missing() -> None:
    found = look(small(depth=27))
    assert "size" not in found
    assert any("depth 27, where DiT-XL has 28 blocks" in note for note in found.notes)
    assert not any("blocks" in note and "missing" in note for note in look(small(hidden_size=400, depth=3)).notes)


def test_heads_of_a_size_that_was_not_published() -> None:
    state = small(hidden_size=48, depth=3)
    found = look(state)
    assert told(found, "num_attention_heads") == (None, "unknown")
    with pytest.raises(
        UsageError, match=r"`num_attention_heads` is needed: .*384, 768, 1024, 1152, and this .* has 48"
    ):
        DIT.config(found)
    assert told(look(state, num_attention_heads=4), "num_attention_heads") == (4, "given")
    with pytest.raises(UsageError, match="`num_attention_heads` 5: the hidden size 48 is not a multiple of it"):
        look(state, num_attention_heads=5)
    # 64 channels to a head do not make it a published model.
    assert told(look(small(hidden_size=640, depth=3)), "num_attention_heads") == (None, "unknown")


def test_the_table_has_to_be_that_of_scale_one() -> None:
    state = small(hidden_size=384, depth=12)
    for scale, says in (
        (2.0, "scale 2, and the diffusers class computes the one of scale 1"),
        (None, "no sin-cos table"),
    ):
        (problem,) = look(state, FakeState(scale, hidden=384)).problems
        assert says in problem
    for dtype in (torch.float16, torch.bfloat16):
        assert look(state, FakeState(1.0, hidden=384, dtype=dtype)).problems == []
    # One position shows no scale, and no scale changes it.
    found = look(small(hidden_size=384, depth=12, input_size=8, patch_size=8), FakeState(None, hidden=384))
    assert (found.problems, told(found, "image_size")) == ([], (64, "file"))


def test_without_a_table_the_size_is_asked_for() -> None:
    state = {key: tensor for key, tensor in small(hidden_size=384, depth=12).items() if key != "pos_embed"}
    with pytest.raises(UsageError, match="`image_size` is needed"):
        DIT.config(look(state))
    assert DIT.config(look(state, image_size=512))["sample_size"] == 64
    with pytest.raises(UsageError, match="`image_size` 256 contradicts the file"):
        look(small(hidden_size=384, depth=12, input_size=64), image_size=256)


def test_a_table_that_is_not_reproduced() -> None:
    found = look(small(hidden_size=384, depth=12))
    assert buffer_mismatch(found, 1e-7) == (True, "is the sin-cos table up to rounding (by up to 1e-07)")
    dispensable, what = buffer_mismatch(found, 0.5)
    assert not dispensable
    assert "would be another one" in what


def test_whoever_loads_it_is_told_the_line_that_makes_it_exact() -> None:
    state, notes = small(hidden_size=384, depth=12), []
    for stock in (False, True):
        found = Findings({}, stock=stock)
        DIT.describe(KEYS.survey(state), FakeState(1.0, hidden=384), found)
        notes.append([note for note in found.diffusers_notes if EXACT_LINE in note])
        assert "exact_timesteps" not in found
    assert notes[0] == []
    assert "127" in notes[1][0]
    assert told(look(state, exact_timesteps=True), "exact_timesteps") == (True, "given")


@pytest.mark.parametrize(
    ("source_class", "stock", "wanted"),
    [
        (None, False, "DiTExactTransformer2DModel"),
        (None, True, "DiTTransformer2DModel"),
        ("DiTTransformer2DModel", False, "DiTTransformer2DModel"),  # it may have been trained in that
        ("Transformer2DModel", False, "DiTTransformer2DModel"),
        ("", False, "DiTTransformer2DModel"),
        ("DiTExactTransformer2DModel", False, "DiTExactTransformer2DModel"),
        ("DiTExactTransformer2DModel", True, "DiTTransformer2DModel"),
    ],
)
def test_which_class_is_written(source_class: str | None, stock: bool, wanted: str) -> None:
    found = Findings({"image_size": 256}, stock=stock, source_class=source_class)
    DIT.describe(KEYS.survey(small(hidden_size=384, depth=12)), FakeState(1.0, hidden=384), found)
    assert DIT.config(found)["_class_name"] == wanted
    assert any(EXACT_LINE in note for note in found.diffusers_notes) == (wanted == "DiTTransformer2DModel")


# Folders.
CONFIG = {"_class_name": "Transformer2DModel", "num_attention_heads": 16, "sample_size": 32, "num_layers": 28}


def folder(**said: Any) -> Findings:
    found = Findings({})
    state = inventory("dit-xl-2-256")
    state = shaped(produced(KEYS.plan(state), state))
    DIT.describe(KEYS.targets.survey(state), FakeState(config=CONFIG | said), found)
    return found


def test_a_folder_is_described_by_its_config() -> None:
    found = folder()
    assert (found.problems, told(found, "image_size")) == ([], (256, "file"))
    assert (told(found, "num_attention_heads"), told(found, "num_classes")) == ((16, "file"), (1000, "file"))
    assert DIT.config(found)["sample_size"] == 32


@pytest.mark.parametrize(("key", "value"), [("num_layers", 27), ("num_embeds_ada_norm", 999), ("patch_size", 4)])
def test_a_config_that_contradicts_its_tensors(key: str, value: int) -> None:
    (problem,) = folder(**{key: value}).problems
    assert problem.startswith(f"config.json: {key}: {value} contradicts the tensors: ")


def test_a_config_of_nonsense() -> None:
    with pytest.raises(InputError, match=r"config\.json: sample_size: .* is not a sensible positive int"):
        folder(sample_size="32")
