"""A family in one file, with nothing to edit elsewhere: converted, reverted, compared and audited bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import digest, save
from safetensors.torch import load_file, save_file
from two_stacks import KEYS, state

import converter
from converter import InputError, KeyMapping, MappingError, Reorder, UsageError
from converter.conversion.up_to_date import is_up_to_date
from converter.conversion.zeros import find_zeros
from converter.mapping import ZeroInit
from converter.parity.catalogue import catalogue

FAMILY = str(Path(__file__).parents[1] / "two_stacks.py")
State = dict[str, torch.Tensor]


def written(made: State, path: Path) -> Path:
    made = {key: tensor.clone() for key, tensor in made.items()}
    if path.suffix == ".safetensors":
        save_file(made, path)
        return path
    return save(made, path)


def loaded(path: Path) -> State:
    if path.suffix == ".safetensors":
        return load_file(path)
    held = torch.load(path, weights_only=True)
    return dict(held.get("state_dict", held))


def model(folder: Path) -> State:
    return load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


@pytest.fixture(scope="module")
def theirs() -> State:
    """What the target has to hold, written out by hand."""
    ours, made = state(), dict[str, torch.Tensor]()
    for suffix in ("weight", "bias"):
        made[f"x_embedder.{suffix}"] = ours[f"img_in.{suffix}"]
        shift, scale = ours[f"final.mod.{suffix}"].chunk(2)
        made[f"norm_out.linear.{suffix}"] = torch.cat([scale, shift])
        for i in range(3):
            for name, part in zip("qkv", ours[f"double_blocks.{i}.attn.qkv.{suffix}"].chunk(3), strict=True):
                made[f"transformer_blocks.{i}.to_{name}.{suffix}"] = part
            shift, scale = ours[f"double_blocks.{i}.mod.{suffix}"].chunk(2)
            made[f"transformer_blocks.{i}.norm.linear.{suffix}"] = torch.cat([scale, shift])
        for i in range(5):
            made[f"single_transformer_blocks.{i}.norm.emb.{suffix}"] = ours[f"time_in.{suffix}"]
            for name, part in zip(
                ("proj", "value", "gate"), ours[f"single_blocks.{i}.linear1.{suffix}"].chunk(3), strict=True
            ):
                made[f"single_transformer_blocks.{i}.{name}.{suffix}"] = part
    for i in range(5):
        made[f"single_transformer_blocks.{i}.table"] = ours[f"single_blocks.{i}.table"][[1, 0, 2, 4, 3, 5]]
    return made


def test_the_file_is_short() -> None:
    assert len(Path(FAMILY).read_text().splitlines()) < 120


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("back", [".pth", ".safetensors"])
def test_there_and_back(suffix: str, back: str, theirs: State, tmp_path: Path) -> None:
    source = written(state(), tmp_path / f"toy{suffix}")
    done = converter.convert(source, tmp_path / "out", family=FAMILY)
    assert same(model(done.path), theirs)
    assert json.loads((done.path / "transformer" / "config.json").read_text()) == {
        "_class_name": "Toy", "width": 8, "depth": 3, "single_depth": 5,
    }  # fmt: skip
    rows = {row["source"]: row for row in done.record["plan"]}
    assert rows["final.mod.weight"]["operation"] == "reorder"
    wanted = digest(theirs["norm_out.linear.weight"].numpy().tobytes())
    assert json.loads((done.path / "conversion.json").read_text())["plan"] == done.record["plan"]
    assert rows["final.mod.weight"]["digests"] == {"norm_out.linear.weight": wanted}
    assert all(rows[key]["reproduced"] for key in ("pos.freqs", "pos.grid", "single_blocks.4.freqs"))
    reverted = converter.convert(tmp_path / "out", tmp_path / f"back{back}", to="original", family=FAMILY)
    assert same(loaded(reverted.path), state())
    rows = {row["source"]: row for row in reverted.record["plan"]}
    assert rows["norm_out.linear.weight"]["operation"] == "reorder"
    assert any("are what" in note or "is what" in note for note in reverted.notes)
    assert converter.convert(source, tmp_path / "again.pth", to="original", family=FAMILY).written


def test_the_way_back_without_a_record(theirs: State, tmp_path: Path) -> None:
    done = converter.convert(written(state(), tmp_path / "toy.pth"), tmp_path / "out", family=FAMILY)
    (done.path / "conversion.json").unlink()
    (done.path / "original_extras.safetensors").unlink()
    reverted = converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original", family=FAMILY)
    assert same(loaded(reverted.path), {key: tensor for key, tensor in state().items() if key != "null"})
    assert "single_blocks.{0..4}.freqs: computed, since diffusers stores none" in reverted.notes


def test_what_was_changed_since_is_said(tmp_path: Path) -> None:
    done = converter.convert(written(state(), tmp_path / "toy.pth"), tmp_path / "out", family=FAMILY)
    changed = model(done.path)
    changed["norm_out.linear.weight"][3, 3] += 1
    save_file(changed, done.path / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    reverted = converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original", family=FAMILY)
    assert set(reverted.record["changed"]) == {"norm_out.linear.weight"}
    assert loaded(reverted.path)["final.mod.weight"][11, 3] == changed["norm_out.linear.weight"][3, 3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast(dtype: str, theirs: State, tmp_path: Path) -> None:
    source = written(state(), tmp_path / "toy.pth")
    done = converter.convert(source, tmp_path / "out", family=FAMILY, dtype=dtype)
    assert same(model(done.path), {key: tensor.to(getattr(torch, dtype)) for key, tensor in theirs.items()})


def test_diff(tmp_path: Path) -> None:
    converter.register(converter.families.find(FAMILY))
    try:
        source = written(state(), tmp_path / "toy.pth")
        done = converter.convert(source, tmp_path / "out")
        assert converter.diff(source, done.path).words.endswith("byte for byte")
        changed = model(done.path)
        changed["norm_out.linear.bias"] = changed["norm_out.linear.bias"].roll(8)
        save_file(changed, done.path / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        (weights,) = converter.diff(source, done.path).comparisons
        assert [tensor.key for tensor in weights.tensors if tensor.kind != "identical"] == ["final.mod.bias"]
    finally:
        converter.families._REGISTERED.clear()


def test_parity(cli: Callable[..., Any], tmp_path: Path) -> None:
    source = written(state(), tmp_path / "toy.pth")
    done = converter.convert(source, tmp_path / "out", family=FAMILY)
    call = ("pixart", "parity", "--orig_ckpt_path", source, "--converted_path", done.path, "--family", FAMILY)
    said = cli(*call)
    assert said.returncode == 4, said.stdout  # nothing was found wrong, and there are no nets to run
    assert "in the model byte for byte" in said.stdout
    changed = model(done.path)
    changed["transformer_blocks.2.norm.linear.weight"] = changed["transformer_blocks.2.norm.linear.weight"].roll(8, 0)
    save_file(changed, done.path / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    said = cli(*call)
    assert said.returncode == 1
    assert "transformer_blocks.2.norm.linear.weight" in said.stdout


def test_a_hole_in_either_stack_is_found_and_stacks_are_counted_by_themselves() -> None:
    plan = KEYS.plan(state(19, 38))
    assert plan.stacks == {"double_blocks": 19, "single_blocks": 38}
    assert KEYS.plan_back(KEYS(state(19, 38))).stacks == plan.stacks
    with pytest.raises(ValueError, match=r"name one, as in plan\.stacks\['double_blocks'\]"):
        _ = plan.blocks
    for stack, path in (("double_blocks", "double_blocks.{17}.mod"), ("single_blocks", "single_blocks.{17}.linear1")):
        holed = {key: tensor for key, tensor in state(19, 38).items() if not key.startswith(f"{stack}.17.")}
        with pytest.raises(MappingError, match=f"missing {path}".replace("{", r"\{").replace("}", r"\}")):
            KEYS.plan(holed)
    made = KEYS(state(19, 38))
    del made["single_transformer_blocks.30.norm.emb.bias"]
    with pytest.raises(MappingError, match=r"missing single_transformer_blocks\.30\.norm\.emb\.bias"):
        KEYS.plan_back(made)


# Buffers that are arrays.
BUFFER = """
import numpy as np, torch
import converter
from converter import Computed, Family, KeyMapping

FAMILY = Family(
    "buffered", "Buffered", KeyMapping({{"a.{{}} [D D]": "b.{{}}", "rope [N]": Computed(lambda found: {value})}}),
    lambda plan, state, found: None, lambda found: {{"_class_name": "Buffered"}}, {more}
)
"""


def buffered(tmp_path: Path, value: str, rope: torch.Tensor, more: str = "") -> tuple[Path, str]:
    path = tmp_path / "family.py"
    path.write_text(BUFFER.format(value=value, more=more))
    made = {"a.0.weight": torch.ones(4, 4), "a.0.bias": torch.ones(4), "rope": rope}
    return written(made, tmp_path / "model.pth"), str(path)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[1.0, 2.0]", "a list"),
        ("None", "a NoneType"),
        ("torch.arange(4)", "an array of int64"),
        ("np.zeros(4, complex)", "an array of complex128"),
        ("np.zeros(4, bool)", "an array of bool"),
        ("np.array(['a'] * 4)", "an array of"),
    ],
)
def test_what_is_no_array_of_floats_is_one_line_that_names_the_row(value: str, said: str, tmp_path: Path) -> None:
    source, family = buffered(tmp_path, value, torch.zeros(4))
    with pytest.raises(UsageError, match=f"the row 'rope' of the family buffered computes {said}"):
        converter.convert(source, tmp_path / "out", family=family)


def test_an_array_of_another_shape_names_the_row(tmp_path: Path) -> None:
    source, family = buffered(tmp_path, "torch.zeros(6)", torch.zeros(4))
    with pytest.raises(InputError, match=r"rope: has shape \[4\], and the row 'rope' of the family .* computes \[6\]"):
        converter.convert(source, tmp_path / "out", family=family)
    source, family = buffered(tmp_path, "torch.zeros(4)", torch.zeros(4))
    done = converter.convert(source, tmp_path / "out", family=family)
    (done.path / "conversion.json").unlink()
    _, family = buffered(tmp_path, "torch.zeros(4, 2)", torch.zeros(4))
    with pytest.raises(UsageError, match=r"the row 'rope' of the family buffered computes the shape \[4, 2\]"):
        converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original", family=family)


def test_an_array_that_differs_is_refused_or_kept_as_the_family_says(tmp_path: Path) -> None:
    source, family = buffered(tmp_path, "torch.zeros(4)", torch.tensor([0.0, 0, 0, 0.5]))
    with pytest.raises(InputError, match=r"rope: is not what the target computes \(by up to 0\.5\)"):
        converter.convert(source, tmp_path / "out", family=family)
    more = "buffer_mismatch=lambda found, difference: (True, f'is off by {difference:g}'),"
    source, family = buffered(tmp_path, "torch.zeros(4)", torch.tensor([0.0, 0, 0, 0.5]), more)
    done = converter.convert(source, tmp_path / "out", family=family)
    assert torch.equal(load_file(done.path / "original_extras.safetensors")["rope"], torch.tensor([0.0, 0, 0, 0.5]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_buffer_without_a_record_has_the_dtype_of_the_array(dtype: str, tmp_path: Path) -> None:
    rope = torch.rand(4, dtype=torch.float64).to(getattr(torch, dtype))
    value = f"torch.tensor({rope.tolist()}, dtype=torch.{dtype}, requires_grad=True)"
    source, family = buffered(tmp_path, value, rope)
    done = converter.convert(source, tmp_path / "out", family=family)
    (done.path / "conversion.json").unlink()
    back = converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original", family=family)
    assert same({"rope": loaded(back.path)["rope"]}, {"rope": rope})


@pytest.mark.parametrize(
    "value",
    ["np.arange(4, dtype='>f4')", "np.arange(8, dtype=np.float32)[::2] / 2", "torch.arange(4.0).flip(0).flip(0)"],
)
def test_an_array_in_any_byte_order_and_of_any_strides(value: str, tmp_path: Path) -> None:
    source, family = buffered(tmp_path, value, torch.arange(4.0))
    done = converter.convert(source, tmp_path / "out", family=family)
    back = converter.convert(done.path, tmp_path / "back.pth", to="original", family=family)
    assert same({"rope": loaded(back.path)["rope"]}, {"rope": torch.arange(4.0)})


def test_one_number_and_none_at_all(tmp_path: Path) -> None:
    for value, rope in (("torch.tensor(0.5)", torch.tensor(0.5)), ("np.zeros((0, 3), np.float32)", torch.zeros(0, 3))):
        source, family = buffered(tmp_path, value, rope)
        text = Path(family).read_text().replace("rope [N]", "rope")
        Path(family).write_text(text)
        done = converter.convert(source, tmp_path / "out", family=family, overwrite=True)
        back = converter.convert(done.path, tmp_path / "back.pth", to="original", family=family, overwrite=True)
        assert same({"rope": loaded(back.path)["rope"]}, {"rope": rope})


def test_faults_are_in_both_stacks_and_in_the_order_of_rows() -> None:
    plan = KEYS.plan(state())
    faults = {fault.name: fault for fault in catalogue(plan)}
    assert len(faults) == len(catalogue(plan))
    theirs = KEYS(state())
    for stack, last in (("double_blocks", 2), ("single_blocks", 4)):
        for name in (f"blocks of {stack} off by one", f"block {last} of {stack} lost"):
            fault = faults[name]
            keys = {*fault.weights, *(origin for origin, _ in fault.weights.values()), *fault.drop}
            head = "transformer_blocks." if stack == "double_blocks" else "single_transformer_blocks."
            assert keys <= theirs.keys()
            assert {key.partition(".")[0] + "." for key in keys} == {head}
    undone = faults["rows of norm.linear of block 2 of double_blocks in the original's order"]
    key = "transformer_blocks.2.norm.linear.weight"
    origin, change = undone.weights[key]
    assert change
    assert torch.equal(change(theirs[origin]), state()["double_blocks.2.mod.weight"])
    swapped = faults["proj and value swapped in block 4 of single_blocks"].weights
    assert swapped["single_transformer_blocks.4.proj.bias"][0] == "single_transformer_blocks.4.value.bias"
    assert "bias off by a last bit in one of 5 copies: single_transformer_blocks.4.norm.emb.bias" in faults


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    source = written(state(), tmp_path / "toy.pth")
    for options in ({"to": "diffusers"}, {"to": "diffusers", "dtype": "float16"}):
        target = tmp_path / f"out{len(options)}"
        assert is_up_to_date(source, target, family=FAMILY, **options) is None
        converter.convert(source, target, family=FAMILY, **options)
        assert is_up_to_date(source, target, family=FAMILY, **options) == []
    back = tmp_path / "back.pth"
    converter.convert(tmp_path / "out1", back, to="original", family=FAMILY)
    assert is_up_to_date(tmp_path / "out1", back, to="original", family=FAMILY) is not None
    kept = loaded(back)
    kept["final.mod.weight"] = kept["final.mod.weight"].roll(8, 0)
    written(kept, back)
    assert is_up_to_date(tmp_path / "out1", back, to="original", family=FAMILY) is None


def test_zeros_are_told_by_the_part_of_the_target(tmp_path: Path) -> None:
    made = state()
    keys = KeyMapping(
        {"b.{}.kv [2D D]": Reorder(("t.{}.v", "t.{}.k"), (1, 0)), "b.{}.mod [2D D]": ZeroInit("t.{}.mod")}
    )
    made = {f"b.{i}.{name}.weight": torch.ones(8, 4) for i in range(2) for name in ("kv", "mod")}
    made |= {f"b.{i}.{name}.bias": torch.ones(8) for i in range(2) for name in ("kv", "mod")}
    made["b.1.kv.weight"][:4] = 0  # what becomes k
    family = converter.Family("toy", "Toy", keys, lambda *_: None, lambda found: {"_class_name": "Toy"})
    with converter.open_checkpoint(written(made, tmp_path / "toy.pth")) as opened:
        assert find_zeros(keys.plan(opened), opened).lost == ["b.1.kv.weight (k)"]
    made["b.1.kv.weight"][4:] = 0
    with converter.open_checkpoint(written(made, tmp_path / "toy.pth")) as opened:
        assert find_zeros(keys.plan(opened), opened).lost == ["b.1.kv.weight"]
    converter.register(family)
    try:
        for suffix in (".pth", ".safetensors"):
            made["b.1.kv.weight"][4:] = suffix == ".pth"
            with pytest.raises(InputError, match=r"b\.1\.kv\.weight \(k\)|b\.1\.kv\.weight "):
                converter.convert(written(made, tmp_path / f"toy{suffix}"), tmp_path / "out")
    finally:
        converter.families._REGISTERED.clear()


def test_damage_to_an_archive_is_found_where_rows_change_places(tmp_path: Path) -> None:
    source = written(state(), tmp_path / "toy.pth")
    data = bytearray(source.read_bytes())
    wanted = state()["final.mod.weight"].numpy().tobytes()
    data[data.index(wanted) + 700] ^= 1
    source.write_bytes(data)
    with pytest.raises(InputError, match="CRC-32 mismatch"):
        converter.convert(source, tmp_path / "out", family=FAMILY)
    assert not (tmp_path / "out").exists()


def test_nan_among_rows_that_change_places_is_counted_once(tmp_path: Path) -> None:
    made = state()
    made["final.mod.weight"][2, 3] = made["final.mod.weight"][9, 1] = float("nan")
    source = written(made, tmp_path / "toy.pth")
    with pytest.raises(InputError, match=r"2 elements are NaN or infinite, in final\.mod\.weight"):
        converter.convert(source, tmp_path / "out", family=FAMILY)
    done = converter.convert(source, tmp_path / "out", family=FAMILY, allow_nonfinite=True)
    back = converter.convert(done.path, tmp_path / "back.pth", to="original", family=FAMILY, allow_nonfinite=True)
    assert loaded(back.path)["final.mod.weight"].isnan().sum() == 2
