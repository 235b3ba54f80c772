"""A live model's weights in the layout of the training code: what it was loaded from, and what it was trained to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import GOLDEN, HEADS, convert, diffusers_keyed, dit, pixart, prefixed, raw_bytes, save
from safetensors.torch import load_file

import converter
from converter.models.pixart.pixart_controlnet import PixArtControlNetTransformerModel

GIVEN = {"num_attention_heads": HEADS}
CAPTION = "y_embedder.y_embedding"


def load(source: object, **words: Any) -> Any:
    return converter.load(source, **{"hyper_parameters": GIVEN} | words)


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape), key
        assert raw_bytes(tensor.cpu()) == raw_bytes(other[key]), key


@pytest.mark.parametrize(("name", "weights"), [
    ("alpha-ms.pth", "raw"), ("alpha-ms.pth", "ema"), ("alpha-fixed.pth", None), ("sigma-ms.pth", None),
    ("sigma-qknorm.pth", None), ("sigma-kvcompress.pth", None), ("dit.pt", None),
])  # fmt: skip
def test_what_was_loaded_comes_back_bit_for_bit(name: str, weights: str | None, tmp_path: Path) -> None:
    source = torch.load(GOLDEN / name, weights_only=True)
    wanted = source.get("state_dict_ema" if weights == "ema" else "state_dict", source)
    model = load(GOLDEN / name, weights=weights)
    back = converter.state_dict(model, null_caption=wanted.get(CAPTION))
    same(back, wanted)
    torch.save({"state_dict": back}, tmp_path / "back.pth")
    same(load(tmp_path / "back.pth").state_dict(), model.state_dict())


def test_models_of_several_folders_are_one(tmp_path: Path) -> None:
    path = GOLDEN / "alpha-controlnet.pth"
    state, models = torch.load(path, weights_only=True)["state_dict"], load(path)
    same(converter.state_dict(models, null_caption=path), state)
    of_base = {
        key.removeprefix("base_model."): tensor for key, tensor in state.items() if key.startswith("base_model.")
    }
    same(converter.state_dict(models["transformer"], null_caption=of_base[CAPTION]), of_base)
    copies = {key: tensor for key, tensor in state.items() if key not in prefixed(of_base, "base_model.")}
    for alone in (models["controlnet"], {"controlnet": models["controlnet"]}):
        same(converter.state_dict(alone), copies)
    models["controlnet"] = torch.compile(models["controlnet"])
    for whole in (models, PixArtControlNetTransformerModel(**models)):
        same(converter.state_dict(whole, null_caption=path), state)


def of_a_pixart() -> Any:
    return load(GOLDEN / "alpha-ms.pth")


def of_a_dit() -> Any:
    return load(GOLDEN / "dit.pt")


def of_an_adapter() -> Any:
    return load(GOLDEN / "alpha-controlnet.pth")["controlnet"]


def of_both() -> Any:
    return PixArtControlNetTransformerModel(**load(GOLDEN / "alpha-controlnet.pth"))


@pytest.mark.parametrize("loaded", [of_a_pixart, of_a_dit, of_an_adapter, of_both])
def test_the_model_takes_its_weights_of_the_layout_diffusers(loaded: Callable[[], Any]) -> None:
    model = loaded()
    wanted = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = {key: tensor.clone() for key, tensor in converter.state_dict(model, "diffusers").items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    model.load_state_dict(weights, strict=True)
    same(model.state_dict(), wanted)


@settings(max_examples=8)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    depth=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_loading_and_taking_the_weights_back_are_inverse(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, depth: int, seed: int
) -> None:
    for state in (pixart(depth=depth, seed=seed), dit(depth=depth, seed=seed)):
        stored = {key: tensor if key == "pos_embed" else tensor.to(dtype) for key, tensor in state.items()}
        path = save(stored, tmp_path_factory.mktemp("a") / "a.pth")
        model = load(path, torch_dtype=dtype)
        same(converter.state_dict(model, null_caption=stored.get(CAPTION)), stored)


def test_training_and_a_change_of_dtype_are_taken_along(tmp_path: Path) -> None:
    state = pixart()
    model = load(save(state, tmp_path / "a.pth"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    back = converter.state_dict(model.to(torch.bfloat16))
    doubled = {key: (tensor * 2).bfloat16() for key, tensor in state.items() if key not in (CAPTION, "pos_embed")}
    same(back, doubled | {"pos_embed": state["pos_embed"]})
    assert back["x_embedder.proj.weight"].data_ptr() == model.pos_embed.proj.weight.data_ptr()


def test_wrapped_models(tmp_path: Path) -> None:
    state = pixart()
    model = load(save(state, tmp_path / "a.pth"))
    wanted = converter.state_dict(model)

    class Wrapper(torch.nn.Module):
        """As `DistributedDataParallel` keeps its model."""

        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    for wrapped in (torch.compile(model), Wrapper(model), Wrapper(torch.compile(model)), torch.compile(Wrapper(model))):
        same(converter.state_dict(wrapped), wanted)
        same(converter.state_dict(wrapped, "diffusers"), diffusers_keyed(state))
    blocks = list(model.transformer_blocks)
    for name in ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module"):
        model.transformer_blocks[0] = torch.nn.ModuleDict({name: blocks[0]})
        assert f"transformer_blocks.0.{name}.scale_shift_table" in model.state_dict()
        same(converter.state_dict(model), wanted)
        same(converter.state_dict(model, "diffusers"), diffusers_keyed(state))
    model.transformer_blocks[0] = torch.compile(blocks[0])
    same(converter.state_dict(model), wanted)


def test_the_null_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = pixart()
    path = save(state, tmp_path / "a.pth")
    model = load(path)
    with caplog.at_level(logging.WARNING, "converter"):
        assert converter.state_dict(model).keys() == state.keys() - {CAPTION}
    assert any(f"left out: {CAPTION}" in message for message in caplog.messages)
    for caption in (path, state[CAPTION], state[CAPTION][None]):
        same(converter.state_dict(model, null_caption=caption), state)
    with pytest.raises(converter.InputError, match=rf"null_caption: .*is not the {CAPTION} of this model"):
        converter.state_dict(model, null_caption=torch.ones(3, 5))
    with pytest.raises(converter.UsageError, match="`null_caption`: a DiT has none"):
        converter.state_dict(load(GOLDEN / "dit.pt"), null_caption=torch.ones(3, 5))


def test_comfyui(tmp_path: Path) -> None:
    state = pixart()
    path = save(state, tmp_path / "a.pth")
    convert(path, tmp_path / "a.safetensors", to="comfyui")
    back = converter.state_dict(load(path), "comfyui", null_caption=path)
    same(back, load_file(tmp_path / "a.safetensors"))
    assert back.keys() == prefixed(state, "model.diffusion_model.").keys()
    with pytest.raises(converter.UsageError, match=r"^the layout comfyui: ComfyUI cannot read a"):
        converter.state_dict(load(save(dit(), tmp_path / "dit.pth")), "comfyui")


def test_copies_that_were_trained_apart_are_refused(tmp_path: Path) -> None:
    model = load(save(dit(), tmp_path / "a.pth"))
    with torch.no_grad():
        model.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.weight[0, 0] += 1
    with pytest.raises(converter.InputError, match=r"DiT\w+: .*have to be copies of t_embedder.mlp.0.weight"):
        converter.state_dict(model)


@pytest.mark.parametrize(("model", "rule"), [
    (torch.nn.Linear(2, 2), "`model`: a model of diffusers is needed, .*, not a Linear"),
    (None, "`model`: a model of diffusers is needed, .*, not a NoneType"),
    ({}, "`model`: a model of diffusers is needed, .*, not a NoneType"),
])  # fmt: skip
def test_what_is_no_model(model: Any, rule: str) -> None:
    with pytest.raises(converter.UsageError, match=rule):
        converter.state_dict(model)


def test_an_offloaded_model(tmp_path: Path) -> None:
    model = load(save(dit(), tmp_path / "a.pth"))
    wanted = converter.state_dict(model)
    rule = r"DiT\w+: \S+ is on the device meta, as of a model that is offloaded: its values are not in memory; "
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    for layout in ("original", "diffusers"):
        with pytest.raises(converter.UsageError, match=rule) as caught:
            converter.state_dict(model, layout)
        assert "\n" not in str(caught.value)
    accelerate.hooks.remove_hook_from_submodules(model)  # as the error says
    same(converter.state_dict(model), wanted)


def test_a_null_caption_that_is_not_in_memory(tmp_path: Path) -> None:
    model = load(save(pixart(), tmp_path / "a.pth"))
    caption = torch.empty_like(pixart()["y_embedder.y_embedding"], device="meta")
    with pytest.raises(converter.UsageError, match="null_caption is on the device meta, as of a model"):
        converter.state_dict(model, null_caption=caption)


def test_other_models_and_layouts(tmp_path: Path) -> None:
    model = load(save(pixart(), tmp_path / "a.pth"))
    with pytest.raises(converter.UsageError, match="`layout` 'pixart': one of diffusers, original, comfyui"):
        converter.state_dict(model, "pixart")
    with pytest.raises(converter.InputError, match="not a DiT that can be converted"):
        converter.state_dict(model, family="dit")
    del model.proj_out.bias
    with pytest.raises(converter.InputError, match=r"PixArtTransformer2DModel: .*missing proj_out.bias") as caught:
        converter.state_dict(model)
    assert "\n" not in str(caught.value)


def test_what_lies_in_the_current_folder_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(save(pixart(), tmp_path / "a.pth"))
    wanted = converter.state_dict(model)
    (tmp_path / "config.json").write_text('{"_class_name": "Other", "patch_size": 4}')
    (tmp_path / "conversion.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    same(converter.state_dict(model), wanted)
