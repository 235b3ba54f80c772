"""What must never be applied, or only in part: one line, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_makers import HEADS, LORA, SIGMA, D, pair, write

from converter import InputError, UsageError, convert_lora, inspect, inspect_lora, merge_lora
from converter.lora.reading import open_adapter

Q, K = "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_k"
GOOD = pair(f"transformer.{Q}")


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    tensors = GOOD | pair(f"transformer.{K}")
    change(tensors)
    return tensors


def without(end: str) -> dict[str, Any]:
    return changed(lambda tensors: tensors.pop(f"transformer.{K}.{end}"))


def with_nan(value: float) -> dict[str, Any]:
    tensors = pair(f"transformer.{Q}")
    tensors[f"transformer.{Q}.lora_A.weight"][1, 3] = value
    return tensors


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no up factor": (without("lora_B.weight"), "half a pair: lora_A (lora_down) without lora_B (lora_up) in " + K),
    "no down factor": (without("lora_A.weight"), "half a pair: lora_B (lora_up) without lora_A (lora_down) in " + K),
    "ranks": (
        GOOD | pair(f"transformer.{K}") | {f"transformer.{K}.lora_B.weight": np.ones((D, 3), "f4")},
        "down [2, 48], up [48, 3] do not fit in " + K,
    ),
    "width": (GOOD | pair(f"transformer.{K}") | pair("transformer.transformer_blocks.2.attn1.to_v", width=40),
              "[48, 40], where [48, 48] (table: [D D]) is needed, for transformer_blocks.2.attn1.to_v.weight"),
    "NaN": (with_nan(np.nan), "1 elements are NaN or infinite"),
    "infinity": (with_nan(np.inf), "1 elements are NaN or infinite"),
    "unknown module": (GOOD | pair("transformer.transformer_blocks.1.attn3.to_q"),
                       "unknown modules transformer.transformer_blocks.1.attn3.to_q"),
    "foreign key": (GOOD | {"optimizer_step": np.zeros(1, "f4")}, "keys that are none of an adapter's optimizer_step"),
    "twice": (GOOD | {f"transformer.{Q}.lora_A.default.weight": np.ones((2, D), "f4")}, "are both of " + Q),
    "two kinds": (GOOD | {f"transformer.{Q}.diff": np.ones((D, D), "f4")}, "which are of two kinds, in " + Q),
    "alpha alone": (GOOD | {f"transformer.{K}.alpha": np.ones((), "f4")}, "alpha and nothing that it is of, in " + K),
    "half a LoHa": (GOOD | {f"transformer.{K}.hada_w1_a": np.ones((D, 2), "f4")}, "an incomplete LoHa in " + K),
    "half a LoKr": (GOOD | {f"transformer.{K}.lokr_w1": np.ones((4, 4), "f4")}, "an incomplete LoKr in " + K),
    "magnitudes": (GOOD | {f"transformer.{Q}.dora_scale": np.ones((7, 1), "f4")}, "magnitudes [7, 1] that are for"),
    "empty": (GOOD | pair(f"transformer.{K}", rank=0), "an empty tensor in " + K),
    "a model": ({f"transformer.{Q}.weight": np.ones((D, D), "f4")}, "no LoRA or other adapter"),
    "SDXL": (pair("lora_unet_down_blocks_1_attentions_0_proj_in", ends="du"), "an adapter (LoRA) of a U-Net"),
    "Flux": (pair("lora_unet_double_blocks_0_img_attn_qkv", ends="du"), "an adapter (LoRA) of a multimodal"),
    "Lumina": (pair("diffusion_model.noise_refiner.0.attention.qkv"), "an adapter (LoRA) of a Lumina transformer"),
    "nobody's": (pair("lora_unet_some_layer", ends="du"), "an adapter (LoRA) of a model that is not known here"),
    "text encoder": (
        pair("lora_te_encoder_block_0_layer_0_SelfAttention_q", ends="du"),
        "changes nothing of a transformer (it has lora_te_",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "words"), BAD.values(), ids=BAD.keys())
def test_refused_by_conversion_and_merge(tensors: dict[str, Any], words: str, tmp_path: Path) -> None:
    source = write(tmp_path / "bad.safetensors", tensors)
    for call in (
        lambda: convert_lora(source, tmp_path / "out", "peft"),
        lambda: merge_lora(SIGMA, [source], tmp_path / "out", hyper_parameters=HEADS),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors"]


PARTIAL = [name for name, (_, words) in BAD.items() if " in transformer_blocks.1" in words or "unknown" in words]


@pytest.mark.parametrize("name", PARTIAL)
def test_left_out_on_demand_and_said(name: str, tmp_path: Path) -> None:
    tensors, words = BAD[name]
    source, good = (write(tmp_path / f"{n}.safetensors", t) for n, t in (("bad", tensors), ("good", GOOD)))
    done = merge_lora(SIGMA, [source], tmp_path / "out", hyper_parameters=HEADS, allow_partial=True)
    assert any(f"left out: {words.partition(': ')[0]}" in note for note in done.notes)
    assert done.record["adapters"][0]["left_out"]
    right = merge_lora(SIGMA, [good], tmp_path / "right", hyper_parameters=HEADS)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (done.path / weights).read_bytes() == (right.path / weights).read_bytes()


def test_the_base_has_the_last_word(tmp_path: Path) -> None:
    merged = tmp_path / "out"
    with pytest.raises(InputError, match=r"the model has no transformer_blocks\.9\.attn1\.to_q\.weight; nothing of it"):
        merge_lora(SIGMA, [LORA / "refuse" / "unknown-module.safetensors"], merged, hyper_parameters=HEADS)
    wide = write(tmp_path / "wide.safetensors", pair(f"transformer.{Q}", out=64, width=64))
    with pytest.raises(InputError, match=r"a change of \[64, 64\], where the model has \[48, 48\]"):
        merge_lora(SIGMA, [wide], merged, hyper_parameters=HEADS)
    controls = SIGMA.with_name("dit.pt")
    with pytest.raises(InputError, match=r"an adapter \(LoRA\) of a PixArt, and the model is a DiT"):
        merge_lora(controls, [LORA / "d-ot-kohya.safetensors"], merged, hyper_parameters=HEADS)
    other = write(tmp_path / "sana.safetensors", pair("diffusion_model.blocks.0.mlp.inverted_conv.conv"))
    with pytest.raises(InputError, match=r"an adapter \(LoRA\) of a SANA, and the model is a PixArt"):
        merge_lora(SIGMA, [other], merged, hyper_parameters=HEADS)
    assert not merged.exists()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_inits_that_change_the_base(init: str, tmp_path: Path) -> None:
    folder = configured(tmp_path, init_lora_weights=init)
    with pytest.raises(InputError, match=rf"init_lora_weights {init} changed the weights of the base"):
        convert_lora(folder, tmp_path / "out", "diffusers")
    report = inspect(folder)
    assert report["problems"]
    assert report["adapter"]["kinds"] == {"LoRA": 14}


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", None])
def test_inits_that_leave_the_base_alone(init: Any, tmp_path: Path) -> None:
    with open_adapter(configured(tmp_path, init_lora_weights=init)) as adapter:
        assert len(adapter.changes) == 14


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "OFT"}, "peft_type OFT: LORA, LOHA, LOKR can be read"),
    "parameters": ({"target_parameters": ["x"]}, "target_parameters is set"),
    "QALoRA": ({"use_qalora": True}, "use_qalora is set"),
    "rank": ({"r": 8}, "r: 8 for adaln_single.linear, whose tensors have rank 16"),
    "alpha": ({"lora_alpha": "8"}, "lora_alpha: '8': a number is needed"),
    "patterns": ({"rank_pattern": [1]}, "rank_pattern: not a map"),
    "slow pattern": ({"alpha_pattern": {"(a+)+$": 1}}, "a pattern that may take too long to match"),
    "broken pattern": ({"alpha_pattern": {"(": 1}}, "no regular expression"),
}


@pytest.mark.parametrize(("fields", "words"), CONFIGS.values(), ids=CONFIGS.keys())
def test_configs_that_are_not_understood(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        convert_lora(configured(tmp_path, **fields), tmp_path / "out", "diffusers")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def configured(tmp_path: Path, **fields: Any) -> Path:
    """A folder of PEFT with other fields in its config."""
    folder = tmp_path / "peft"
    shutil.copytree(LORA / "d-train-r16", folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | fields
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_two_patterns_that_match_one_module_are_noted(tmp_path: Path) -> None:
    folder = configured(tmp_path, alpha_pattern={"attn1.to_q": 4, "to_q": 2})
    report = inspect_lora(folder)
    assert {group["scale"] for group in report["adapter"]["scales"]} == {0.25, 0.125, 0.5}
    assert any("several alpha_pattern match one module" in note for note in report["notes"])


def test_alpha_is_asked_for_and_never_contradicted(tmp_path: Path) -> None:
    alone = tmp_path / "adapter_model.safetensors"
    shutil.copy(LORA / "d-train-r16" / alone.name, alone)
    with pytest.raises(UsageError, match="`lora_alpha` is needed: PEFT wrote this"):
        convert_lora(alone, tmp_path / "out")
    assert inspect(alone)["needs"].startswith("`lora_alpha` is needed")
    convert_lora(alone, tmp_path / "out", lora_alpha=8)
    with pytest.raises(UsageError, match=r"`lora_alpha` 4 contradicts .* whose config gives .* the alpha 8"):
        convert_lora(LORA / "d-train-r16", tmp_path / "other", lora_alpha=4)
    scripts = tmp_path / "pytorch_lora_weights.safetensors"
    shutil.copy(LORA / "d-train-hf" / "transformer_lora" / scripts.name, scripts)
    report = inspect(scripts)
    assert report["adapter"]["scales"] == [{"scale": 2.0, "rank": 4, "alpha": 8.0, "source": "assumed", "modules": 41}]
    assert any("8 assumed" in note for note in report["notes"])


def test_pickles_are_read_by_the_strict_reader(tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("ran",)

    tensors = {key: torch.from_numpy(held) for key, held in GOOD.items()}
    torch.save(tensors, tmp_path / "good.bin")
    with open_adapter(tmp_path / "good.bin") as adapter:
        assert list(adapter.changes) == [f"{Q}.weight"]
    torch.save(tensors | {f"transformer.{K}.lora_A.weight": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(InputError):
        convert_lora(tmp_path / "evil.bin", tmp_path / "out")


def test_a_model_in_training_is_no_adapter_of_its_own_weights(tmp_path: Path) -> None:
    """A trainer's own state dict: base weights beside the factors, which have the adapter's name in them."""
    names = ("base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")
    shapes = ((D, D), (D,), (4, D), (D, 4))
    tensors = {f"base_model.model.{Q}.{name}": np.ones(shape, "f4") for name, shape in zip(names, shapes, strict=True)}
    tensors |= {"base_model.model.proj_out.weight": np.ones((32, D), "f4")}
    with open_adapter(write(tmp_path / "state.safetensors", tensors)) as adapter:
        assert list(adapter.changes) == [f"{Q}.weight"]
        assert (adapter.changes[f"{Q}.weight"].scale, adapter.changes[f"{Q}.weight"].alpha) == (2.0, "assumed")
