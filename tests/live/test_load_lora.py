"""Adapters in a live model: what PEFT's layers then compute, and that the model is itself again without them."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from makers import GOLDEN, HEADS, ROOT, dit, raw_bytes, save
from parts import PARTS, vae_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import converter
from converter import InputError, UsageError
from converter.lora.merge import merge_lora

ADAPTERS = ROOT / "fixtures" / "lora"
TOLERANCE = 2e-5
GIVEN = {"num_attention_heads": HEADS}
KOHYA, DORA, WHOLE, INPUTS = (
    ADAPTERS / name
    for name in ("d-ot-kohya.safetensors", "d-dora", "d-lycoris-full.safetensors", "d-ot-dora-in.safetensors")
)


def metadata(golden: Path) -> dict[str, str]:
    with safe_open(golden, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


RECORDED = {
    file: golden for golden in ADAPTERS.glob("*.golden.safetensors") for file in json.loads(metadata(golden)["files"])
}


# One of each kind.
KINDS = [
    name for name in sorted(RECORDED) if name.startswith((
        "d-ot-kohya", "d-patterns", "d-dora", "d-ot-dora-in", "d-ot-dora-out-k", "d-peft-loha", "d-ot-lokr", "d-save",
        "d-layers", "d-lycoris-full",
    ))
]  # fmt: skip


def weights_of(base: str) -> dict[str, Any]:
    return {"hyper_parameters": GIVEN} | ({"weights": "raw"} if base == "alpha-ms" else {})


def model_of(base: str = "sigma-ms", **words: Any) -> Any:
    return converter.load(GOLDEN / f"{base}.pth", **weights_of(base) | words)


def merged(adapters: Mapping[Path, float], folder: Path, base: str = "sigma-ms") -> Any:
    merge_lora(GOLDEN / f"{base}.pth", adapters, folder, **weights_of(base))
    return converter.load(folder)


def cases(golden: Path) -> list[dict[str, torch.Tensor]]:
    tensors = load_file(golden)
    numbers = sorted({key.partition(".")[0] for key in tensors})
    return [{key.partition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{n}.")} for n in numbers]


def run(model: Any, case: Mapping[str, torch.Tensor]) -> torch.Tensor:
    micro = model.config.use_additional_conditions
    with torch.no_grad():
        output: torch.Tensor = model(
            case["latent"].to(model.dtype),
            encoder_hidden_states=case["caption"][:, 0].to(model.dtype),
            encoder_attention_mask=case["caption_mask"][:, 0, 0],
            timestep=case["timestep"],
            added_cond_kwargs={
                "resolution": case["img_hw"] if micro else None,
                "aspect_ratio": case["aspect_ratio"] if micro else None,
            },
        ).sample
    return output.float()


CASE = cases(ADAPTERS / "d-ot-kohya.golden.safetensors")[0]


def near(one: Any, other: Any, tolerance: float = TOLERANCE) -> None:
    """Both models compute the same."""
    assert (run(one, CASE) - run(other, CASE)).abs().max() < tolerance


def everything(model: Any) -> tuple[Any, ...]:
    """What a model is: its class, its layers, its config, and every byte of it."""
    layers = [(name, type(module)) for name, module in model.named_modules()]
    weights = {key: (tensor.dtype, raw_bytes(tensor)) for key, tensor in model.state_dict().items()}
    return layers[1:], dict(model.config), [*weights.items()], hasattr(model, "peft_config")


@pytest.mark.parametrize("file", sorted(RECORDED))
def test_what_the_tools_computed(file: str) -> None:
    golden = RECORDED[file]
    model = model_of(metadata(golden)["base"])
    before, found = everything(model), cases(golden)
    wanted = [case["output"] for case in found]
    assert max((run(model, case) - case["output"]).abs().max() for case in found) > 0.01
    converter.load_lora(model, ADAPTERS / file)
    assert max((run(model, c) - output).abs().max() for c, output in zip(found, wanted, strict=True)) < TOLERANCE
    if file not in KINDS:
        model.unload_lora()
        assert everything(model) == before
        return
    model.fuse_lora()
    assert max((run(model, c) - output).abs().max() for c, output in zip(found, wanted, strict=True)) < TOLERANCE
    model.unfuse_lora()
    model.unload_lora()
    again = model_of(metadata(golden)["base"])
    assert (run(model, found[0]) - run(again, found[0])).abs().max() < TOLERANCE  # fusing rounds


@pytest.mark.parametrize("file", KINDS)
def test_a_weight_is_a_strength_of_merging(file: str, tmp_path: Path) -> None:
    golden = RECORDED[file]
    base, found = metadata(golden)["base"], cases(golden)
    model = model_of(base)
    converter.load_lora(model, ADAPTERS / file, "new", 0.5)
    wanted = merged({ADAPTERS / file: 0.5}, tmp_path / "out", base)
    assert max((run(model, case) - run(wanted, case)).abs().max() for case in found) < TOLERANCE


def test_a_weight_of_nothing() -> None:
    for adapter in (KOHYA, WHOLE, INPUTS):
        model = model_of()
        converter.load_lora(model, adapter, weight=0)
        near(model, model_of())
        model.set_adapters("default", 1.0)
        converter.load_lora(wanted := model_of(), adapter)
        near(model, wanted)


def test_several_adapters(tmp_path: Path) -> None:
    weights = {KOHYA: 0.7, DORA: 0.4, WHOLE: -0.5, INPUTS: 0.3}
    model, before = model_of(), everything(model_of())
    for path, weight in weights.items():
        converter.load_lora(model, path, path.stem, weight)
    assert model.active_adapters() == [DORA.stem, KOHYA.stem, WHOLE.stem, INPUTS.stem]
    near(model, merged(weights, tmp_path / "all"))
    model.set_adapters([KOHYA.stem, WHOLE.stem], [0.2, 1.0])
    near(model, merged({KOHYA: 0.2, WHOLE: 1.0}, tmp_path / "two"))
    model.disable_lora()
    near(model, model_of(), 1e-9)
    model.enable_lora()
    model.delete_adapters([KOHYA.stem, DORA.stem])
    assert [*model.peft_config] == [WHOLE.stem, INPUTS.stem]
    assert model.active_adapters() == [WHOLE.stem]
    near(model, merged({WHOLE: 1.0}, tmp_path / "one"))
    converter.load_lora(model, KOHYA, KOHYA.stem, 0.7)
    assert model.active_adapters() == [WHOLE.stem, KOHYA.stem]
    near(model, merged({WHOLE: 1.0, KOHYA: 0.7}, tmp_path / "other"))
    model.unload_lora()
    assert everything(model) == before


def test_whole_differences_are_of_the_model_without_its_other_adapters(tmp_path: Path) -> None:
    model = model_of()
    converter.load_lora(model, KOHYA, "first")
    converter.load_lora(model, ADAPTERS / "d-save", "second")
    near(model, merged({KOHYA: 1.0, ADAPTERS / "d-save": 1.0}, tmp_path / "out"))


def test_deleting_the_last_and_loading_again() -> None:
    model = model_of()
    converter.load_lora(model, KOHYA)
    model.delete_adapters("default")
    near(model, model_of(), 1e-9)
    converter.load_lora(model, KOHYA)
    converter.load_lora(wanted := model_of(), KOHYA)
    near(model, wanted, 1e-9)


def test_after_disabling_another_is_not_half_there(tmp_path: Path) -> None:
    model = model_of()
    converter.load_lora(model, ADAPTERS / "d-layers", "some")  # not all blocks
    model.disable_lora()
    converter.load_lora(model, KOHYA, "all")
    near(model, merged({ADAPTERS / "d-layers": 1.0, KOHYA: 1.0}, tmp_path / "out"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("adapter", [KOHYA, INPUTS])
def test_other_dtypes(dtype: torch.dtype, adapter: Path) -> None:
    model = model_of(torch_dtype=dtype)
    before = everything(model)
    converter.load_lora(model, adapter)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    wanted = model_of()
    converter.load_lora(wanted, adapter)
    case = {name: t.double() if t.is_floating_point() and dtype == torch.float64 else t for name, t in CASE.items()}
    error = (run(model, case) - run(wanted, CASE)).norm() / run(wanted, CASE).norm()
    assert error < {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 2e-5}[dtype]
    model.unload_lora()
    assert everything(model) == before


@pytest.mark.parametrize("adapter", [KOHYA, DORA, WHOLE])
def test_what_is_saved_is_the_model_itself(adapter: Path, tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path / "before")
    weights = converter.state_dict(model)
    converter.load_lora(model, adapter)
    model.save_pretrained(tmp_path / "with")
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()
    assert {key: raw_bytes(t) for key, t in converter.state_dict(model).items()} == {
        key: raw_bytes(t) for key, t in weights.items()
    }
    model.fuse_lora()
    model.save_pretrained(tmp_path / "fused")
    near(PixArtTransformer2DModel.from_pretrained(tmp_path / "fused"), model)
    near(type(model).from_pretrained(tmp_path / "fused"), model)


def test_the_class_is_the_same_by_every_name(tmp_path: Path) -> None:
    model = model_of()
    kind = type(model)
    converter.load_lora(model, KOHYA)
    assert isinstance(model, kind)
    assert (type(model).__name__, type(model).__module__) == (kind.__name__, kind.__module__)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert type(other) is type(model)
        near(other, model, 1e-9)
        other.unload_lora()
        near(other, model_of(), 1e-9)
    assert model.active_adapters() == ["default"]


def test_what_diffusers_saves_it_reads_again(tmp_path: Path) -> None:
    model = model_of()
    converter.load_lora(model, ADAPTERS / "d-patterns", "mine", 0.5)
    file = "pytorch_lora_weights.safetensors"
    model.save_lora_adapter(tmp_path, "mine", weight_name=file)
    converter.load_lora(wanted := model_of(), ADAPTERS / "d-patterns")
    again = model_of()
    converter.load_lora(again, KOHYA)  # for the methods of diffusers
    again.unload_lora()
    again.load_lora_adapter(tmp_path, prefix=None, adapter_name="again", weight_name=file)
    near(again, wanted)


def test_a_compiled_model_is_the_one_inside() -> None:
    model = model_of()
    converter.load_lora(torch.compile(model), KOHYA)
    assert model.active_adapters() == ["default"]


# Adapters that no tool's recording is of, against what merging makes of them.


def low(rows: int, columns: int, rank: int = 2, *kernel: int) -> dict[str, torch.Tensor]:
    down, up = torch.randn(rank, columns, *kernel), torch.randn(rows, rank, *[1] * len(kernel))
    return {"lora_down.weight": down * 0.2, "lora_up.weight": up * 0.2, "alpha": torch.tensor(1.5)}


def module(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"lora_unet_{name}.{kind}": tensor for kind, tensor in tensors.items()}


def adapters() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    qkv, patch, width = "blocks_1_attn_qkv", "x_embedder_proj", 48

    def scale(*shape: int) -> dict[str, torch.Tensor]:
        return {"dora_scale": torch.rand(shape) + 0.5}

    return {
        "a Kronecker product over rows that it does not divide by": module(
            qkv,
            {"lokr_w1": torch.randn(2, 2), "lokr_w2_a": torch.randn(72, 3), "lokr_w2_b": torch.randn(3, 24)},
        ),
        "both factors whole": module(qkv, {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(72, 24)}),
        "DoRA of it": module(qkv, {"lokr_w1": torch.randn(2, 2), "lokr_w2": torch.randn(72, 24)} | scale(144, 1)),
        "per input over fused rows": module(qkv, low(144, 48) | scale(1, 48)),
        "per input of a convolution": module(patch, low(width, 4, 2, 2, 2) | scale(1, 4, 1, 1)),
        "per output of a convolution": module(patch, low(width, 4, 2, 2, 2) | scale(width, 1, 1, 1)),
        "a rank above the smaller side": module(patch, low(width, 4, 32, 2, 2)) | module(qkv, low(144, 48, 60)),
        "a core": module(
            patch,
            {
                "lora_down.weight": torch.randn(2, 4, 1, 1),
                "lora_mid.weight": torch.randn(2, 2, 2, 2),
                "lora_up.weight": torch.randn(width, 2, 1, 1),
                "alpha": torch.tensor(0.5),
            },
        ),
        "LoKr of a convolution": module(patch, {"lokr_w1": torch.randn(4, 2), "lokr_w2": torch.randn(12, 2, 2, 2)}),
        "some DoRA": module(qkv, low(144, 48) | scale(144, 1)) | module("blocks_0_attn_proj", low(48, 48)),
        "DoRA and a bias": module(qkv, low(144, 48) | scale(144, 1) | {"diff_b": torch.randn(144)}),
        "only a bias": module("blocks_2_attn_proj", {"diff_b": torch.randn(48)})
        | module(patch, {"diff_b": torch.randn(48)}),
        "a whole convolution": module(patch, {"set_weight": torch.randn(width, 4, 2, 2)}),
    }


@pytest.mark.parametrize("kind", adapters())
def test_kinds_that_peft_has_not(kind: str, tmp_path: Path) -> None:
    weight = -0.4
    save_file({key: t.contiguous() for key, t in adapters()[kind].items()}, tmp_path / "adapter.safetensors")
    model, before = model_of(), everything(model_of())
    converter.load_lora(model, tmp_path / "adapter.safetensors", weight=weight)
    wanted = merged({tmp_path / "adapter.safetensors": weight}, tmp_path / "out")
    assert torch.allclose(run(model, CASE), run(wanted, CASE), rtol=TOLERANCE, atol=TOLERANCE)
    assert (run(model, CASE) - run(model_of(), CASE)).abs().max() > 1e-3
    model.unload_lora()
    assert everything(model) == before
    converter.load_lora(model, tmp_path / "adapter.safetensors", weight=weight)
    model.fuse_lora()
    for key, tensor in converter.state_dict(model, "diffusers").items():
        assert torch.allclose(tensor, wanted.state_dict()[key], rtol=TOLERANCE, atol=TOLERANCE), key


def test_a_dit_whose_embedders_diffusers_has_in_every_block(tmp_path: Path) -> None:
    base = save(dit(), tmp_path / "dit.pt")
    given = {"hyper_parameters": GIVEN}
    torch.manual_seed(2)
    parts = {"t_embedder.mlp.0": low(24, 256), "blocks.1.attn.qkv": low(72, 24), "final_layer.linear": low(32, 24)}
    tensors = {f"{name}.{kind}": tensor for name, pair in parts.items() for kind, tensor in pair.items()}
    save_file(tensors, tmp_path / "adapter.safetensors")
    model = converter.load(base, **given)
    converter.load_lora(model, tmp_path / "adapter.safetensors", weight=0.5)
    assert isinstance(model, DiTTransformer2DModel)
    model.fuse_lora()
    merge_lora(base, {tmp_path / "adapter.safetensors": 0.5}, tmp_path / "out", **given)
    wanted = converter.load(tmp_path / "out").state_dict()
    changed = [key for key, t in converter.load(base, **given).state_dict().items() if not torch.equal(t, wanted[key])]
    assert len(changed) == 2 + 3 + 1
    for key, tensor in converter.state_dict(model, "diffusers").items():
        assert torch.allclose(tensor, wanted[key], atol=1e-6), key


# Pipelines.


def adapter_for_parts(tmp_path: Path) -> Path:
    state = torch.load(PARTS / "sigma-ms.pth", weights_only=True)
    rows, columns = state.get("state_dict", state)["blocks.0.attn.qkv.weight"].shape
    torch.manual_seed(3)
    tensors = module("blocks_0_attn_qkv", low(rows, columns)) | module("blocks_0_attn_proj", low(columns, columns))
    save_file(tensors, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_a_pipeline(tmp_path: Path) -> None:
    adapter = adapter_for_parts(tmp_path)
    pipeline = converter.load_pipeline(PARTS / "sigma-ms.pth", vae=vae_of("sigma-ms"), hyper_parameters=GIVEN)
    pipeline.set_progress_bar_config(disable=True)
    channels = pipeline.transformer.config.caption_channels
    prompt: dict[str, Any] = {"prompt": None, "negative_prompt": None}
    for kind in ("prompt", "negative_prompt"):
        prompt[f"{kind}_embeds"] = torch.randn(1, 300, channels, generator=torch.Generator().manual_seed(4))
        prompt[f"{kind}_attention_mask"] = torch.ones(1, 300)

    def drawn() -> torch.Tensor:
        sizes = {"num_inference_steps": 2, "height": 64, "width": 64, "use_resolution_binning": False}
        generator = torch.Generator().manual_seed(1)
        picture: torch.Tensor = pipeline(**sizes, **prompt, output_type="pt", generator=generator).images
        return picture

    before, kind = drawn(), type(pipeline)
    converter.load_lora(pipeline, adapter, "style", 0.8)
    assert isinstance(pipeline, kind)
    assert pipeline.get_active_adapters() == ["style"]
    assert pipeline.get_list_adapters() == {"transformer": ["style"]}
    with_it = drawn()
    assert (with_it - before).abs().max() > 1e-3
    converter.load_lora(pipeline, adapter, "again", 0.3)
    assert pipeline.get_active_adapters() == ["style", "again"]
    pipeline.set_adapters(["style"], [0.8])
    assert torch.equal(drawn(), with_it)
    pipeline.save_pretrained(tmp_path / "saved")
    assert f'"_class_name": "{kind.__name__}"' in (tmp_path / "saved" / "model_index.json").read_text()
    weights = tmp_path / "saved" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert (
        load_file(weights).keys() == converter.load(PARTS / "sigma-ms.pth", hyper_parameters=GIVEN).state_dict().keys()
    )
    pipeline.fuse_lora()
    assert pipeline.num_fused_loras == 1
    assert (drawn() - with_it).abs().max() < 1e-4
    pipeline.unfuse_lora()
    assert pipeline.num_fused_loras == 0
    pipeline.delete_adapters("again")
    pipeline.disable_lora()
    assert (drawn() - before).abs().max() < 1e-4
    pipeline.enable_lora()
    pipeline.unload_lora_weights()
    assert pipeline.get_list_adapters() == {}
    assert (drawn() - before).abs().max() < 1e-4


# What is refused, with nothing changed.


def with_nan(tmp_path: Path) -> Path:
    tensors = load_file(KOHYA)
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    return tmp_path / "nan.safetensors"


def of_another_width(tmp_path: Path) -> Path:
    save_file(module("blocks_0_attn_qkv", low(72, 24)), tmp_path / "narrow.safetensors")
    return tmp_path / "narrow.safetensors"


def with_one_block_too_many(tmp_path: Path) -> Path:
    tensors = module("blocks_0_attn_qkv", low(144, 48)) | module("blocks_99_attn_qkv", low(144, 48))
    save_file(tensors, tmp_path / "deep.safetensors")
    return tmp_path / "deep.safetensors"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (ADAPTERS / "refuse" / "half-pair.safetensors", "half a pair"),
        (ADAPTERS / "refuse" / "unknown-module.safetensors", "the model has no"),
        (ADAPTERS / "refuse" / "pissa", "init_lora_weights"),
        (with_nan, "NaN or infinite"),
        (of_another_width, "where the model has"),
        (with_one_block_too_many, "the model has no"),
        (ADAPTERS / "missing.safetensors", "missing.safetensors"),
    ],
)
def test_a_file_that_is_refused_changes_nothing(source: Any, words: str, tmp_path: Path) -> None:
    path = source(tmp_path) if callable(source) else source
    model = model_of()
    before, kind = everything(model), type(model)
    with pytest.raises((InputError, UsageError), match=words) as caught:
        converter.load_lora(model, path)
    assert "\n" not in str(caught.value)
    assert everything(model) == before
    assert type(model) is kind


def test_what_does_not_fit_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, model = with_one_block_too_many(tmp_path), model_of()
    with caplog.at_level(logging.WARNING, "converter"):
        converter.load_lora(model, path, allow_partial=True)
    assert any("left out: the model has no blocks.99" in message for message in caplog.messages)
    assert model.active_adapters() == ["default"]


def test_what_is_noted_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "converter"):
        converter.load_lora(model_of(), ADAPTERS / "d-diffusers-bare", lora_alpha=3)
    assert not any("alpha is not in the file" in message for message in caplog.messages)
    with caplog.at_level(logging.WARNING, "converter"):
        converter.load_lora(model_of(), ADAPTERS / "d-diffusers-bare")
        converter.load_lora(model_of(), INPUTS, weight=0.5)
    assert any("alpha is not in the file: scale 1" in message for message in caplog.messages)
    assert any("not of a kind that PEFT has" in m and "at the weight 0.5" in m for m in caplog.messages)


def test_numbers_that_the_models_dtype_has_not(tmp_path: Path) -> None:
    pair = low(144, 48)
    pair["lora_up.weight"] *= 1e6
    save_file(module("blocks_0_attn_qkv", pair), tmp_path / "large.safetensors")
    model = model_of(torch_dtype=torch.float16)
    before = everything(model)
    with pytest.raises(InputError, match=r"attn1\.to_q: is not finite in torch\.float16"):
        converter.load_lora(model, tmp_path / "large.safetensors")
    assert everything(model) == before


def test_a_grouped_convolution(tmp_path: Path) -> None:
    save_file(module("blocks_2_attn_sr", {"diff": torch.ones(48, 1, 2, 2)}), tmp_path / "sr.safetensors")
    model = model_of("sigma-kvcompress")
    with pytest.raises(InputError, match="a grouped Conv2d, which PEFT has no adapter for"):
        converter.load_lora(model, tmp_path / "sr.safetensors")
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"adapter_name": "a.b"}, "`adapter_name` 'a.b'"),
        ({"adapter_name": ""}, "`adapter_name` ''"),
        ({"adapter_name": None}, "`adapter_name` None"),
        ({"adapter_name": "keys"}, "`adapter_name` 'keys'"),
        ({"weight": float("nan")}, "`weight` nan is no number"),
        ({"weight": True}, "`weight` True is no number"),
        ({"weight": "1"}, "`weight` '1' is no number"),
        ({"adapter_name": "there"}, "has an adapter of this name already"),
        ({"lora_alpha": 3}, "`lora_alpha` 3 contradicts"),
    ],
)
def test_a_call_that_is_wrong_changes_nothing(words: dict[str, Any], message: str) -> None:
    model = model_of()
    converter.load_lora(model, DORA, "there")
    before = everything(model)
    with pytest.raises(UsageError, match=message):
        converter.load_lora(model, KOHYA, **{"adapter_name": "new"} | words)
    assert everything(model) == before
    assert model.active_adapters() == ["there"]


@pytest.mark.parametrize("name", ["lora_A", "weight", "pixel-art", "ü"])
def test_names_of_adapters(name: str) -> None:
    model = model_of()
    converter.load_lora(model, KOHYA, name)
    converter.load_lora(wanted := model_of(), KOHYA)
    near(model, wanted, 1e-9)


def test_beside_what_is_fused() -> None:
    model = model_of()
    converter.load_lora(model, KOHYA, "one")
    model.fuse_lora()
    with pytest.raises(UsageError, match="one fused into the model"):
        converter.load_lora(model, DORA, "two")
    model.unload_lora()
    converter.load_lora(model, DORA, "two")
    assert model.active_adapters() == ["two"]


@pytest.mark.parametrize("thing", [None, 3, torch.nn.Linear(2, 2), {}])
def test_what_is_no_model(thing: Any) -> None:
    with pytest.raises(UsageError, match="`pipeline_or_model`: a model of diffusers is needed"):
        converter.load_lora(thing, KOHYA)


def test_an_adapter_of_another_family(tmp_path: Path) -> None:
    save_file(module("blocks_0_attn_qkv", low(72, 24)) | module("t_block_1", low(144, 24)), tmp_path / "a.safetensors")
    model = converter.load(save(dit(), tmp_path / "dit.pt"), hyper_parameters=GIVEN)
    with pytest.raises(InputError, match="the model is a DiT"):
        converter.load_lora(model, tmp_path / "a.safetensors")
    assert not hasattr(model, "peft_config")


def test_without_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("converter.errors.find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(UsageError, match=r"needs peft: pip install 'convert-pixart\[lora\]'"):
        converter.load_lora(model_of(), KOHYA)


@pytest.mark.parametrize("there", [(), ("earlier",)])
def test_a_failure_of_peft_leaves_the_model_as_it_was(there: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    for name in there:
        converter.load_lora(model, DORA, name)
    before, output = everything(model), run(model, CASE)

    def fails(*args: Any, **words: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(peft, "set_peft_model_state_dict", fails)
    with pytest.raises(MemoryError):
        converter.load_lora(model, ADAPTERS / "d-layers", "new")
    assert torch.equal(run(model, CASE), output)
    assert everything(model) == before
    assert [*getattr(model, "peft_config", {})] == [*there]
