"""Files that are not converted are refused for what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from makers import GOLDEN, HEADS, ROOT, pixart, within
from safetensors.torch import save_file
from shaped import INVENTORIES, SANAS

import converter
from converter import Family, InputError, KeyMapping, diff, families, inspect, open_checkpoint
from converter.checkpoint.state_dicts import KEY_LIMIT
from converter.conversion.convert import convert
from converter.families import modified_weights, named
from converter.families.known import FORM_LIMIT
from converter.mapping import Parameter
from converter.models.pixart.table import PIXART
from converter.models.sana.table import KEYS as SANA


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("unet.base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight", "LoRA"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_B.default.weight", "LoRA"),
        ("lora_unet_transformer_blocks_0_attn1_to_q.alpha", "LoRA"),
        ("lora_transformer_blocks_0_attn1_to_q.lora_down.weight", "LoRA"),
        ("x.lora_up.weight", "LoRA"),
        ("x.to_q.lora.down.weight", "LoRA"),
        ("x.dora_scale", "LoRA"),
        # PEFT, an adapter saved alone
        ("base_model.model.blocks.0.attn.qkv.lora_magnitude_vector", "LoRA or other adapter"),
        ("base_model.model.blocks.0.attn.qkv.hada_w1_a", "LoRA or other adapter"),
        ("base_model.model.blocks.0.attn.qkv.lokr_w2_b", "LoRA or other adapter"),
        ("base_model.model.blocks.0.attn.qkv.oft_R.weight", "LoRA or other adapter"),
        ("base_model.model.blocks.0.attn.qkv.boft_s", "LoRA or other adapter"),
        ("base_model.model.blocks.0.attn.qkv.ia3_l", "LoRA or other adapter"),
        ("base_model.model.blocks.0.attn.qkv.vera_lambda_b", "LoRA or other adapter"),
        # Kohya, LyCORIS, OneTrainer, and diffusers before PEFT
        ("lora_unet_blocks_0_attn_qkv.hada_w1_a", "LoRA or other adapter"),
        ("lycoris_blocks_0_attn_qkv.lokr_w1", "LoRA or other adapter"),
        ("lycoris_blocks_0_attn_qkv.diff", "LoRA or other adapter"),
        ("lora_transformer_transformer_blocks_0_attn1_to_q.alpha", "LoRA or other adapter"),
        ("transformer_blocks.0.attn1.processor.to_q_lora.down.weight", "LoRA or other adapter"),
        # Quantised
        ("blocks.0.attn.qkv.weight._data", "quantised weights (quanto)"),
        ("blocks.0.attn.qkv.weight._data._data", "quantised weights (quanto)"),
        ("blocks.0.attn.qkv.weight._scale", "quantised weights (quanto)"),
        ("blocks.0.attn.qkv._weight_qdata", "quantised weights (torchao)"),
        ("blocks.0.attn.qkv.weight:qdata", "quantised weights (torchao)"),
        ("blocks.0.attn.qkv.bias:_data", "quantised weights (torchao)"),
        ("blocks.0.attn.qkv.weight.absmax", "quantised weights (bitsandbytes)"),
        ("blocks.0.attn.qkv.weight.nested_quant_map", "quantised weights (bitsandbytes)"),
        ("blocks.0.attn.qkv.weight.quant_state.bitsandbytes__nf4", "quantised weights (bitsandbytes)"),
        ("blocks.0.attn.qkv.SCB", "quantised weights (bitsandbytes)"),
        ("blocks.0.attn.qkv.qzeros", "quantised weights (GPTQ or AWQ)"),
        ("blocks.0.attn.qkv.g_idx", "quantised weights (GPTQ or AWQ)"),
        ("transformer_blocks.0.attn1.to_qkv.wscales", "quantised weights (SVDQuant)"),
        ("transformer_blocks.0.attn1.to_qkv.smooth_factor_orig", "quantised weights (SVDQuant)"),
        ("blocks.0.attn.qkv.weight_packed", "quantised weights (compressed-tensors)"),
        ("blocks.0.attn.qkv.W_q", "quantised weights (HQQ)"),
        ("blocks.0.attn.qkv._packed_params._packed_params", "quantised weights (torch.ao)"),
        ("scaled_fp8", "quantised weights (with scales"),
        ("model.diffusion_model.scaled_fp8", "quantised weights (with scales"),
        ("blocks.0.attn.qkv.scale_weight", "quantised weights (with scales"),
        ("blocks.0.attn.qkv.weight_scale_inv", "quantised weights (with scales"),
        ("blocks.0.attn.qkv.comfy_quant", "quantised weights (with scales"),
        ("_fsdp_wrapped_module._flat_param", "FSDP flat parameters"),
        ("flat_param_0", "FSDP flat parameters"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "multimodal transformer"),
        ("double_blocks.0.img_attn.qkv.weight", "multimodal transformer"),
        ("controlnet.0.copied_block.mlp.depth_conv.conv.weight", "SANA ControlNet"),
        ("attention_y_norm.weight", "SANA"),
        ("caption_norm.weight", "SANA"),
        ("blocks.7.mlp.inverted_conv.conv.bias", "SANA"),
        ("transformer_blocks.7.ff.conv_depth.weight", "SANA"),
        ("blocks.0.attn_temp.qkv.weight", "video transformer"),
        ("temporal_transformer_blocks.0.attn1.to_q.weight", "video transformer"),
        ("text_embedding_padding", "Hunyuan-DiT"),
        ("temp_embed", "video transformer"),
        ("decoder_pos_embed", "masked diffusion transformer"),
        ("sideblocks.0.attn.qkv.weight", "masked diffusion transformer"),
        ("blocks.3.moe.experts.0.fc1.weight", "mixture of experts"),
        ("cls_token", "vision transformer"),
        ("blocks.21.skip_linear.weight", "Hunyuan-DiT"),
        ("txt_in.individual_token_refiner.blocks.0.norm1.weight", "HunyuanVideo"),
        ("double_layers.0.attn.w2q.weight", "AuraFlow"),
        ("cap_embedder.0.weight", "Lumina"),
        ("patchify_proj.weight", "LTX-Video"),
        ("time_embed.emb.timestep_embedder.linear_1.weight", "LTX-Video"),
        ("blocks.0.attn.qkv_x.weight", "Mochi"),
        ("distilled_guidance_layer.in_proj.bias", "Chroma"),
        ("double_stream_blocks.0.block.adaLN_modulation.1.bias", "HiDream"),
        ("head.modulation", "Wan"),
        ("single_transformer_blocks.0.attn.to_q.weight", "multimodal transformer"),
        ("down_blocks.0.resnets.0.conv1.weight", "U-Net"),
        ("input_blocks.0.0.weight", "U-Net"),
        ("decoder.mid.block_1.conv1.weight", "VAE"),
        ("encoder.conv_in.weight", "VAE"),
        ("encoder.mid_block.resnets.0.conv1.weight", "VAE"),
        ("encoder.block.0.layer.0.SelfAttention.q.weight", "T5 text encoder"),
    ],
)
def test_named_by_one_key_among_others(key: str, what: str) -> None:
    assert what in named(["some.weight", key, "other.bias"])


@pytest.mark.parametrize("name", [name for name in INVENTORIES if not name.startswith("sana-")])
def test_of_the_released_models_none_is_refused_by_name(name: str) -> None:
    assert named(INVENTORIES[name]["tensors"]) == ""


@pytest.mark.parametrize("name", SANAS)
def test_a_sana_is_another_family_to_all_but_its_own(name: str) -> None:
    keys = INVENTORIES[name]["tensors"]
    assert named(keys) == "a SANA transformer, another model family"
    assert named(keys, lambda key: SANA.row_of(key) is not None) == ""


def test_the_golden_files(in_root: object) -> None:
    says = {}
    for name in ("dit.pt", "alpha-controlnet.pth", "sigma-kvcompress.pth", "alpha-ms.pth"):
        with open_checkpoint(f"fixtures/golden/{name}") as checkpoint:
            says[name] = named(checkpoint)
    assert set(says.values()) == {""}


@pytest.mark.parametrize("keys", [[], ["x"], ["explore.weight"], ["downblocks.0.x"], ["blocks.0.attn.qkv.weight"]])
def test_anything_else_has_no_name(keys: list[str]) -> None:
    assert named(keys) == ""


# A whole model with PEFT's layers, against an adapter that was saved alone.
WHOLE = "a whole model with LoRA layers or other adapters (PEFT)"
ADAPTER = "LoRA or other adapter weights, not a whole transformer"
LAYER = "base_model.model.blocks.0.attn.qkv"


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ([f"{LAYER}.base_layer.weight", f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"], WHOLE),
        ([f"{LAYER}.weight", f"{LAYER}.lora_A.default.weight"], WHOLE),  # PEFT up to 0.5
        ([f"{LAYER}.base_layer.base_layer.weight", f"{LAYER}.base_layer.lora_A.a.weight", f"{LAYER}.oft_R.b"], WHOLE),
        ([f"{LAYER}.base_layer.weight", f"{LAYER}.ia3_l.default"], WHOLE),
        ([f"{LAYER}.base_layer.weight", f"{LAYER}.lokr_w1.default", f"{LAYER}.lokr_w2_a.default"], WHOLE),
        ([f"{LAYER}.base_layer.bias", f"{LAYER}.base_layer.weight"], WHOLE),  # what is left without the adapters
        (["blocks.0.attn1.to_q.base_layer.weight", "blocks.0.attn1.to_q.lora_A.x.weight"], WHOLE),  # diffusers' mixin
        (["base_model.model.final_layer.original_module.weight"], WHOLE),
        (["a.original_module.weight", "a.modules_to_save.default.weight", f"{LAYER}.lora_A.default.weight"], WHOLE),
        ([f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight", "base_model.model.final_layer.weight"], ADAPTER),
        ([f"{LAYER}.lora_A.weight", "y.base_layer.weight", "y.lora_A.weight"], ADAPTER),
        ([f"{LAYER}.lora_A.default.weight"], ADAPTER),
        (["lora_unet_blocks_0_qkv.lora_down.weight", "lora_unet_blocks_0_qkv.alpha"], ADAPTER),
    ],
)  # fmt: skip
def test_a_model_with_its_adapters_is_no_adapter(keys: list[str], what: str) -> None:
    assert named(keys).startswith(what)
    assert ("merge_and_unload()" in named(keys)) == (what == WHOLE)
    # In every block, among the weights that no adapter touches.
    blocks = [key.replace("blocks.0", f"blocks.{i}") for i in range(3) for key in keys]
    assert named(["pos_embed", "x_embedder.proj.bias", *blocks]).startswith(what)
    assert modified_weights(keys) == named(keys)


def test_what_alters_weights_is_told_apart_from_what_is_another_model() -> None:
    beside = ["encoder.conv_in.weight", "encoder.block.0.layer.0.SelfAttention.q.weight", "input_blocks.0.0.weight"]
    assert named(beside)
    assert modified_weights(beside) == ""
    assert modified_weights([*beside, "scaled_fp8"]).startswith("quantised weights")
    for part in ("0.before_proj.weight", "12.after_proj.bias", "3.copied_block.attn.qkv.weight"):
        keys = [*beside, f"controlnet.{part}"]
        assert "copied blocks of a PixArt ControlNet" in modified_weights(keys, beside=True)
        assert modified_weights(keys) == ""


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("12-peft-merged-not-unloaded.pth", WHOLE),
        ("21-quanto-int8.safetensors", "quantised weights (quanto): use the original weights"),
    ],
)
@pytest.mark.parametrize("family", [None, "pixart"])
def test_cases_that_libraries_made(case: str, line: str, family: str | None, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        convert(
            ROOT / "fixtures" / "cases" / case,
            tmp_path / "out",
            family=family,
            hyper_parameters={"num_attention_heads": HEADS},
        )
    assert f"this is {line}" in str(caught.value)
    assert not (tmp_path / "out").exists()


def beside(*ends: str) -> Callable[[str], list[str]]:
    return lambda layer: [layer + end for end in ends]


@pytest.mark.parametrize(
    "more",
    [
        beside(".scale_weight"),
        beside(".weight.absmax", ".weight.quant_map", ".weight.quant_state.bitsandbytes__nf4"),
        beside(".weight_scale"),
        beside(".lora_A.default.weight", ".lora_B.default.weight"),
    ],
)
def test_a_family_that_knows_nearly_every_key_changes_nothing(more: Callable[[str], list[str]], tmp_path: Path) -> None:
    state = pixart()
    layers = [key.removesuffix(".weight") for key in state if key.endswith("qkv.weight")]
    state |= {key: torch.ones(1) for layer in layers for key in more(layer)}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"this is (quantised weights|a whole model with LoRA layers)"):
        convert(tmp_path / "a.safetensors", tmp_path / "out", hyper_parameters={"num_attention_heads": HEADS})


def test_of_keys_without_end_a_bounded_number_is_looked_at() -> None:
    numbers = iter(range(100_000))
    assert named(f"oft_{i}-" for i in numbers) == ""
    assert next(numbers) == 2 * FORM_LIMIT  # at first, which keys change what others mean, and then all else


@pytest.mark.parametrize("part", [".", ".oft_", "oft_", "1.", "a.1.", "blocks.1.lora_"])
def test_nor_does_a_long_key_take_longer_than_a_tenth_of_a_second(part: str) -> None:
    keys = [f"{part * (KEY_LIMIT // len(part))}{i}-" for i in range(100)]
    with within(10, of_processor=True):  # of which it takes a hundredth
        assert named(keys) == ""


# Neighbours that share most of their names, and marks of a family.
SANA_FILE = GOLDEN / "sana-1024.pth"


def test_a_sana_is_never_called_a_pixart(tmp_path: Path) -> None:
    state = torch.load(SANA_FILE, weights_only=True)["state_dict"]
    assert 2 * PIXART.keys.known(state) > len(state)
    assert inspect(SANA_FILE)["family"] == "sana"
    save_file(pixart(), tmp_path / "pixart.safetensors")
    assert inspect(tmp_path / "pixart.safetensors")["family"] == "pixart"
    with pytest.raises(InputError, match=r"is a SANA, and .* is a PixArt"):
        diff(tmp_path / "pixart.safetensors", SANA_FILE)
    # Even where somebody insists.
    with pytest.raises(InputError, match="not a PixArt that can be converted: this is a SANA transformer"):
        convert(SANA_FILE, tmp_path / "out", family="pixart")
    with pytest.raises(InputError, match=r"not a SANA that can be converted: .*missing attention_y_norm"):
        convert(tmp_path / "pixart.safetensors", tmp_path / "out", family="sana")


def marked(*marks: str) -> Family:
    """A family that knows little of a masked diffusion transformer, and has marks."""
    keys = KeyMapping({"mask_token": Parameter("mask_token"), "x_embedder.proj": "patch_embed.proj"})
    return Family("mine", "Mine", keys, lambda *_: None, lambda found: {"_class_name": "Mine"}, marks=marks)


def test_a_mark_decides_whatever_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_REGISTERED", {})
    state = pixart() | {"mask_token": torch.ones(1), "sideblocks.0.fc.weight": torch.ones(1)}
    converter.register(marked())
    assert families.recognise(state) is None
    for marks in (("mask_token",), ("sideblocks.{}.fc",), ("none", "sideblocks.0.fc.weight")):
        converter.register(marked(*marks))
        assert families.recognise(state) == (families.families()["mine"], False)
    converter.register(marked("mask_tok", "sideblocks.fc"))
    assert families.recognise(state) is None
    converter.register(marked("mask_token"))
    assert families.recognise(state | {"scaled_fp8": torch.ones(1)}) is None
    assert families.recognise(pixart()) == (PIXART, False)


def test_what_a_family_knows_itself_is_no_sign_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_REGISTERED", {})
    keys = KeyMapping({"double_blocks.{}.fc": "transformer_blocks.{}.fc", "out": "proj_out"})
    converter.register(Family("mine", "Mine", keys, lambda *_: None, lambda found: {}))
    state = dict.fromkeys(["double_blocks.0.fc.weight", "double_blocks.0.fc.bias", "out.weight", "out.scale"])
    assert families.recognise(state) == (families.families()["mine"], False)
    assert families.recognise(state | {"joint_blocks.0.x": None}) is None
