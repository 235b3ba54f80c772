"""Zeros that no training leaves: named and refused, whichever tensor they are in; those of an initialisation pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from makers import GOLDEN, HEADS, State, convert, converted, diffusers_keyed, dit, folder, pixart, save, stated
from safetensors.torch import load_file, save_file

import converter
from converter import InputError, KeyMapping, open_checkpoint
from converter.checkpoint import LazyTensor
from converter.conversion.pairs import Pair
from converter.conversion.up_to_date import is_up_to_date
from converter.conversion.zeros import Zeros, find_zeros, judge, trailing_zero_counts
from converter.initialisation.assemble import init_from_dit
from converter.initialisation.options import Options
from converter.mapping import ZeroInit
from converter.models.dit.table import DIT
from converter.models.pixart.table import PIXART

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
REFUSED = "zero throughout, as no training leaves"


def saved(state: State, path: Path) -> Path:
    (save_file if path.suffix == ".safetensors" else save)(state, path)
    return path


def convert_state(state: State, tmp: Path, suffix: str = "safetensors", **flags: Any) -> converter.Conversion:
    return convert(saved(state, tmp / f"made.{suffix}"), tmp / "out", **{"overwrite": True} | flags)


def zeroed(state: State, wanted: Callable[[str], bool]) -> State:
    return {key: torch.zeros_like(value) if wanted(key) else value for key, value in state.items()}


def judged(state: State, tmp: Path, keys: KeyMapping = PIXART.keys) -> Zeros:
    with open_checkpoint(save(state, tmp / "judged.pth")) as checkpoint:
        return find_zeros(keys.survey(checkpoint), checkpoint)


def reserved(path: Path, share: float) -> Path:
    """A download of the golden sigma that stopped there, in a file that had its size before: by `safetensors`."""
    state = torch.load(GOLDEN / "sigma-ms.pth", weights_only=True)
    data = bytearray(saved(dict(state.get("state_dict", state)), path).read_bytes())
    keep = round(len(data) * share)
    path.write_bytes(data[:keep] + bytes(len(data) - keep))
    return path


@pytest.mark.parametrize("share", [0.999, 0.97, 0.9, 0.8, 0.5, 0.2])
def test_right_size_and_zeros_at_the_end(share: float, tmp_path: Path) -> None:
    path = reserved(tmp_path / "a.safetensors", share)
    lost = [key for key, value in load_file(path).items() if not value.any() and "y_embedding" not in key]
    with pytest.raises(InputError, match="was its download completed") as error:
        convert(path, tmp_path / "out", image_size=512, interpolation_scale=1.0)
    assert error.value.exit_code == 3
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "out").exists()
    with open_checkpoint(path) as checkpoint:
        found = find_zeros(PIXART.keys.survey(checkpoint), checkpoint)
    assert set(lost) <= {*found.lost, *found.untrained, *found.others}
    assert (f"{len(found.lost)} tensor" in str(error.value)) == bool(lost)
    if lost:
        assert REFUSED in str(error.value)
    else:
        assert "rows of y_embedder.y_proj.fc2.weight are zero, where the file ends" in str(error.value)


def test_the_case_and_the_flag(tmp_path: Path) -> None:
    save_file(pixart(), path := tmp_path / "a.safetensors")
    data = bytearray(path.read_bytes())
    with open_checkpoint(path) as checkpoint:
        start = checkpoint["t_embedder.mlp.2.weight"].storage.start
    path.write_bytes(data[: start - 5000] + bytes(len(data) - start + 5000))
    words = "x_embedder.proj.weight, .*, y_embedder.y_proj.fc1.bias.*; zero as well: y_embedder.y_embedding"
    with pytest.raises(InputError, match=f"{words} .*; `allow_zeros` converts them as they are"):
        convert(path, tmp_path / "out")
    done = convert(path, tmp_path / "out", allow_zeros=True)
    assert "the last 4 of 24 rows of t_embedder.mlp.0.weight are zero, where the file ends" in str(done.notes)
    assert [note for note in done.notes if REFUSED in note and note.endswith(": let through")]
    assert done.notes == done.record["notes"]
    with pytest.raises(InputError, match=REFUSED):  # the way back reads them too
        converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original")
    assert converter.convert(tmp_path / "out", tmp_path / "back.pth", to="original", allow_zeros=True).written


STATES = {"pixart": pixart(micro_conditions=True), "dit": dit()}
ONES = [
    (name, key) for name, state in STATES.items() for key in state if key not in ("pos_embed", "y_embedder.y_embedding")
]


@settings(max_examples=40)
@given(st.sampled_from(ONES), st.sampled_from(["float32", "float16", "bfloat16", "float64"]), st.booleans())
@example(("pixart", "final_layer.linear.weight"), "float32", True)
@example(("pixart", "x_embedder.proj.bias"), "float32", False)
@example(("dit", "blocks.1.adaLN_modulation.1.weight"), "float32", False)
def test_any_one_tensor(
    tmp_path_factory: pytest.TempPathFactory, one: tuple[str, str], dtype: str, minus: bool
) -> None:
    """Zero of either sign, in any dtype: it alone is named."""
    name, key = one
    state = {k: value.to(getattr(torch, dtype)) for k, value in STATES[name].items()}
    state[key] = torch.full_like(state[key], -0.0 if minus else 0.0)
    keys = {"pixart": PIXART.keys, "dit": DIT.keys}[name]
    made = judged(state, tmp_path_factory.getbasetemp(), keys)
    assert (made.lost, made.ends, made.untrained) == ([key], [], [])
    assert f"1 tensor is {REFUSED} it: {key}" in made.refused


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("target", ["out", "out.pth", "out.safetensors"])
def test_any_part_of_a_fused_tensor(target: str, suffix: str, tmp_path: Path) -> None:
    """Wherever it goes, whole or in parts: q, k and v are looked at one by one."""
    to = {"out": "diffusers", "out.pth": "original", "out.safetensors": "comfyui"}[target]
    for part, which in ((0, r"\(to_q\) "), (1, r"\(to_k\) "), (2, r"\(to_v\) "), (slice(3), "")):
        state = pixart()
        state["blocks.1.attn.qkv.weight"].view(3, 24, 24)[part] = 0
        with pytest.raises(InputError, match=rf"blocks\.1\.attn\.qkv\.weight {which}\(was"):
            convert(saved(state, tmp_path / f"a.{suffix}"), tmp_path / target, to=to)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_for_diffusers(shards: int, tmp_path: Path) -> None:
    config = {"sample_size": 16, "num_attention_heads": HEADS, "interpolation_scale": 1}
    key = "transformer_blocks.1.attn1.to_k.weight"
    there = folder(zeroed(diffusers_keyed(pixart()), key.__eq__), tmp_path / "source", config, shards=shards)
    for to in ("diffusers", "original"):
        with pytest.raises(InputError, match=rf"1 tensor is {REFUSED} it: {key}"):
            converter.convert(there, tmp_path / ("out" if to == "diffusers" else "out.pth"), to=to)


def biases(key: str) -> bool:
    return key.endswith(".bias")


FRESH: dict[str, Callable[[str], bool]] = {
    "of the paper's code": lambda key: biases(key) or "cross_attn.proj" in key or "final_layer.linear" in key,
    "another last layer": lambda key: "final_layer.linear" in key,
    "cross attention put in": lambda key: "cross_attn.proj" in key or (biases(key) and "y_proj" in key),
    "no biases": biases,
    "no key biases": lambda key: False,
    "a bias in every block": lambda key: key.endswith("cross_attn.q_linear.bias"),
    "micro-conditions put in": lambda key: "size_embedder.mlp.2" in key or "ar_embedder.mlp.2" in key,
}


@pytest.mark.parametrize("kind", FRESH)
def test_what_an_initialisation_leaves_at_zero(kind: str, tmp_path: Path) -> None:
    state = zeroed(pixart(micro_conditions=True), FRESH[kind])
    for block in range(2 if kind == "no key biases" else 0):
        state[f"blocks.{block}.attn.qkv.bias"][24:48] = 0
    done = convert_state(state, tmp_path)
    (note,) = [note for note in done.notes if "zero" in note]
    assert note.startswith("zero throughout, as initialised, and so not trained yet: ")


NOT_FRESH: dict[str, Callable[[str], bool]] = {
    "in one block of two": lambda key: key.startswith("blocks.1.cross_attn.proj"),
    "a bias in one block": lambda key: key == "blocks.0.mlp.fc1.bias",
    "the weight alone": lambda key: key == "final_layer.linear.weight",
    "the last block": lambda key: key.startswith("blocks.1."),
    "a table in every block": lambda key: key.endswith("scale_shift_table") and "blocks" in key,
    "all": lambda key: key != "pos_embed",
}


@pytest.mark.parametrize("kind", NOT_FRESH)
def test_what_only_looks_so(kind: str, tmp_path: Path) -> None:
    state = zeroed(pixart(), NOT_FRESH[kind])
    with pytest.raises(InputError, match=REFUSED):
        convert_state(state, tmp_path)


@pytest.mark.parametrize(
    ("none", "t_block", "micro"), [("unconditional", "mean", False), ("zero", "paper", True), ("zero", "mean", True)]
)
def test_what_begins_as_a_dit_converts(none: str, t_block: str, micro: bool, tmp_path: Path) -> None:
    options = Options(none=none, t_block=t_block, micro_condition=micro, caption_channels=16, caption_tokens=12)
    source = save(dit(), tmp_path / "dit.pt")
    for name in ("init.safetensors", "folder"):
        assert init_from_dit(source, tmp_path / name, options, num_attention_heads=HEADS).written
        said = {} if name == "folder" else {"num_attention_heads": HEADS}
        done = converter.convert(tmp_path / name, tmp_path / f"{name} converted", **stated(**said))
        assert [note for note in done.notes if "as initialised" in note]


def test_of_what_was_lost_nothing_begins(tmp_path: Path) -> None:
    source = save(zeroed(dit(), "x_embedder.proj.weight".__eq__), tmp_path / "dit.pt")
    options = Options(caption_channels=16, caption_tokens=12)
    with pytest.raises(InputError, match=rf"dit\.pt: 1 tensor is {REFUSED} it: x_embedder\.proj\.weight"):
        init_from_dit(source, tmp_path / "out.pth", options, num_attention_heads=HEADS)
    assert not (tmp_path / "out.pth").exists()


def test_a_table_that_says_nothing_of_it(tmp_path: Path) -> None:
    """By default all is told and nothing refused; a single row that says so makes it strict."""
    keys = KeyMapping({"a [D D]": "x", "b.{}.c [D D]": "y.{}"})
    strict = KeyMapping({"a [D D]": ZeroInit("x"), "b.{}.c [D D]": "y.{}"})
    state = {f"{path}.weight": torch.ones(2, 2) for path in ("a", "b.0.c", "b.1.c")}
    state |= {key.replace("weight", "bias"): torch.ones(2) for key in state}
    for key in state:
        made = judged(zeroed(state, key.__eq__), tmp_path, keys)
        assert (made.refused, made.notes) == ("", [f"{key}: zero throughout"])
        assert judged(zeroed(state, key.__eq__), tmp_path, strict).lost == [key]
    assert judged(zeroed(state, lambda key: key.startswith("a.")), tmp_path, strict).refused == ""
    # A tensor of no elements is not zero.
    assert judged({"a.weight": torch.zeros(0, 3)}, tmp_path, KeyMapping({"a.weight": "x.weight"})).refused == ""


@pytest.mark.parametrize("rows", [1, 2, 23])
def test_a_last_row_may_be_meant_and_more_may_not(rows: int, tmp_path: Path) -> None:
    """The last in a file of `safetensors`; within one they are no alarm, and a null caption may be zero."""
    state = pixart()
    state["y_embedder.y_proj.fc2.weight"][24 - rows :] = 0
    state["t_block.1.weight"][100:] = 0
    state["y_embedder.y_embedding"][:] = 0
    if rows == 1:
        notes = [note for note in convert_state(state, tmp_path).notes if "zero" in note]
        assert notes == ["y_embedder.y_embedding: zero throughout"]
        return
    words = f"the last {rows} of 24 rows of y_embedder.y_proj.fc2.weight are zero, where the file ends"
    with pytest.raises(InputError, match=words):
        convert_state(state, tmp_path)


def test_what_rounds_to_zero_is_called_that(tmp_path: Path) -> None:
    state = pixart()
    state["blocks.0.attn.qkv.weight"] *= 1e-12
    words = r"blocks\.0\.attn\.qkv\.weight: zero throughout once rounded to float16; `allow_zeros`"
    with pytest.raises(InputError, match=words):
        convert_state(state, tmp_path, dtype="float16")
    assert convert_state(state, tmp_path, dtype="bfloat16").written
    lost = zeroed(state, "t_block.1.weight".__eq__)
    with pytest.raises(InputError, match=rf"1 tensor is {REFUSED} it: t_block\.1\.weight .*; .*once rounded"):
        convert_state(lost, tmp_path, dtype="float16")


def test_a_result_that_is_there_already_is_judged_as_it_was_written(tmp_path: Path) -> None:
    """What only the rounding made zero, too large or not finite, and zeros in the sidecar: the same words as before."""
    state = pixart()
    state["blocks.0.attn.qkv.weight"][:48] *= 1e-12
    state["blocks.1.attn.qkv.weight"][24:48] = 0
    state["blocks.0.attn.qkv.weight"][70, 3] = 1e9
    state["blocks.1.attn.qkv.weight"][50, 2] = torch.nan
    state["y_embedder.y_embedding"][:] = 0
    state["blocks.0.attn.qkv.bias"] *= 1e-12
    path = save(state, tmp_path / "a.pth")
    let = {"allow_zeros": True, "allow_overflow": True, "allow_nonfinite": True}
    for name, target in (("diffusers", tmp_path / "out"), ("original", tmp_path / "out.pth")):
        said: dict[str, Any] = {"to": name, "dtype": "float16", "num_attention_heads": HEADS}
        done = convert(path, target, **let, **said)
        told = is_up_to_date(path, target, **stated(**let, **said))
        assert told == [note for note in done.notes if "zero" in note or "let through" in note]
        assert "y_embedder.y_embedding" in str(told)
        assert len(told) == 3
        (again,) = converted([Pair(str(path), str(target))], **let, **said)
        assert (again.status, again.notes) == ("unchanged", told)
        for flag in let:
            less = let | {flag: False} | said
            with pytest.raises(InputError) as first:
                convert(path, target, overwrite=True, **less)
            with pytest.raises(InputError, match=f"`{flag}`") as again:
                is_up_to_date(path, target, **stated(**less))
            assert str(again.value) == str(first.value)
    back = converter.convert(tmp_path / "out", tmp_path / "back.pth", **stated(to="original", **let))
    told = is_up_to_date(tmp_path / "out", tmp_path / "back.pth", **stated(to="original", **let))
    assert told == [note for note in back.notes if note in (told or ())]
    assert len(told) == 3


@pytest.mark.parametrize("shape", [(), (1,), (7,), (0,), (0, 24), (25, 24), (2, 3, 4)])
@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_fused_tensor_of_any_shape(shape: tuple[int, ...], empty: bool, suffix: str, tmp_path: Path) -> None:
    """What does not split is a refusal in one line, and nothing breaks where it is looked at for zeros."""
    state = pixart()
    for key in ("blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.bias"):
        state[key] = torch.zeros(shape) if empty else torch.ones(shape)
    with pytest.raises(InputError) as error:
        convert_state(state, tmp_path, suffix)
    assert "qkv" in str(error.value)
    assert "\n" not in str(error.value)
    made = converter.inspect(tmp_path / f"made.{suffix}", deep=True)
    assert "blocks.0.attn.qkv.weight" in str(made["problems"])
    assert not [problem for problem in made["problems"] if "\n" in problem]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@settings(max_examples=25)
@given(count=st.integers(1, 40), zeros=st.integers(0, 40), parts=st.sampled_from([1, 2, 3]))
def test_tails(dtype: str, count: int, zeros: int, parts: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Against torch: of each part, how many at its end are zero, however it is laid out."""
    values = torch.ones(count * parts, 3, dtype=getattr(torch, dtype))
    flat = values.view(parts, -1)
    flat[:, flat.shape[1] - min(zeros, flat.shape[1]) :] = -0.0
    path = tmp_path_factory.getbasetemp() / f"tails-{dtype}.pth"
    for kept in (values, values.t().contiguous().t()):
        with open_checkpoint(save({"a": kept}, path)) as checkpoint:
            tensor: LazyTensor = checkpoint["a"]
            assert trailing_zero_counts(tensor, parts) == [min(zeros, 3 * count)] * parts


def test_judging_takes_what_was_looked_at(tmp_path: Path) -> None:
    """Of copies that agree, one is read: the others are as it is."""
    state = pixart()
    with open_checkpoint(save(state, tmp_path / "a.pth")) as checkpoint:
        plan = PIXART.keys.survey(checkpoint)
        assert judge(plan, checkpoint, {}) == Zeros()
        assert judge(plan, checkpoint, {"t_block.1.weight": [144 * 24]}).lost == ["t_block.1.weight"]
