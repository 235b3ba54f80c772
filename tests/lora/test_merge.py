"""Merging: strengths, several adapters, dtypes, the way back, and what the record says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_makers import ALPHA, BASES, HEADS, LORA, SIGMA, added, apart, pair, write
from safetensors.torch import load_file

from converter import ConverterError, UsageError, convert, diff, merge_lora

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
# One of each kind: fused and split rows, Tucker-free convolutions, DoRA on both axes, LoHa, LoKr, whole modules.
KINDS = (
    "d-ot-kohya.safetensors", "d-patterns", "d-dora", "d-ot-dora-in.safetensors", "d-ot-dora-out-kohya.safetensors",
    "d-peft-loha", "d-ot-lokr.safetensors", "d-lycoris-full.safetensors", "d-save", "d-layers",
)  # fmt: skip


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def exact(adapters: dict[str, float], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The base's tensors, by their keys, with what each adapter adds alone, in float64."""
    base = torch.load(SIGMA, weights_only=True)
    state = base.get("state_dict", base)
    wide = {key: held.to(dtype).double() for key, held in state.items()}
    for name, strength in adapters.items():
        for key, difference in added(SIGMA, LORA / name, strength=strength).items():
            wide[key] = wide[key] + torch.from_numpy(difference)
    return wide


@pytest.mark.parametrize("name", KINDS)
def test_the_sum_is_rounded_once(name: str, tmp_path: Path) -> None:
    """To the original's layout: float32 products are within a few roundings of the exact sum."""
    merge_lora(SIGMA, {LORA / name: 0.7}, tmp_path / "m.safetensors", to="original", hyper_parameters=HEADS)
    merged, wanted = load_file(tmp_path / "m.safetensors"), exact({name: 0.7})
    for key, held in merged.items():
        assert (held.double() - wanted[key]).norm() <= 2e-7 * wanted[key].norm()


def test_several_adapters_add_up_in_any_order(tmp_path: Path) -> None:
    adapters = {name: 0.5 + place / 4 for place, name in enumerate(KINDS[:4])}
    paths = {LORA / name: strength for name, strength in adapters.items()}
    done = merge_lora(SIGMA, paths, tmp_path / "a.safetensors", to="original", hyper_parameters=HEADS)
    turned = dict(reversed(paths.items()))
    merge_lora(SIGMA, turned, tmp_path / "b.safetensors", to="original", hyper_parameters=HEADS)
    one, other = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    wanted = exact(adapters)
    for key in wanted:
        for held in (one, other):
            assert (held[key].double() - wanted[key]).norm() <= 4e-7 * wanted[key].norm()
    assert [each["strength"] for each in done.record["adapters"]] == [*adapters.values()]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_halves_are_computed_in_float64_and_rounded_once(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    convert(SIGMA, tmp_path / "half.safetensors", to="original", dtype=name, hyper_parameters=HEADS)
    merge_lora(tmp_path / "half.safetensors", [LORA / KINDS[0]], tmp_path / "m.safetensors", to="original",
               hyper_parameters=HEADS)  # fmt: skip
    merged, wanted = load_file(tmp_path / "m.safetensors"), exact({KINDS[0]: 1.0}, dtype)
    for key, held in merged.items():
        if held.dtype == dtype:
            assert torch.equal(held, wanted[key].to(dtype))
    assert sum(held.dtype == dtype for held in merged.values()) > 50


def test_a_cast_rounds_the_sum(tmp_path: Path) -> None:
    merge_lora(SIGMA, [LORA / KINDS[0]], tmp_path / "wide", hyper_parameters=HEADS)
    merge_lora(SIGMA, [LORA / KINDS[0]], tmp_path / "half", dtype="bfloat16", hyper_parameters=HEADS)
    half = weights_of(tmp_path / "half")
    for key, held in weights_of(tmp_path / "wide").items():
        assert torch.equal(half[key], held.bfloat16())


def test_there_and_off_again_by_way_of_folders(tmp_path: Path) -> None:
    """Merged, cast back and forth, reverted; the record knows what went in at each step."""
    first, second, back = tmp_path / "first", tmp_path / "second", tmp_path / "back.pth"
    merge_lora(SIGMA, [LORA / KINDS[0]], first, hyper_parameters=HEADS)
    done = merge_lora(first, {LORA / KINDS[0]: -1.0}, second)
    assert [(each["name"], each["strength"]) for each in done.record["adapters"]] == [(KINDS[0], 1.0), (KINDS[0], -1.0)]
    assert not [note for note in done.notes if "are not what" in note]
    kept = convert(second, tmp_path / "third")
    assert kept.record["adapters"] == done.record["adapters"]
    done = convert(tmp_path / "third", back, to="original")
    assert any("are what conversion.json says was converted" in note for note in done.notes)
    compared = diff(SIGMA, back)
    assert not compared.same()
    assert compared.decisive.relative_l2 < 1e-7


def test_untouched_tensors_are_the_bases(tmp_path: Path) -> None:
    merge_lora(ALPHA, [LORA / "d-ot-original.safetensors"], tmp_path / "m", weights="ema", hyper_parameters=HEADS)
    convert(ALPHA, tmp_path / "base", weights="ema", hyper_parameters=HEADS)
    base, merged = weights_of(tmp_path / "base"), weights_of(tmp_path / "m")
    changed = {key for key in base if not torch.equal(base[key], merged[key])}
    assert changed
    assert all(key.endswith(".weight") for key in changed)
    assert len(changed) < len(base)


def test_a_dit_and_its_adapter(tmp_path: Path) -> None:
    """Another family, from the same code: names, splits, and final rows in another order."""
    dit = BASES / "dit.pt"
    names = ("blocks.0.attn.qkv", "blocks.1.mlp.fc1", "final_layer.adaLN_modulation.1")
    state = torch.load(dit, weights_only=True)
    state = state.get("model", state.get("state_dict", state))
    tensors: dict[str, Any] = {}
    for name in names:
        out, width = state[f"{name}.weight"].shape
        tensors |= pair(f"diffusion_model.{name}", 3, out, width) | {
            f"diffusion_model.{name}.alpha": np.array(6.0, "f4")
        }
    source = write(tmp_path / "lora.safetensors", tensors)
    done = merge_lora(dit, [source], tmp_path / "m.safetensors", to="original", hyper_parameters=HEADS)
    merged = load_file(tmp_path / "m.safetensors")
    assert done.record["family"] == "dit"
    for name in names:
        up, down = (torch.from_numpy(tensors[f"diffusion_model.{name}.lora_{end}.weight"]) for end in "BA")
        torch.testing.assert_close(merged[f"{name}.weight"], state[f"{name}.weight"] + 2 * up @ down)
    convert(dit, tmp_path / "folder", hyper_parameters=HEADS)
    merge_lora(tmp_path / "folder", [source], tmp_path / "other", hyper_parameters=HEADS)
    convert(tmp_path / "m.safetensors", tmp_path / "one", hyper_parameters=HEADS)
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "other")
    assert apart({key: held.numpy() for key, held in one.items()}, {key: h.numpy() for key, h in other.items()}) < 2e-7


@pytest.mark.parametrize(("adapters", "words"), [
    ([], "at least one adapter is needed"), ({"a": float("nan")}, "is no number"), ({"a": True}, "is no number"),
    ({"a": "0.5"}, "is no number"),
])  # fmt: skip
def test_strengths_are_numbers(adapters: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        merge_lora(SIGMA, adapters, tmp_path / "out")


def test_overflow_is_refused_as_of_any_cast(tmp_path: Path) -> None:
    source = write(tmp_path / "big.safetensors", pair("transformer.transformer_blocks.0.attn1.to_q"))
    with pytest.raises(ConverterError, match=r"blocks\.0\.attn\.qkv\.weight"):
        merge_lora(SIGMA, {source: 1e9}, tmp_path / "m", dtype="float16", hyper_parameters=HEADS)
    assert not (tmp_path / "m").exists()


def test_from_the_command_line(cli: Any, tmp_path: Path) -> None:
    """`A=W`, a path with an equals sign in it, the printed lines, `--json`."""
    odd = tmp_path / "a=b.safetensors"
    odd.write_bytes((LORA / KINDS[0]).read_bytes())
    flags = ("--num_attention_heads", 4, "--lora", odd, "--lora", f"{LORA / 'd-rslora'}=0.25")
    done = cli("pixart", "merge-lora", SIGMA, tmp_path / "m", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert "note: with a=b.safetensors at 1: kohya, LoRA (28 modules), scale 0.5 (alpha 2, file)" in done.stdout
    assert "note: with d-rslora at 0.25: peft, LoRA (19 modules), scale 2 (alpha 6, config)" in done.stdout
    merge_lora(SIGMA, {odd: 1, LORA / "d-rslora": 0.25}, tmp_path / "same", hyper_parameters=HEADS)
    assert (tmp_path / "m" / WEIGHTS).read_bytes() == (tmp_path / "same" / WEIGHTS).read_bytes()
    wrong = cli("pixart", "merge-lora", SIGMA, tmp_path / "n", "--lora", f"{odd}=much")
    assert wrong.returncode == 2
    assert "--lora" in wrong.stderr
    assert "'much' is no number" in wrong.stderr
    refused = cli("pixart", "merge-lora", SIGMA, tmp_path / "n", "--lora", LORA / "refuse" / "half-pair.safetensors")
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
    assert "--allow_partial leaves these out" in refused.stderr
    assert not (tmp_path / "n").exists()
