"""Looking at a checkpoint: single elements in place, what the whole file is, and what stands against a conversion."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from makers import HEADS, diffusers_keyed, folder, pixart, save
from safetensors.torch import save_file

from converter import InputError, MappingError, UsageError, open_checkpoint
from converter.conversion.analysis import Analysis, analyse
from converter.conversion.checkpoint_state import CheckpointState

State = dict[str, torch.Tensor]


def look(path: Path, given: dict[str, Any] | None = None, family: str | None = None) -> Analysis:
    with open_checkpoint(path) as checkpoint:
        return analyse(checkpoint, given, family)


def looked(state: State, tmp_path: Path, **given: Any) -> Analysis:
    return look(save(state, tmp_path / "a.pth"), given)


# Elements.
def elements(path: Path, *positions: int) -> tuple[tuple[float, ...], float]:
    with open_checkpoint(path) as checkpoint:
        return CheckpointState(checkpoint).elements("t", *positions)


@pytest.mark.parametrize("container", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_elements_are_those_of_the_tensor(container: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    path = tmp_path / f"a.{container}"
    (torch.save if container == "pth" else save_file)({"before": torch.ones(7, dtype=dtype), "t": tensor}, path)
    values, rounding = elements(path, *range(60))
    assert list(values) == tensor.double().reshape(-1).tolist()
    # No smaller than what storing can be off by, and not so large that neighbours could be mistaken.
    half_place = torch.finfo(torch.float32 if dtype == torch.float64 else dtype).eps / 4
    assert half_place <= rounding < 1.1 * half_place + 2e-7


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations([0, 1, 2]), st.integers(0, 2), st.integers(1, 2))
def test_of_a_view_they_are_counted_row_by_row(tmp_path: Path, order: list[int], skip: int, step: int) -> None:
    base = torch.arange(7 * 3 * 8.0).reshape(7, 3, 8)
    tensor = base[skip::step, :, ::step].permute(order)
    torch.save({"t": tensor}, tmp_path / "a.pth")
    values, _ = elements(tmp_path / "a.pth", *range(tensor.numel()))
    assert list(values) == tensor.reshape(-1).tolist()


def test_there_is_none_outside_a_tensor_or_in_one_without_floats(tmp_path: Path) -> None:
    storage = torch.arange(10.0)
    torch.save({"t": storage[:4], "u": storage}, tmp_path / "a.pth")
    values, _ = elements(tmp_path / "a.pth", 3, 4, 9, 10**12)
    assert values[0] == 3
    assert all(map(math.isnan, values[1:]))
    for dtype in (torch.int64, torch.uint8, torch.bool):
        torch.save({"t": torch.ones(2, 2).to(dtype)}, tmp_path / "b.pth")
        assert all(map(math.isnan, elements(tmp_path / "b.pth", 0, 3)[0]))
        with open_checkpoint(tmp_path / "b.pth") as checkpoint:
            assert list(CheckpointState(checkpoint).rows("t")) == []


# What stands against a conversion.
def problems(state: State, tmp_path: Path, **given: Any) -> list[str]:
    """The problems, which `require()` raises all of in one line."""
    made = looked(state, tmp_path, num_attention_heads=HEADS, **given)
    with pytest.raises(MappingError) as caught:
        made.require()
    assert str(caught.value).startswith(f"{tmp_path / 'a.pth'}: not a PixArt that can be converted: ")
    assert caught.value.problems == made.plan.problems
    assert caught.value.problems[0] in str(caught.value)
    return caught.value.problems


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    made = looked(pixart(), tmp_path, num_attention_heads=HEADS)
    assert (made.problem, made.plan.problems) == ("", [])
    family = made.require()
    assert family.name == "pixart"
    assert made.config() == family.config(made.findings)
    assert not made.diffusers
    assert made.table is family.keys


def test_the_flat_weights_of_a_shard_are_what_is_said_first(tmp_path: Path) -> None:
    state = pixart()
    flat = {key: tensor.reshape(-1) for key, tensor in state.items()}
    first, *others = problems(flat, tmp_path)
    assert first == "every weight is flat: this looks like an FSDP or ZeRO shard; gather a full state dict first"
    assert any("has shape" in problem for problem in others)
    one = state | {"blocks.0.mlp.fc1.weight": flat["blocks.0.mlp.fc1.weight"]}
    assert all("flat" not in problem for problem in problems(one, tmp_path))
    without = {key: tensor for key, tensor in flat.items() if not key.endswith(".bias")}
    assert problems(without, tmp_path)[0] == first
    assert problems(diffusers_keyed(state) | {"proj_out.weight": torch.ones(3)}, tmp_path, image_size=128)[0] != first


def test_feed_forward_layers_of_another_width_are_said_first_and_without_a_list_of_shapes(tmp_path: Path) -> None:
    state = pixart()
    for key in [key for key in state if ".mlp.fc" in key and key.startswith("blocks.")]:
        axis = 1 if key.endswith("fc2.weight") else 0
        if not key.endswith("fc2.bias"):
            state[key] = state[key].narrow(axis, 0, state[key].shape[axis] // 2).clone()
    for layout in (state, diffusers_keyed(state)):
        (problem,) = problems(layout, tmp_path, **({} if layout is state else {"image_size": 128}))
        assert problem.startswith("its feed-forward layers are 2 times as wide as the model")
        assert "fixed at 4" in problem


WRONG: dict[str, tuple[State, str]] = {
    "shape": (
        {"blocks.1.mlp.fc1.weight": torch.ones(90, 24)},
        "blocks.1.mlp.fc1.weight has shape [90, 24], not [96, 24] (table: [F D])",
    ),
    "dtype": (
        {f"blocks.{i}.attn.qkv.weight": torch.ones(72, 24, dtype=torch.int8) for i in range(2)},
        "blocks.{0..1}.attn.qkv.weight is int8, and weights are floating point (a quantised model?)",
    ),
    "dtype of the table": (
        {"pos_embed": torch.ones(1, 64, 24, dtype=torch.int64)},
        "pos_embed is int64, and weights are floating point (a quantised model?)",
    ),
    "width of the table": (
        {"pos_embed": torch.ones(1, 4, 8)},
        "pos_embed has shape [1, 4, 8], not [1, 4, 24] (table: [1 N D])",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_and_nothing_else(name: str, tmp_path: Path) -> None:
    tensors, words = WRONG[name]
    assert problems(pixart() | tensors, tmp_path) == [words]


def test_what_no_family_knows(tmp_path: Path) -> None:
    made = looked({f"a.{i}.b": torch.ones(1) for i in range(3)} | {"zz": torch.ones(1)}, tmp_path)
    assert (made.family, made.plan.moves) == (None, [])
    with pytest.raises(
        InputError,
        match=r"a\.pth: no model family knows these keys: a\.\{0\.\.2\}\.b, zz; `pixart new-family` drafts a",
    ):
        made.require()
    many = looked({f"k{i}": torch.ones(1) for i in range(9)}, tmp_path)
    hint = "; `pixart new-family` drafts a family for them"
    assert many.problem == f"no model family knows these keys: k0, k1, k2, k3 ...{hint}"
    almost = looked(pixart() | {"zz": torch.ones(1)}, tmp_path)
    assert almost.plan.problems
    assert "new-family" not in str(almost.plan.problems)


@pytest.mark.parametrize("key", ["blocks.0.moe.experts.0.weight", "down_blocks.0.a", "x.lora_A.weight"])
def test_who_is_refused_by_name_is_told_of_no_draft(key: str, tmp_path: Path) -> None:
    problem = looked({key: torch.ones(1)}, tmp_path).problem
    assert problem.startswith("this is ")
    assert "new-family" not in problem


# What the user insists on.
def test_an_unknown_family_and_a_foreign_flag(tmp_path: Path) -> None:
    path = save(pixart(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"`family` unet: unknown; there are dit, pixart, pixart-controlnet, sana, or"):
        look(path, family="unet")
    with pytest.raises(UsageError, match=r"^colour, size: not a hyper-parameter of the family pixart, which has "):
        look(path, {"size": 3, "colour": "red", "image_size": 128})


def test_an_insisted_family_is_held_against_whatever_the_file_is(tmp_path: Path) -> None:
    made = look(save({"zz": torch.ones(1)}, tmp_path / "a.pth"), family="pixart")
    assert made.plan.problems[0] == "unknown key zz"
    assert "missing x_embedder.proj" in made.plan.problems
    assert made.findings["hidden_size"].source == "unknown"
    back = look(save(diffusers_keyed(pixart()), tmp_path / "b.pth"), family="pixart")
    assert back.diffusers
    assert back.plan.problems == []


def test_a_lost_last_block_shows_in_the_config_of_a_folder(tmp_path: Path) -> None:
    state = diffusers_keyed(pixart(depth=3))
    config = {"sample_size": 16, "num_attention_heads": 4, "num_layers": 3}
    assert look(folder(state, tmp_path / "whole", config)).plan.problems == []
    cut = {key: tensor for key, tensor in state.items() if not key.startswith("transformer_blocks.2.")}
    (problem,) = look(folder(cut, tmp_path / "cut", config)).plan.problems
    assert problem == "config.json: num_layers: 3 contradicts the tensors: blocks 0 to 1"


@pytest.mark.parametrize("lacks", ["state_dict", "ema"])
@pytest.mark.parametrize("keyed", [dict, diffusers_keyed])
def test_a_lost_last_block_shows_in_the_average_of_the_same_model(
    keyed: Callable[[State], State], lacks: str, tmp_path: Path
) -> None:
    """And in the raw weights, where the average lost it. Buffers, which many an average is without, are no weights."""
    whole, kept = keyed(pixart()), "ema" if lacks == "state_dict" else "state_dict"
    short = {key: tensor for key, tensor in whole.items() if "blocks.1." not in key and key != "pos_embed"}
    path = save({lacks: short, kept: whole}, tmp_path / "both.pth")
    kinds = {"state_dict": "raw", "ema": "EMA"}
    with open_checkpoint(path, state_dict_key=lacks) as checkpoint:
        (problem,) = analyse(checkpoint).plan.problems
    assert problem.startswith("missing ")
    assert ".1.scale_shift_table, " in problem
    assert problem.endswith(f" and {len(whole) - len(short) - ('pos_embed' in whole) - 4} more, which the "
                            f"{kinds[kept]} weights have ({kept})")  # fmt: skip
    with open_checkpoint(path, state_dict_key=kept) as checkpoint:
        assert not analyse(checkpoint).plan.problems


def test_another_model_in_the_file_may_be_deeper(tmp_path: Path) -> None:
    path = save({"student": pixart(depth=1), "student_ema": pixart(depth=1), "teacher": pixart()}, tmp_path / "a.pth")
    for place in ("student", "student_ema", "teacher"):
        with open_checkpoint(path, state_dict_key=place) as checkpoint:
            assert not analyse(checkpoint).plan.problems
    mean = {"student": pixart(depth=1), "teacher_ema": pixart()}
    with open_checkpoint(save(mean, tmp_path / "c.pth"), state_dict_key="student") as checkpoint:
        assert not analyse(checkpoint).plan.problems
    two = {"student": pixart(depth=1), "generator": pixart(), "generator_ema": pixart()}  # whose average is it?
    with open_checkpoint(save(two, tmp_path / "b.pth"), state_dict_key="student") as checkpoint:
        assert not analyse(checkpoint).plan.problems


def test_a_damaged_file_is_blamed_before_the_call(tmp_path: Path) -> None:
    state = pixart()
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"`interpolation_scale` 2\.0 contradicts the file"):
        look(path, {"interpolation_scale": 2.0})
    content = bytearray(path.read_bytes())
    token = state["pos_embed"][0, 1].numpy().astype(np.float32).tobytes()
    content[content.index(token) + 2] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC-32 mismatch"):
        look(path, {"interpolation_scale": 1.0, "image_size": 256})


def test_what_a_config_says_and_ours_would_not_is_a_problem(tmp_path: Path) -> None:
    state = diffusers_keyed(pixart())
    config: dict[str, Any] = {"sample_size": 16, "num_attention_heads": 4, "attention_head_dim": 6}
    same = {"_class_name": "Transformer2DModel", "_diffusers_version": "0.22", "norm_num_groups": 8, "dropout": 0.1,
            "upcast_attention": True, "norm_eps": None, "double_self_attention": False}  # fmt: skip
    assert look(folder(state, tmp_path / "same", config | same)).plan.problems == []
    changed = {"norm_eps": 1e-5, "activation_fn": "gelu", "norm_type": "layer_norm", "attention_head_dim": 99,
               "_class_name": "MyNet", "attention_bias": False}  # fmt: skip
    made = look(folder(state, tmp_path / "other", config | changed))
    assert {problem.split(":")[1].strip() for problem in made.plan.problems} == changed.keys()
    assert "config.json: norm_eps: 1e-05, and the converted model would have 1e-06" in made.plan.problems
    with pytest.raises(
        MappingError, match=r"other: not a PixArt that can be converted: config\.json: _class_name: MyN"
    ):
        made.require()
    both = look(folder(state, tmp_path / "both", config | {"num_layers": 9, "norm_eps": 1e-5})).plan.problems
    assert both[0] == "config.json: num_layers: 9 contradicts the tensors: blocks 0 to 1"
    assert len(both) == 2


def test_an_error_about_a_config_names_the_folder(tmp_path: Path) -> None:
    path = folder(diffusers_keyed(pixart()), tmp_path / "model", {"sample_size": "64"})
    with pytest.raises(InputError) as caught:
        look(path)
    assert str(caught.value).startswith(f"{path}: config.json: sample_size: 64 is not a sensible positive int")


@pytest.mark.parametrize(
    ("flag", "value"),
    [("multi_scale_train", "false"), ("qk_norm", 0), ("image_size", 512.0), ("image_size", "512"),
     ("num_attention_heads", True), ("interpolation_scale", "1"), ("interpolation_scale", True), ("version", 1)],
)  # fmt: skip
def test_a_word_of_another_type_is_refused(flag: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^`{flag}` .*: not (bool|int|float|str) but {type(value).__name__}$"):
        looked(pixart(), tmp_path, **{flag: value})
    found = looked(pixart(), tmp_path, interpolation_scale=1, image_size=128, multi_scale_train=False).findings
    assert found["interpolation_scale"].value == 1  # a whole scale may be an int


def test_matrices_that_all_went_wrong_in_the_same_way(tmp_path: Path) -> None:
    def turned(state: State, one: Any) -> State:
        return {k: one(t) if t.ndim == 2 and k.endswith(".weight") else t for k, t in state.items()}

    for state, size in ((pixart(), {}), (diffusers_keyed(pixart()), {"image_size": 128})):
        first, *others = problems(turned(state, lambda t: t.T.contiguous()), tmp_path, **size)
        assert first.endswith("every matrix is transposed: this looks like a Flax or JAX export")
        assert any("has shape" in problem for problem in others)
        for k in (2, 4):
            first, *_ = problems(turned(state, lambda t, k=k: t[: len(t) // k].clone()), tmp_path, **size)
            assert f"this looks like one of {k} tensor-parallel shards" in first
    one = pixart() | {"blocks.0.mlp.fc1.weight": torch.ones(24, 96)}
    assert not any("looks like" in problem for problem in problems(one, tmp_path))
    assert not any("looks like" in problem for problem in problems(pixart() | {"more": torch.ones(1)}, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [3, 1000, 400_000])
def test_a_tensor_comes_in_whole_rows_of_floats(tmp_path: Path, dtype: torch.dtype, width: int) -> None:
    """Whatever the pieces are that it is read in: shorter rows than a piece, and longer ones."""
    tensor = torch.arange(4 * 5 * width, dtype=torch.float32).remainder(251).to(dtype).reshape(1, 20, width)
    for view in (tensor, tensor[:, ::2]):
        torch.save({"t": view}, tmp_path / "a.pth")
        with open_checkpoint(tmp_path / "a.pth") as checkpoint:
            pieces = list(CheckpointState(checkpoint).rows("t"))
        assert [first for first, _ in pieces] == [sum(len(rows) for _, rows in pieces[:i]) for i in range(len(pieces))]
        assert torch.equal(torch.cat([torch.from_numpy(rows.copy()).double() for _, rows in pieces]), view[0].double())
