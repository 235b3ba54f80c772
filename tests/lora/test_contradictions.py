"""Configs, headers, alphas and tensors that do not say the same; numbers that have no place where they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_makers import HEADS, LORA, SIGMA, D, added, apart, pair, write

from converter import InputError, UsageError, convert_lora, inspect, merge_lora
from converter.lora.reading import open_adapter

Q, K = "transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_k"
PREFIX = "base_model.model."


def folder(tmp_path: Path, tensors: dict[str, Any], **config: Any) -> Path:
    at = tmp_path / "peft"
    write(at / "adapter_model.safetensors", {PREFIX + key: held for key, held in tensors.items()})
    (at / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config))
    return at


CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no magnitudes": ({}, {"use_dora": True}, f"no magnitudes, though the config says DoRA, of {Q}"),
    "no bias of lora_B": ({}, {"lora_bias": True}, "no bias of lora_B"),
    "no biases": ({}, {"bias": "lora_only"}, "no biases, though the config says"),
    "no module": ({}, {"modules_to_save": ["proj_out"]}, "no module proj_out, though the config says"),
    "another type": ({}, {"peft_type": "LOHA", "alpha": 4}, f"LoRA, where its config says LOHA, in {Q}"),
    "another alpha": ({f"{Q}.alpha": np.array(16.0, "f4")}, {}, "an alpha of 16, where the config gives the scale 2"),
    "half a rank": ({}, {"r": 2.5}, "r: 2.5: a rank is needed"),
    "a word for true": ({}, {"use_rslora": "false"}, "use_rslora: 'false': true or false is needed"),
    "a huge alpha": ({}, {"lora_alpha": 10**400}, "a number is needed"),
    "a huge rank": ({}, {"r": 10**400}, "a rank is needed"),
}


@pytest.mark.parametrize(("tensors", "config", "words"), CONFIGS.values(), ids=CONFIGS.keys())
def test_refused(tensors: dict[str, Any], config: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = folder(tmp_path, pair(Q) | tensors, **config)
    with pytest.raises(InputError) as caught:
        merge_lora(SIGMA, [source], tmp_path / "out", hyper_parameters=HEADS)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_two_adapters_in_one_state_dict(tmp_path: Path) -> None:
    tensors = {f"{PREFIX}{Q}.lora_A.default.weight": np.ones((2, D), "f4")}
    tensors |= {f"{PREFIX}{Q}.lora_B.other.weight": np.ones((D, 2), "f4")}
    with (
        pytest.raises(InputError, match="several adapters in one state dict: default, other"),
        open_adapter(write(tmp_path / "a.safetensors", tensors), lora_alpha=2),
    ):
        pass


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0, -1, True, "8", 10**400])
def test_lora_alpha_is_a_number(number: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`lora_alpha`"):
        convert_lora(LORA / "d-diffusers-bare", tmp_path / "out", lora_alpha=number)


def test_integers_are_no_factors(tmp_path: Path) -> None:
    tensors = {key: (8 * held).astype(np.int8) for key, held in pair(f"transformer.{Q}").items()}
    with pytest.raises(InputError, match="numbers of int8 in"):
        convert_lora(write(tmp_path / "a.safetensors", tensors), tmp_path / "out")


@pytest.mark.parametrize("alpha", [0, -4])
@pytest.mark.parametrize("to", ["kohya", "onetrainer", "lycoris", "omi", "peft", "diffusers"])
def test_alphas_of_zero_and_below(alpha: int, to: str, tmp_path: Path) -> None:
    """In PEFT 0 adds nothing; beside the factors it means none, so that it goes into a factor."""
    source = folder(tmp_path, pair(Q), lora_alpha=alpha)
    target = tmp_path / (to if to in ("peft", "diffusers") else f"{to}.safetensors")
    target = target.with_name(f"new-{target.name}")
    convert_lora(source, target, to)
    one, other = added(SIGMA, source), added(SIGMA, target)
    assert apart(one, other) < 1e-6
    assert any(held.any() for held in one.values()) == bool(alpha)


def test_halves_are_computed_in_float32(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {}
    for module, alpha in ((Q, 1.0), (K, 0.3)):
        name = f"lora_transformer_{module.replace('.', '_')}"
        tensors |= {key: held.astype(np.float16) for key, held in pair(name, ends="du").items()}
        tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    source = write(tmp_path / "a.safetensors", tensors)
    convert_lora(source, tmp_path / "b.safetensors", "kohya")
    assert apart(added(SIGMA, source), added(SIGMA, tmp_path / "b.safetensors")) < 1e-6


def test_factors_of_a_layer_written_as_of_a_convolution(tmp_path: Path) -> None:
    """As some tools have them: in PEFT's words again with the axes of the layer."""
    from safetensors.numpy import load_file

    tensors = {key: held[..., None, None] for key, held in pair(f"diffusion_model.{Q}", ends="AB").items()}
    tensors = {key.replace("diffusion_model.", "transformer."): held for key, held in tensors.items()}
    source = write(tmp_path / "a.safetensors", tensors)
    convert_lora(source, tmp_path / "peft", "peft")
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert sorted(held.shape for held in written.values()) == [(2, D), (D, 2)]
    flat = pair("transformer.pos_embed.proj", 2, D, 16)
    with pytest.raises(InputError, match="no form for a convolution whose kernel its factors do not show"):
        convert_lora(write(tmp_path / "flat.safetensors", flat), tmp_path / "other", "peft")


def test_an_alpha_for_those_that_say_none(tmp_path: Path) -> None:
    """Of several adapters, those that state theirs keep it."""
    bare, kohya = LORA / "d-diffusers-bare", LORA / "d-ot-kohya.safetensors"
    done = merge_lora(SIGMA, [bare, kohya], tmp_path / "m", lora_alpha=3, hyper_parameters=HEADS)
    sources = [{group["source"] for group in one["scales"]} for one in done.record["adapters"]]
    assert sources == [{"given"}, {"file"}]
    rooted = folder(tmp_path, pair(Q), use_rslora=True)
    with open_adapter(rooted, lora_alpha=4) as adapter:
        assert adapter.changes[f"{Q}.weight"].scale == 4 / 2**0.5
    report = inspect(rooted)
    assert report["adapter"]["rslora"]
    assert report["adapter"]["scales"][0]["alpha"] == pytest.approx(4)


def test_a_row_of_zeros_is_no_fault_of_the_base(tmp_path: Path) -> None:
    import torch

    state = torch.load(SIGMA, weights_only=True)
    state = state.get("state_dict", state)
    state["blocks.0.attn.qkv.weight"][3] = 0
    torch.save({"state_dict": state}, tmp_path / "base.pth")
    tensors = pair(Q)
    tensors[f"{Q}.lora_B.weight"][3] = 0
    tensors[f"{Q}.lora_magnitude_vector"] = np.ones(D, "f4")
    source = folder(tmp_path, tensors, use_dora=True)
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv\.weight: has a row or column of norm 0, which DoRA"):
        merge_lora(tmp_path / "base.pth", [source], tmp_path / "out", hyper_parameters=HEADS)
    assert not (tmp_path / "out").exists()


def test_a_default_that_no_file_states_is_said(tmp_path: Path) -> None:
    source = folder(tmp_path, pair(Q))
    config = json.loads((source / "adapter_config.json").read_text())
    del config["lora_alpha"]
    (source / "adapter_config.json").write_text(json.dumps(config))
    report = inspect(source)
    assert report["adapter"]["scales"][0]["source"] == "assumed"
    assert any("8 assumed, PEFT's default" in note for note in report["notes"])


def test_what_lies_beside_is_said_wherever_it_is_left_out(tmp_path: Path) -> None:
    words = "left out, of other models: lora_te_* (21 keys)"
    source = LORA / "d-ot-legacy.safetensors"
    for done in (
        convert_lora(source, tmp_path / "lora"),
        merge_lora(SIGMA, [source], tmp_path / "m", hyper_parameters=HEADS),
    ):
        assert any(words in note for note in done.notes)


def test_a_merged_model_says_so(tmp_path: Path) -> None:
    from converter import convert

    merge_lora(SIGMA, {LORA / "d-ot-kohya.safetensors": 0.8}, tmp_path / "m", hyper_parameters=HEADS)
    words = "merged into it, by conversion.json: d-ot-kohya.safetensors at 0.8"
    assert words in inspect(tmp_path / "m")["notes"]
    assert words in convert(tmp_path / "m", tmp_path / "back.pth", to="original").notes
