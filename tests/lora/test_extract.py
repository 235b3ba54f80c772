"""Extraction: against NumPy's SVD, against merging, which it is the way round from, and against stock diffusers."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import GOLDEN, ROOT, diffusers_keyed, dit, dit_keyed, folder, pixart, save
from safetensors.torch import load_file

import converter
from converter.errors import InputError, UsageError
from converter.jobs.lora_effect import EffectMeasure
from converter.lora.extract import extract_lora
from converter.lora.low_rank import nearest
from converter.lora.merge import merge_lora
from converter.lora.reading import open_adapter

LORA = ROOT / "fixtures" / "lora"
HEADS = {"num_attention_heads": 4}
Run = Callable[..., Any]
State = dict[str, torch.Tensor]
MATRIX_KEYS = [key for key, tensor in pixart().items() if key.endswith(".weight") and tensor.ndim > 1]


def moved(state: State, seed: int = 5, rank: int = 0, keys: Callable[[str], bool] = lambda key: True) -> State:
    """The weights of modules, trained on: by a product of a rank, or (0) by noise."""
    random, tuned = torch.Generator().manual_seed(seed), {}
    for key, tensor in state.items():
        tuned[key] = tensor
        if key.endswith(".weight") and tensor.ndim > 1 and keys(key):
            flat = tensor.flatten(1)
            noise = torch.randn(flat.shape, generator=random)
            if rank:
                up, down = (
                    torch.randn(shape, generator=random) for shape in ((len(flat), rank), (rank, flat.shape[1]))
                )
                noise = up @ down
            tuned[key] = tensor + 0.05 * noise.reshape(tensor.shape)
    return tuned


def pair(tmp_path: Path, tuned: State, base: State | None = None) -> tuple[Path, Path]:
    return save(pixart() if base is None else base, tmp_path / "base.pth"), save(tuned, tmp_path / "tuned.pth")


def out(tmp_path: Path, to: str) -> Path:
    return tmp_path / (f"{to}-lora" if to == "peft" else f"{to}-lora.safetensors")


def merged(base: Path, adapter: Path, target: Path) -> State:
    merge_lora(base, adapter, target, to="original", hyper_parameters={"image_size": 128, **HEADS})
    state: State = torch.load(target, weights_only=True)["state_dict"]
    return state


# One matrix.


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, 12), st.integers(1, 12))


@settings(max_examples=150)
@given(shape=shapes(), rank=st.integers(1, 14), seed=st.integers(0, 2**32 - 1), tilt=st.floats(0, 3))
def test_no_matrix_of_the_rank_is_nearer(shape: tuple[int, int], rank: int, seed: int, tilt: float) -> None:
    matrix = np.random.default_rng(seed).standard_normal(shape) * 10.0 ** (-tilt * np.arange(shape[1]))
    fit = nearest(matrix, rank)
    sizes = np.linalg.svd(matrix, compute_uv=False)
    best = math.hypot(*sizes[rank:]) / math.hypot(*sizes)
    assert fit.rank <= min(rank, *shape)
    assert fit.norm == pytest.approx(math.hypot(*sizes))
    assert fit.error == pytest.approx(best, rel=1e-6, abs=3e-7)
    held = fit.up.astype(np.float64) @ fit.down.astype(np.float64)
    assert fit.error == pytest.approx(np.linalg.norm(matrix - held) / fit.norm, rel=1e-6)
    assert fit.up.dtype == fit.down.dtype == np.float32


@settings(max_examples=150)
@given(shape=shapes(), energy=st.floats(0.01, 1.0), seed=st.integers(0, 2**32 - 1))
def test_the_smallest_rank_that_keeps_a_share_of_the_energy(shape: tuple[int, int], energy: float, seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal(shape)
    fit = nearest(matrix, energy=energy)
    squares = np.linalg.svd(matrix, compute_uv=False) ** 2
    shares = np.cumsum(squares) / squares.sum()
    assert shares[fit.rank - 1] >= energy - 1e-12
    assert fit.rank == 1 or shares[fit.rank - 2] < energy + 1e-12
    assert 1 - fit.error**2 >= energy - 1e-6
    both = nearest(matrix, rank=2, energy=energy)
    assert both.rank == min(2, fit.rank)


@settings(max_examples=60)
@given(shape=shapes(), seed=st.integers(0, 2**32 - 1))
def test_the_error_falls_with_the_rank(shape: tuple[int, int], seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal(shape)
    errors = [nearest(matrix, rank).error for rank in range(1, min(shape) + 1)]
    assert all(a > b for a, b in itertools.pairwise(errors))
    assert errors[-1] < 3e-7


def test_the_factors_are_balanced_and_rounding_is_no_rank() -> None:
    random = np.random.default_rng(1)
    matrix = (random.integers(-8, 8, (40, 3)) @ random.integers(-8, 8, (3, 30))).astype(np.float64)
    fit = nearest(matrix, rank=16)
    assert fit.rank == 3
    assert np.linalg.norm(fit.up, axis=0) == pytest.approx(np.linalg.norm(fit.down, axis=1), rel=1e-6)
    assert nearest(matrix, energy=1.0).rank == 3


# Whole models.


@pytest.mark.parametrize("to", ["diffusers", "kohya", "peft", "omi", "lycoris", "comfyui"])
def test_at_full_rank_merging_gives_the_tuned_modules(tmp_path: Path, to: str) -> None:
    base, tuned = pair(tmp_path, state := moved(pixart()))
    done = extract_lora(base, tuned, out(tmp_path, to), rank=10**6, to=to)
    assert max(module.error for module in done.modules) < 5e-7
    back = merged(base, out(tmp_path, to), tmp_path / "back.pth")
    for key, tensor in state.items():
        assert torch.allclose(back[key], tensor, rtol=1e-6, atol=1e-7), key


@pytest.mark.parametrize("name", ["d-ot-kohya", "d-ot-comfy", "d-ot-legacy", "d-ot-omi", "d-train-r16", "d-rslora"])
@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_a_known_lora_is_found_in_its_merge(tmp_path: Path, name: str, to: str) -> None:
    path = LORA / f"{name}.safetensors" if (LORA / f"{name}.safetensors").exists() else LORA / name
    base = GOLDEN / "sigma-ms.pth"
    merge_lora(base, path, tmp_path / "tuned.pth", to="original", hyper_parameters=HEADS)
    with open_adapter(path) as adapter:
        largest = max(change.product.rank or 0 for change in adapter.changes.values())
    # Adapters of q, k and v that were trained apart are one of all their ranks together.
    rank = largest * (3 if to == "kohya" and adapter.layout == "diffusers" else 1)
    done = extract_lora(base, tmp_path / "tuned.pth", out(tmp_path, to), rank=rank, to=to)
    assert done.error < 1e-6
    assert not done.left_out
    less = extract_lora(base, tmp_path / "tuned.pth", tmp_path / "less.safetensors", rank=1, to=to)
    assert less.error > 0.1


def test_the_convolution_is_of_the_shape_that_peft_has(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, moved(pixart(), keys=lambda key: key == "x_embedder.proj.weight"))
    done = extract_lora(base, tuned, out(tmp_path, "diffusers"), rank=3)
    tensors = load_file(out(tmp_path, "diffusers"))
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "transformer.pos_embed.proj.lora_A.weight": (3, 4, 2, 2),
        "transformer.pos_embed.proj.lora_B.weight": (24, 3, 1, 1),
    }
    assert len(done.unchanged) == 2 * 10 + 6


def test_the_error_is_that_of_the_merge(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, state := moved(pixart()))
    done = extract_lora(base, tuned, out(tmp_path, "kohya"), energy=0.6, to="kohya")
    back, before = merged(base, out(tmp_path, "kohya"), tmp_path / "back.pth"), pixart()
    assert {module.key for module in done.modules} == {*MATRIX_KEYS}
    for module in done.modules:
        apart, whole = (state[module.key] - other[module.key] for other in (back, before))
        assert module.error == pytest.approx(float(apart.norm() / whole.norm()), rel=1e-4)
        assert module.norm == pytest.approx(float(whole.norm()), rel=1e-4)
        assert 0.2 < module.error**2 <= 0.4
    apart, whole = (torch.cat([(state[k] - other[k]).flatten() for k in MATRIX_KEYS]) for other in (back, before))
    assert done.error == pytest.approx(float(apart.norm() / whole.norm()), rel=1e-4)


def test_parts_by_themselves_are_at_least_as_near_as_all_of_them_together(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, moved(pixart()))
    split = extract_lora(base, tuned, out(tmp_path, "diffusers"), rank=4)
    fused = extract_lora(base, tuned, out(tmp_path, "kohya"), rank=4, to="kohya")
    whole = {module.key: module for module in fused.modules}
    parts = {module.key: module for module in split.modules}
    qkv = whole["blocks.0.attn.qkv.weight"]
    of = [parts[f"transformer_blocks.0.attn1.to_{part}.weight"] for part in "qkv"]
    assert math.hypot(*(part.norm for part in of)) == pytest.approx(qkv.norm)
    assert math.hypot(*(part.error * part.norm for part in of)) < qkv.error * qkv.norm
    assert whole["blocks.1.mlp.fc2.weight"].error == parts["transformer_blocks.1.ff.net.2.weight"].error


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_the_layout_of_neither_file_matters(tmp_path: Path, to: str) -> None:
    base, tuned = pair(tmp_path, state := moved(pixart(), rank=2))
    config = {"num_attention_heads": 4, "sample_size": 16, "patch_size": 2}
    folders = [folder(diffusers_keyed(each), tmp_path / name, config) for each, name in ((pixart(), "a"), (state, "b"))]
    found = []
    for number, (one, other) in enumerate([(base, tuned), (folders[0], tuned), (base, folders[1]), (*folders,)]):
        target = tmp_path / f"{number}.safetensors"
        done = extract_lora(one, other, target, rank=2, to=to)
        assert done.error < 1e-6
        found.append(load_file(target))
    for each in found[1:]:
        assert each.keys() == found[0].keys()
        assert all(torch.equal(tensor, found[0][key]) for key, tensor in each.items())


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_dit_with_its_embedder_in_every_block(tmp_path: Path, to: str, layout: str) -> None:
    base, tuned = pair(tmp_path, state := moved(dit(), rank=2), dit())
    done = extract_lora(base, tuned, out(tmp_path, to), rank=2, to=to)
    assert done.error < 1e-6
    # The class table is no module that two factors are for: it is told.
    assert [one.key for one in done.left_out] == [
        "y_embedder.embedding_table.weight" if to == "kohya" else
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    ]  # fmt: skip
    if layout == "diffusers":
        base = folder(dit_keyed(dit(), 2), tmp_path / "base", {"num_attention_heads": 4})
    back = merged(base, out(tmp_path, to), tmp_path / "back.pth")
    for key, tensor in state.items():
        assert "table" in key or torch.allclose(back[key], tensor, rtol=1e-6, atol=1e-6), key


def test_copies_that_are_changed_apart_are_refused(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, moved(dit(), rank=2), dit())
    extract_lora(base, tuned, out(tmp_path, "diffusers"), rank=2)
    tensors = load_file(path := out(tmp_path, "diffusers"))
    key = "transformer.transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.lora_A.weight"
    tensors[key] = tensors[key] * 2
    from safetensors.torch import save_file

    save_file(tensors, path)
    with pytest.raises(InputError, match="cannot be changed in one of its copies alone"):
        merged(base, path, tmp_path / "back.pth")


# What a LoRA has no place for.


def test_what_is_left_out_is_told_with_how_far_it_differs(tmp_path: Path) -> None:
    state = moved(pixart(), rank=1, keys=lambda key: "mlp.fc1" in key)
    state["blocks.1.attn.qkv.bias"] = 1.5 * state["blocks.1.attn.qkv.bias"]
    state["blocks.0.scale_shift_table"] = state["blocks.0.scale_shift_table"] + 1
    state["y_embedder.y_embedding"] = 2 * state["y_embedder.y_embedding"]
    base, tuned = pair(tmp_path, state)
    done = extract_lora(base, tuned, out(tmp_path, "kohya"), rank=1, to="kohya")
    far = {one.key: one.distance for one in done.left_out}
    assert far.keys() == {"blocks.1.attn.qkv.bias", "blocks.0.scale_shift_table", "y_embedder.y_embedding"}
    assert far["blocks.1.attn.qkv.bias"] == pytest.approx(1 / 3)
    assert far["y_embedder.y_embedding"] == pytest.approx(1 / 2)
    assert [module.key for module in done.modules] == [f"blocks.{block}.mlp.fc1.weight" for block in (0, 1)]
    split = extract_lora(base, tuned, out(tmp_path, "diffusers"), rank=1)
    assert "transformer_blocks.1.attn1.to_q.bias" in {one.key for one in split.left_out}


@pytest.mark.parametrize("name", ["sigma-qknorm", "sigma-kvcompress"])
def test_norms_and_convolutions_of_single_channels_are_left_out(tmp_path: Path, name: str) -> None:
    file = torch.load(GOLDEN / f"{name}.pth", weights_only=False)
    state: State = file.get("state_dict", file)
    noisy = {key: tensor if key == "pos_embed" else tensor + 0.01 for key, tensor in state.items()}
    done = extract_lora(*pair(tmp_path, noisy, state), out(tmp_path, "diffusers"), rank=2)
    own = {one.key.rpartition(".")[0].rpartition(".")[2] for one in done.left_out if one.key.endswith(".weight")}
    assert own == ({"q_norm", "k_norm"} if name == "sigma-qknorm" else {"sr", "norm"})
    assert all(len(module.shape) == 2 or module.key == "pos_embed.proj.weight" for module in done.modules)
    assert done.error < 1e-6  # what is added everywhere is of rank 1


def test_other_dtypes_are_noted_and_the_difference_is_that_of_the_numbers(tmp_path: Path) -> None:
    half = {key: tensor.half() for key, tensor in pixart().items()}
    state = moved({key: tensor.float() for key, tensor in half.items()}, rank=1)
    done = extract_lora(*pair(tmp_path, state, half), out(tmp_path, "diffusers"), rank=1)
    assert done.error < 1e-6
    assert done.notes == ["base and tuned are float16 and float32: what was rounded is part of the difference"]


# What it does to the output.


def test_the_effect_is_that_on_the_net_of_stock_diffusers(tmp_path: Path) -> None:
    base, adapter = GOLDEN / "sigma-ms.pth", LORA / "d-ot-kohya.safetensors"
    tuned, lora, back = tmp_path / "tuned.pth", out(tmp_path, "peft"), tmp_path / "back.pth"
    merge_lora(base, adapter, tuned, to="original", hyper_parameters=HEADS)
    known: dict[str, Any] = {"hyper_parameters": HEADS, "measuring": EffectMeasure()}
    done = extract_lora(base, tuned, lora, rank=3, to="peft", **known)
    merge_lora(base, lora, back, to="original", hyper_parameters=HEADS)
    outputs = [_stock(path) for path in (base, back, tuned)]
    apart = [float((each - outputs[2]).norm() / outputs[2].norm()) for each in outputs[:2]]
    effect = done.effect
    assert (effect.base, effect.adapter) == (pytest.approx(apart[0], rel=1e-3), pytest.approx(apart[1], rel=1e-3))
    assert effect.base > 0.2
    assert effect.accounted == pytest.approx(1 - apart[1] / apart[0], rel=1e-3)
    whole = extract_lora(base, tuned, lora, rank=4, to="peft", overwrite=True, **known).effect
    assert whole.adapter < 1e-5
    assert whole.accounted > 0.9999


def _stock(path: Path) -> torch.Tensor:
    from converter.conversion.analysis import analyse
    from converter.conversion.model_files import open_model
    from converter.models.pixart.parity import PARITY, STOCK

    with open_model(path) as checkpoint:
        (case,) = PARITY.cases(analyse(checkpoint, HEADS).findings, "quick", {})
    with torch.inference_mode():
        return STOCK.call(converter.load(path, hyper_parameters=HEADS), case.tensors(torch.float32))


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_the_effect_does_not_depend_on_the_layout(tmp_path: Path, layout: str) -> None:
    paths = pair(tmp_path, moved(pixart(), rank=4))
    known: dict[str, Any] = {"hyper_parameters": {"image_size": 128, **HEADS}, "measuring": EffectMeasure()}
    right = extract_lora(*paths, out(tmp_path, "kohya"), rank=2, to="kohya", **known).effect
    if layout == "diffusers":
        for path in paths:
            converter.convert(path, path.with_suffix(""), hyper_parameters=known["hyper_parameters"])
        paths = (tmp_path / "base", tmp_path / "tuned")
        effect = extract_lora(
            *paths, tmp_path / "other.safetensors", rank=2, to="kohya", measuring=EffectMeasure()
        ).effect
        assert (effect.base, effect.adapter) == (pytest.approx(right.base), pytest.approx(right.adapter))
    assert 0 < right.adapter < right.base


@pytest.mark.parametrize("to", ["diffusers", "kohya"])
def test_the_effect_on_a_dit(tmp_path: Path, to: str) -> None:
    known: dict[str, Any] = {"hyper_parameters": HEADS, "measuring": EffectMeasure()}
    state = moved(dit(), rank=2, keys=lambda key: "table" not in key)
    effect = extract_lora(*pair(tmp_path, state, dit()), out(tmp_path, to), rank=2, to=to, **known).effect
    assert effect.adapter < 1e-5 < 0.01 < effect.base


def test_an_effect_that_cannot_be_measured_says_why(tmp_path: Path) -> None:
    done = extract_lora(
        *pair(tmp_path, moved(pixart())), out(tmp_path, "kohya"), rank=1, to="kohya", measuring=EffectMeasure()
    )
    assert done.effect.accounted is None
    assert "`num_attention_heads` is needed" in done.effect.words
    assert out(tmp_path, "kohya").exists()


# What is refused.


@pytest.mark.parametrize(("words", "said"), [
    ({}, "`rank` or `energy` is needed"),
    ({"rank": 0}, "`rank` 0: a whole number of at least 1"),
    ({"rank": True}, "`rank` True"),
    ({"rank": 2.5}, "`rank` 2.5"),
    ({"energy": 0.0}, "`energy` 0.0: a share is needed, above 0 and at most 1"),
    ({"energy": 1.01}, "`energy` 1.01"),
    ({"energy": math.nan}, "`energy` nan"),
    ({"energy": "0.9"}, "`energy` '0.9'"),
    ({"rank": 1, "to": "nobody"}, "`to` nobody"),
    ({"rank": 1, "to": "kohya"}, "ends in .safetensors"),
    ({"rank": 1, "weights_tuned": "ema"}, "`weights_tuned` ema"),
    ({"rank": 1, "state_dict_key_base": "x"}, "`state_dict_key_base`"),
])  # fmt: skip
def test_a_call_that_is_wrong(tmp_path: Path, words: dict[str, Any], said: str) -> None:
    base, tuned = pair(tmp_path, moved(pixart()))
    with pytest.raises(UsageError) as caught:
        extract_lora(base, tuned, tmp_path / "out", **words)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_models_that_make_no_adapter(tmp_path: Path) -> None:
    base, target = save(pixart(), tmp_path / "base.pth"), tmp_path / "out.safetensors"

    def refused(state: State | Path, said: str) -> None:
        tuned = state if isinstance(state, Path) else save(state, tmp_path / "tuned.pth")
        with pytest.raises(InputError) as caught:
            extract_lora(base, tuned, target, rank=4)
        assert said in str(caught.value)
        assert str(caught.value).startswith(str(tuned))
        assert not target.exists()

    refused(base, "no module differs from")
    biased = pixart() | {"final_layer.linear.bias": pixart()["final_layer.linear.bias"] + 1}
    refused(biased, "what does is nothing that a LoRA holds: proj_out.bias (relative L2 ")
    refused(dit(), "this is a DiT, and")
    refused(pixart(depth=3), "has no transformer_blocks.2.")
    refused(pixart(depth=1), "lacks what")
    refused(pixart(caption_channels=20), "not of the shape that")
    nan = moved(pixart())
    nan["blocks.1.mlp.fc1.weight"][3, 5] = math.nan
    refused(nan, "transformer_blocks.1.ff.net.0.proj.weight: holds numbers that are not finite")
    refused({"x": torch.zeros(2)}, "")


def test_nothing_is_overwritten_unless_that_is_asked_for(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, moved(pixart()))
    (target := tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(UsageError, match="overwrite"):
        extract_lora(base, tuned, target, rank=1)
    assert target.read_text() == "mine"
    extract_lora(base, tuned, target, rank=1, overwrite=True)
    with pytest.raises(UsageError):
        extract_lora(base, save(moved(pixart()), tmp_path / "t.safetensors"), tmp_path / "t.safetensors", rank=1)


# The command.


def test_the_command_tells_what_was_kept(tmp_path: Path, cli: Run) -> None:
    base, adapter = GOLDEN / "sigma-ms.pth", LORA / "d-ot-kohya.safetensors"
    merge_lora(base, adapter, tuned := tmp_path / "tuned.pth", to="original", hyper_parameters=HEADS)
    sides = (base, tuned, target := tmp_path / "out.safetensors")
    done = cli("pixart", "extract-lora", *sides, "--energy", 0.9, "--to", "kohya", "--num_attention_heads", 4)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("LoRA of rank 3 to 4 for 28 modules: 99.926% of the energy of the difference")
    assert lines[1].startswith("the adapter accounts for 0.9")
    assert "  blocks.{0..2}.attn.qkv.weight" in done.stdout
    assert lines[-2].startswith(f"wrote: {target} (")
    again = ("pixart", "extract-lora", *sides, "--energy", 0.9, "--to", "kohya", "--overwrite", "--parity", "no")
    unproven = cli(*again)
    assert unproven.stdout.splitlines() == [lines[0], *lines[2:]]
    every = cli(*again, "--all").stdout.splitlines()
    assert len([line for line in every if line.startswith("  ") and ", error " in line]) == 28
    assert cli(*again, "--quiet").stdout == ""
    content = json.loads(cli(*again, "--json").stdout)
    assert content["ok"]
    assert (content["spelling"], content["effect"], len(content["modules"])) == ("kohya", None, 28)
    errors = [module["error"] for module in content["modules"]]
    assert errors == sorted(errors, reverse=True)


def test_the_command_refuses_in_one_line(tmp_path: Path, cli: Run) -> None:
    base, tuned = pair(tmp_path, moved(pixart()))
    target = tmp_path / "out.safetensors"
    for arguments, code, said in (
        ((base, tuned, target), 2, "--rank or --energy is needed"),
        ((base, tuned, target, "--rank", 0), 2, "--rank"),
        ((base, tuned, target, "--energy", 1.5), 2, "--energy"),
        ((base, base, target, "--rank", 1), 3, "no module differs"),
        ((base, tmp_path / "none.pth", target, "--rank", 1), 3, "none.pth: No such file"),
        ((base, tuned, target, "--rank", 1, "--to", "x"), 2, "'--to': 'x' is not one of"),
    ):
        done = cli("pixart", "extract-lora", *arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
        assert said in done.stderr
    assert not target.exists()


def test_raw_and_ema_of_one_file(tmp_path: Path, cli: Run) -> None:
    both = save({"state_dict": pixart(), "state_dict_ema": moved(pixart(), rank=1)}, tmp_path / "both.pth")
    arguments = (both, both, tmp_path / "out.safetensors", "--weights-tuned", "ema", "--rank", 1, "--json")
    content = json.loads(cli("pixart", "extract-lora", *arguments, "--to", "kohya-diffusers").stdout)
    assert content["error"] < 1e-6
    assert content["spelling"] == "kohya-diffusers"
    assert "`num_attention_heads`" in content["effect"]["unknown"]


def test_out_by_name(tmp_path: Path, cli: Run) -> None:
    """As of the other commands; by position or by name, and not by both."""
    base, adapter = GOLDEN / "sigma-ms.pth", LORA / "d-ot-kohya.safetensors"
    merge_lora(base, adapter, tuned := tmp_path / "tuned.pth", to="original", hyper_parameters=HEADS)
    flags = (base, tuned, "--rank", 2, "--parity", "no", "--quiet")
    assert cli("pixart", "extract-lora", *flags, "--dump_path", tmp_path / "one").returncode == 0
    assert cli("pixart", "extract-lora", base, tuned, tmp_path / "other", *flags[2:]).returncode == 0
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    for wrong in (flags, (base, tuned, tmp_path / "x", *flags[2:], "--dump_path", tmp_path / "y")):
        done = cli("pixart", "extract-lora", *wrong)
        assert done.returncode == 2
        assert "give BASE TUNED OUT, or --dump_path" in done.stderr
