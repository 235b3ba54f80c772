"""The PixArt table: the laws on every released model, and the config that stock diffusers is built from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import pixart
from shaped import DIFFUSERS, EXTENDED, INVENTORIES, WHOLE, FakeState, Shaped, inventory, produced, shaped, small

from converter import Findings, MappingError, UsageError
from converter.mapping import Plan, fold
from converter.models.pixart.pixart_transformer import PixArtExtendedTransformer2DModel
from converter.models.pixart.table import KEYS, PIXART, buffer_mismatch

Shapes = dict[str, Shaped]
MICRO = {"micro_conditions": True}


@cache
def stock(kind: Any = PixArtTransformer2DModel, **config: Any) -> dict[str, tuple[int, ...]]:
    """The `state_dict()` of diffusers' class, or of the one that travels; it holds no non-persistent buffers."""
    with torch.device("meta"):
        model = kind(**config)
    assert dict(model.named_buffers()).keys() == {"pos_embed.pos_embed"}
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def built(plan: Plan, state: FakeState, **given: Any) -> dict[str, tuple[int, ...]]:
    """What stock diffusers builds from the family's own config."""
    found = Findings(given)
    PIXART.describe(plan, state, found)
    assert found.problems == []
    config = PIXART.config(found)
    name = config.pop("_class_name")
    assert (name == "PixArtTransformer2DModel") == (plan.groups <= {"micro_condition"})
    del config["_diffusers_version"]
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return stock(PixArtTransformer2DModel if "Extended" not in name else PixArtExtendedTransformer2DModel, **config)


def scale_in(name: str) -> float | None:
    return INVENTORIES[name]["interpolation_scale"] if "pos_embed" in INVENTORIES[name]["tensors"] else None


@pytest.mark.parametrize("name", WHOLE)
def test_exactly_what_stock_diffusers_has(name: str) -> None:
    state = inventory(name)
    plan = KEYS.plan(state)
    # Only one file does not say its own size.
    flags = {} if scale_in(name) else {"image_size": INVENTORIES[name]["image_size"]}
    assert produced(plan, state) == built(plan, FakeState(scale_in(name)), **flags)


def test_the_model_that_was_trained_in_diffusers() -> None:
    (name,) = DIFFUSERS
    state = inventory(name)
    back = KEYS.plan_back(state)
    assert sorted(key for move in back.moves for key in move.sources) == sorted(state)
    missing = {"pos_embed", "y_embedder.y_embedding"}  # neither is among diffusers' keys
    assert {move.targets[0] for move in back.moves} == inventory("alpha-512").keys() - missing
    config = {"sample_size": 64, "num_attention_heads": 16, "interpolation_scale": 1}
    assert {key: tensor.shape for key, tensor in state.items()} == built(
        KEYS.targets.plan(state), FakeState(config=config)
    )


def test_a_stray_null_caption_of_an_old_conversion_comes_home() -> None:
    state = pixart()
    made, left = KEYS(state), KEYS.left(state)
    strayed = made | {"caption_projection.y_embedding": left.pop("y_embedder.y_embedding")}
    back = KEYS.inverse(strayed, left)
    assert back.keys() == state.keys()
    assert torch.equal(back["y_embedder.y_embedding"], state["y_embedder.y_embedding"])


@pytest.mark.parametrize("depth", [1, 3, 42])
@pytest.mark.parametrize("sizes", [{}, MICRO, {"pred_sigma": False}, {"pos_embed": False}], ids=str)
def test_invertible_on_arrays_of_both_kinds(depth: int, sizes: dict[str, Any]) -> None:
    tensors = pixart(depth=depth, hidden_size=12, caption_channels=5, tokens=7, input_size=8, **sizes)
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    for state, equal in ((tensors, torch.equal), (arrays, np.array_equal)):
        made, left = KEYS(state), KEYS.left(state)
        assert left.keys() == {"pos_embed", "y_embedder.y_embedding"} & state.keys()
        back = KEYS.inverse(made, left)
        assert back.keys() == state.keys()
        assert all(equal(back[key], state[key]) for key in state)
        again = KEYS(KEYS.inverse(made))
        assert all(equal(again[key], made[key]) for key in made)


def test_queries_keys_and_values_are_the_rows_in_this_order() -> None:
    state = pixart(depth=1)
    made = KEYS(state)
    hidden = made["proj_out.weight"].shape[1]
    for part, rows in (("q", 0), ("k", 1), ("v", 2)):
        wanted = state["blocks.0.attn.qkv.weight"][rows * hidden : (rows + 1) * hidden]
        assert torch.equal(made[f"transformer_blocks.0.attn1.to_{part}.weight"], wanted)
    for part, rows in (("k", 0), ("v", 1)):
        wanted = state["blocks.0.cross_attn.kv_linear.bias"][rows * hidden : (rows + 1) * hidden]
        assert torch.equal(made[f"transformer_blocks.0.attn2.to_{part}.bias"], wanted)


# Complete: what a model lacks or has too much is named.
@pytest.mark.parametrize("name", [name for name in WHOLE if name not in EXTENDED])
def test_what_is_missing_from_a_whole_model_is_named(name: str) -> None:
    state = inventory(name)
    depth = KEYS.plan(state).blocks
    assert depth == (42 if "900m" in name else 28)

    def problems(gone: Iterable[str] = (), more: Iterable[str] = ()) -> list[str]:
        changed = {key: tensor for key, tensor in state.items() if key not in set(gone)}
        with pytest.raises(MappingError) as caught:
            KEYS.plan(changed | dict.fromkeys(more, Shaped((1152,))))
        assert caught.value.exit_code == 3
        return caught.value.problems

    in_every_block = [row.source for row in KEYS.rows if row.counts and not row.group]
    assert set(problems([key for key in state if key.startswith("blocks.7.")])) == {
        f"missing {source.replace('{}', '{7}')}" for source in in_every_block
    }
    assert problems(["blocks.5.attn.qkv.bias"]) == ["missing blocks.5.attn.qkv.bias"]
    biases = [f"blocks.{i}.mlp.fc1.bias" for i in (3, 4, 9)]
    assert problems(biases) == ["missing blocks.{3..4,9}.mlp.fc1.bias"]
    assert problems(["x_embedder.proj.weight", "x_embedder.proj.bias"]) == ["missing x_embedder.proj"]
    assert problems(["final_layer.scale_shift_table"]) == ["missing final_layer.scale_shift_table"]
    assert problems(more=[f"blocks.{i}.attn.qkvv.weight" for i in range(depth)]) == [
        f"unknown key blocks.{{0..{depth - 1}}}.attn.qkvv.weight (nearest row: blocks.{{}}.attn.qkv)"
    ]
    # The last block counts as one as soon as anything of it is there.
    last = [key for key in state if key.startswith(f"blocks.{depth - 1}.")]
    assert len(problems(last[1:])) == 7


def test_micro_conditions_are_there_whole_or_not_at_all() -> None:
    state = inventory("alpha-1024-ms")
    for key in [key for key in state if key.startswith(("csize", "ar_"))]:
        with pytest.raises(MappingError, match=rf"missing {key}"):
            KEYS.plan({k: t for k, t in state.items() if k != key})
    without = {key: tensor for key, tensor in state.items() if not key.startswith("ar_")}
    with pytest.raises(MappingError, match=r"missing ar_embedder.mlp.0 \(the micro_condition group is incomplete\)"):
        KEYS.plan(without)


@pytest.mark.parametrize("name", EXTENDED)
def test_what_stock_diffusers_cannot_hold_has_another_class(name: str) -> None:
    state = inventory(name)
    plan, found = KEYS.plan(state), Findings({}, stock=True)
    PIXART.describe(plan, FakeState(scale_in(name)), found)
    with pytest.raises(
        UsageError, match=r"^`stock`: this model .*, which diffusers' PixArtTransformer2DModel does not"
    ):
        PIXART.config(found)
    cut = {key: t for key, t in state.items() if not key.startswith(("blocks.20.attn.norm", "blocks.20.attn.k_norm"))}
    plan, found = KEYS.survey(cut), Findings({})
    PIXART.describe(plan, FakeState(scale_in(name)), found)
    (problem,) = plan.problems + found.problems
    wanted = "missing blocks.{20}.attn.k_norm (the qk_norm group is incomplete)"
    if name.endswith("kvcompress"):
        assert problem.startswith("kv_compress: blocks.{}.attn.sr in 14, ")
        assert problem.endswith(": a block that compresses has a convolution and its norm")
    else:
        assert problem == wanted


def test_relative_positions_are_refused_by_name() -> None:
    tables = {f"blocks.{i}.attn.rel_pos_{axis}": Shaped((63, 72)) for i in range(28) for axis in "hw"}
    with pytest.raises(MappingError, match=r"^use_rel_pos: this model has relative positions"):
        KEYS.plan(inventory("alpha-512") | tables)


@pytest.mark.parametrize("name", ["delta-controlnet-512", "delta-controlnet-1024"])
def test_a_controlnet_does_not_fit(name: str) -> None:
    with pytest.raises(MappingError, match="unknown key base_model"):
        KEYS.plan(inventory(name))


# The same, on models of any size.
SIZES = st.fixed_dictionaries({
    "depth": st.integers(1, 4),
    "hidden_size": st.sampled_from([12, 24, 36]),
    "caption_channels": st.integers(1, 9),
    "tokens": st.integers(1, 9),
    "patch_size": st.integers(1, 3),
    "in_channels": st.integers(1, 5),
    "pred_sigma": st.booleans(),
    "micro_conditions": st.booleans(),
    "pos_embed": st.booleans(),
    "input_size": st.just(12),
})  # fmt: skip
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(SIZES)
def test_a_bijection_with_stock_diffusers_at_any_size(sizes: dict[str, Any]) -> None:
    state = small(**sizes)
    plan = KEYS.plan(state)
    made = produced(plan, state)
    flags = {"num_attention_heads": 4, "image_size": 96, "interpolation_scale": 2.0}
    looked = FakeState(2.0 if sizes["pos_embed"] else None, hidden=sizes["hidden_size"])
    assert made == built(plan, looked, **flags)
    back = KEYS.plan_back(shaped(made))
    assert {(m.targets, m.sources) for m in back.moves} == {(m.sources, m.targets) for m in plan.moves}
    assert len(plan.moves) + len(plan.extras) + len(plan.computed) == len(state)


@settings(max_examples=150)
@given(st.data())
def test_any_single_mutation_of_the_keys_is_refused(data: st.DataObject) -> None:
    state = small(**data.draw(SIZES))
    kind = data.draw(st.sampled_from(["drop", "add", "rename", "swap block", "misspell"]))
    optional = {"pos_embed", "y_embedder.y_embedding"}  # buffers, not weights
    key = data.draw(st.sampled_from(sorted(state.keys() - optional)))
    tensor = state[key]
    changed = {k: t for k, t in state.items() if k != key or kind == "add"}
    if kind == "drop":
        named = [key, key.removesuffix(".weight").removesuffix(".bias")]
    else:
        if kind == "misspell":
            place = data.draw(st.integers(0, len(key) - 1))
            letter = data.draw(st.sampled_from("abcqkvxyz_019."))
            new = key[:place] + letter + key[place + data.draw(st.integers(0, 1)) :]
        elif kind == "swap block":
            new = key.replace("0", data.draw(st.sampled_from(["1", "2", "7", "00"])), 1)
        else:
            prefix = data.draw(st.sampled_from(["", "module.", "blocks.9.", "controlnet.0."]))
            new = prefix + data.draw(st.sampled_from([key, "blocks.0.attn.qkv.scale", "extra", "pos_embed.weight"]))
        if new in state or new in optional:
            return
        changed[new] = tensor
        named = [new, key]
    with pytest.raises(MappingError) as caught:
        KEYS.plan(changed)
    shown = str(caught.value)
    stems = {form.rpartition(".")[0] for form in named if "." in form} | set(named)
    assert any(fold([stem])[0] in shown or _among(stem, shown) for stem in stems)


def _among(key: str, shown: str) -> bool:
    """Whether a key is one of those that a message folds: `blocks.{0..1,4}.attn.qkv`."""
    return any(
        key == f"blocks.{index}{tail}"
        for inside, tail in re.findall(r"\bblocks\.\{([\d.,]+)\}(\.[\w.]*\w)", shown)
        for low, _, high in (run.partition("..") for run in inside.split(","))
        for index in range(int(low), int(high or low) + 1)
    )


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_no_tensor_of_any_row_may_have_another_size(layout: str) -> None:
    state, table = small(depth=3, hidden_size=12, caption_channels=5, tokens=7, micro_conditions=True), KEYS
    # What no other tensor shows is what the file says.
    alone = {
        ("pos_embed", 1),
        ("y_embedder.y_embedding", 0),
        ("x_embedder.proj.weight", 1),
        ("pos_embed.proj.weight", 1),
    }
    # Of two tensors that contradict one another, either may be the wrong one.
    twins = {("final_layer.linear.weight", 0), ("proj_out.weight", 0), ("y_embedder.y_proj.fc1.weight", 1)}
    if layout == "diffusers":
        state, table = shaped(produced(KEYS.plan(state), state)), KEYS.targets
        alone.add(("caption_projection.linear_1.weight", 1))
    for key, tensor in state.items():
        for axis, size in enumerate(tensor.shape):
            if (key, axis) in alone:
                continue
            wrong = list(tensor.shape)
            wrong[axis] = size + 5
            said = table.survey(state | {key: Shaped(tuple(wrong))}).problems
            assert said, (key, axis)
            assert (key, axis) in twins or said[0].startswith(f"{key} has shape {wrong}, "), (key, axis)


@pytest.mark.parametrize(("rows", "channels"), [(33, "33/4"), (24, "6"), (48, "12")])  # of 4 latent channels at patch 2
def test_an_output_layer_that_no_such_model_has(rows: int, channels: str) -> None:
    state = inventory("alpha-512")
    state["final_layer.linear.weight"], state["final_layer.linear.bias"] = Shaped((rows, 1152)), Shaped((rows,))
    found = Findings({})
    PIXART.describe(KEYS.survey(state), FakeState(1.0), found)
    assert found.problems == [
        f"final_layer.linear.weight [{rows}, 1152]: {rows} rows / patch 2 squared are {channels} output channels: "
        "neither 4 nor twice as many"
    ]


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_feed_forward_layers_of_another_width(layout: str) -> None:
    state = small(depth=2, hidden_size=72)
    for i in range(2):
        state[f"blocks.{i}.mlp.fc1.weight"] = Shaped((216, 72))
        state[f"blocks.{i}.mlp.fc1.bias"] = Shaped((216,))
        state[f"blocks.{i}.mlp.fc2.weight"] = Shaped((72, 216))
    table, where = KEYS, "blocks.0.mlp.fc1.weight"
    if layout == "diffusers":
        state, table = shaped(produced(KEYS.plan(state), state)), KEYS.targets
        where = "transformer_blocks.0.ff.net.0.proj.weight"
    found = Findings({})
    PIXART.describe(table.plan(state), FakeState(1.0, hidden=72), found)
    assert found.problems == [
        "its feed-forward layers are 3 times as wide as the model, and the diffusers class is fixed at 4: "
        f"{where} [216, 72]"
    ]


def test_a_hidden_size_without_sines_and_cosines() -> None:
    found = Findings({})
    PIXART.describe(KEYS.plan(small(hidden_size=6)), FakeState(1.0, hidden=6), found)
    assert found.problems == ["hidden size 6: sines and cosines on two axes need a multiple of 4"]


# The config.
def test_every_field_that_diffusers_would_guess_is_written() -> None:
    found = Findings({})
    PIXART.describe(KEYS.plan(inventory("sigma-2k-ms")), FakeState(4.0), found)
    config = PIXART.config(found)
    import inspect

    parameters = set(inspect.signature(PixArtTransformer2DModel.__init__).parameters) - {"self"}
    assert {key for key in config if not key.startswith("_")} == parameters
    with torch.device("meta"):
        model = PixArtTransformer2DModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    assert {key: model.config[key] for key in parameters} == {key: config[key] for key in parameters}
    assert (config["sample_size"], config["interpolation_scale"], config["use_additional_conditions"]) == (
        256,
        4,
        False,
    )


@pytest.mark.parametrize(("scale", "written"), [(2.0, int), (0.5, float), (2.02, float)])
def test_a_whole_scale_is_written_as_one(scale: float, written: type) -> None:
    found = Findings({})
    PIXART.describe(KEYS.plan(inventory("sigma-1024-ms")), FakeState(scale), found)
    value = PIXART.config(found)["interpolation_scale"]
    assert value == scale
    assert type(value) is written


@pytest.mark.parametrize("name", ["num_attention_heads", "image_size", "interpolation_scale"])
def test_the_config_asks_for_what_is_unknown(name: str) -> None:
    flags = {"num_attention_heads": 4, "image_size": 256, "interpolation_scale": 1.5}
    found = Findings({flag: value for flag, value in flags.items() if flag != name})
    PIXART.describe(KEYS.plan(small(hidden_size=12, pos_embed=False, tokens=9)), FakeState(), found)
    with pytest.raises(UsageError, match=rf"^`{name}` is needed: "):
        PIXART.config(found)
    found = Findings(flags)
    PIXART.describe(KEYS.plan(small(hidden_size=12, pos_embed=False, tokens=9)), FakeState(), found)
    config = PIXART.config(found)
    assert (config["num_attention_heads"], config["attention_head_dim"]) == (4, 3)
    assert (config["sample_size"], config["interpolation_scale"]) == (32, 1.5)


def test_what_a_stored_table_is_that_recomputing_does_not_give() -> None:
    def said(difference: float, scale: float | None, state: Shapes, **given: Any) -> tuple[bool, str]:
        found = Findings(given)
        PIXART.describe(KEYS.plan(state), FakeState(scale), found)
        return buffer_mismatch(found, difference)

    fixed, multi = inventory("alpha-512"), inventory("alpha-512-ms")
    assert said(6e-8, 1.0, fixed) == (True, "is the sin-cos table up to rounding (by up to 6e-08)")
    assert said(1.0, None, multi) == (True, "is no sin-cos table, and the multi-scale class never uses it")
    assert said(1.0, None, fixed, multi_scale_train=True)[0]
    dispensable, what = said(1.0, None, fixed)
    assert not dispensable
    assert "--multi_scale_train true" in what
    placeholder = inventory("sigma-1024-ms")
    assert said(1.0, 1.0, placeholder, image_size=512) == (
        True,
        "is not the table of the size and scale that were given, and the multi-scale class never uses it",
    )


def test_a_fixed_size_net_keeps_its_table_whatever_size_is_said() -> None:
    """No word on the size makes a table superfluous that the net adds to its input; OneTrainer's placeholder may be
    one that it never had."""
    for positions, words, dispensable in (
        (50, {"image_size": 512}, False),
        (1024, {"interpolation_scale": 1.0}, False),
        (4096, {"interpolation_scale": 2.0}, True),
        (4096, {"image_size": 512}, True),
    ):
        state = inventory("alpha-512") | {"pos_embed": Shaped((1, positions, 1152))}
        found = Findings({"multi_scale_train": False} | words)
        PIXART.describe(KEYS.plan(state), FakeState(1.0 if positions == 4096 else None), found)
        said, what = buffer_mismatch(found, 1.0)
        assert said is dispensable
        assert ("OneTrainer" if dispensable else "the fixed-size class uses it") in what


def test_a_scale_is_not_read_off_a_table_that_only_begins_like_one() -> None:
    found = Findings({})
    PIXART.describe(KEYS.plan(inventory("sigma-1024-ms")), FakeState(2.0), found)
    with pytest.raises(UsageError, match=r"^`interpolation_scale` is needed: pos_embed only begins like .* scale 2 "):
        buffer_mismatch(found, 3.0)
    assert buffer_mismatch(found, 1e-7)[0]
    said = Findings({"interpolation_scale": 2.0})
    PIXART.describe(KEYS.plan(inventory("sigma-1024-ms")), FakeState(2.0), said)
    assert buffer_mismatch(said, 3.0) == (True, "is no sin-cos table, and the multi-scale class never uses it")


@settings(max_examples=100)
@given(st.data())
def test_any_wrong_shape_is_refused_and_named(data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    state = small(**sizes)
    # What only one tensor shows is no contradiction: it is what the file says.
    alone = {("pos_embed", 1), ("y_embedder.y_embedding", 0), ("x_embedder.proj.weight", 1)}
    key = data.draw(st.sampled_from(sorted(state)))
    shape = list(state[key].shape)
    axis = data.draw(st.integers(0, len(shape) - 1))
    if (key, axis) not in alone and data.draw(st.booleans()):
        shape[axis] = data.draw(st.integers(0, 200).filter(lambda size: size != shape[axis]))
    elif data.draw(st.booleans()):
        shape.insert(axis, 1)
    else:
        del shape[axis]
    with pytest.raises(MappingError) as caught:
        KEYS.plan(state | {key: Shaped(tuple(shape))})
    # Two tensors that contradict one another: either may be the wrong one.
    pairs = [{"x_embedder.proj.weight"}, {"final_layer.linear.weight", "final_layer.linear.bias"},
             {"y_embedder.y_embedding", "y_embedder.y_proj.fc1.weight"}]  # fmt: skip
    suspects = next((pair for pair in pairs if key in pair), {key})
    assert any(problem.startswith(f"{suspect} has shape") for problem in caught.value.problems for suspect in suspects)
