"""PixArt with qk-norm and KV compression in diffusers: it computes what the original does, and is diffusers' model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import makers
import pytest
import torch
from diffusers import AutoModel, PixArtTransformer2DModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from extended import config_of, extended, keyed, run
from originals import Original, State, golden, random
from safetensors.torch import load_file

from converter.models.pixart.attention import pixart_attention
from converter.models.pixart.compression import Compression
from converter.models.pixart.pixart_transformer import PixArtExtendedAttention, PixArtExtendedTransformer2DModel

module_cache = makers.module_cache
SAMPLINGS: tuple[Any, ...] = ("conv", "ave", "uniform", "uniform_every")


def compressed(sampling: Any, factor: int = 2, **changes: Any) -> Original:
    """A small model that compresses in its last block and normalises, with random weights in all that does so."""
    how = Compression(sampling, factor, frozenset({1}))
    model = random(**{"qk_norm": True, "compression": how, "grid": (12, 24)} | changes)
    if sampling == "conv":
        draw = torch.Generator().manual_seed(factor)
        model.state["blocks.1.attn.sr.weight"] = torch.randn(24, 1, factor, factor, generator=draw)
    return model


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# The arithmetic.


@torch.no_grad()
@pytest.mark.parametrize("name", ["sigma-kvcompress", "sigma-qknorm"])
def test_every_recorded_output_is_reproduced(name: str) -> None:
    original = golden(name)
    model = extended(original)
    for case in original.cases:
        assert (run(model, case) - case["output"]).abs().max() < 2e-5
    # The recordings can tell: without what this class adds the outputs are others.
    stock = PixArtTransformer2DModel.from_config(dict(model.config))
    stock.load_state_dict(keyed(original.state), strict=False)
    assert (run(stock.eval(), original.cases[0]) - original.cases[0]["output"]).abs().max() > 2e-3


@torch.no_grad()
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_net_of_the_original(sampling: Any, factor: int) -> None:
    """Up to diffusers' tables in float32, which the stock class has as well."""
    original = compressed(sampling, factor, micro_condition=True)
    inputs, wanted = original.inputs(), original.net(torch.float64).forward(original.inputs())
    assert distance(run(extended(original, torch.float64), inputs, torch.float64), wanted) < 1e-7
    for wrong in (Compression(sampling, factor, frozenset({0})), Compression("ave", factor + 1, frozenset({1}))):
        if sampling != "conv":  # whose weights would not fit
            other = replace(original, shape=replace(original.shape, compression=wrong))
            assert distance(run(extended(other, torch.float64), inputs, torch.float64), wanted) > 1e-5


Words = dict[str, Any]


def attentions(sampling: Any, factor: int) -> tuple[State, PixArtExtendedAttention, Words]:
    """The same attention on both sides, in float64: the original's weights, the module, and what it is told."""
    draw = torch.Generator().manual_seed(factor)
    norms = dict.fromkeys(("q_norm", "k_norm", *(["norm"] if sampling == "conv" else [])), (24,))
    convolution = {"sr": (24, 1, factor, factor)} if sampling == "conv" else {}
    shapes: dict[str, tuple[int, ...]] = {"qkv": (72, 24), "proj": (24, 24)} | convolution | norms
    sizes = {f"{name}.weight": shape for name, shape in shapes.items()}
    sizes |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    weights = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in sizes.items()}
    stock = Attention(24, heads=4, dim_head=6, bias=True)
    module = PixArtExtendedAttention(stock, qk_norm=True, sampling=sampling, factor=factor).double()
    own = {name: tensor for name, tensor in weights.items() if name.split(".")[0] not in ("qkv", "proj")}
    for kind in ("weight", "bias"):
        own |= {f"to_{n}.{kind}": t for n, t in zip("qkv", weights[f"qkv.{kind}"].chunk(3), strict=True)}
        own[f"to_out.0.{kind}"] = weights[f"proj.{kind}"]
    module.load_state_dict(own)
    return weights, module, {"qk_norm": True, "compression": Compression(sampling, factor, frozenset())}


@torch.no_grad()
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_the_attention_of_the_original(sampling: Any, factor: int) -> None:
    """Exactly, for all sides; where the original fails, both do."""
    weights, module, words = attentions(sampling, factor)
    draw, failed = torch.Generator().manual_seed(1), []
    for grid in ((28, 12), (12, 24), (13, 24), (12, 25), (9, 11), (8, 8), (7, 7)):
        x = torch.randn(2, grid[0] * grid[1], 24, dtype=torch.float64, generator=draw)
        sides = (partial(module, x, grid=grid), partial(pixart_attention, weights, x, grid, 4, **words))
        remainder = grid[0] * grid[1] % factor if sampling == "uniform_every" else grid[0] % factor or grid[1] % factor
        if sampling in ("uniform", "uniform_every") and remainder:
            failed.append(grid)
            for side in sides:
                with pytest.raises(ValueError, match=f"'{sampling}'.*not a multiple of {factor}"):
                    side()
        else:
            assert distance(sides[0](), sides[1]()) < 1e-14
    assert bool(failed) == (sampling in ("uniform", "uniform_every"))


@torch.no_grad()
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_grid_smaller_than_the_factor_fails(sampling: Any) -> None:
    weights, module, words = attentions(sampling, 4)
    x = torch.zeros(1, 6, 24, dtype=torch.float64)
    for side in (partial(module, x, grid=(3, 2)), partial(pixart_attention, weights, x, (3, 2), 4, **words)):
        with pytest.raises((ValueError, RuntimeError)):
            side()


@torch.no_grad()
def test_without_either_it_is_the_stock_class() -> None:
    original = random(micro_condition=True)
    torch.manual_seed(0)
    ours = PixArtExtendedTransformer2DModel(**config_of(original))
    torch.manual_seed(0)
    stock = PixArtTransformer2DModel.from_config(dict(ours.config))
    assert stock.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in stock.state_dict().items())
    inputs = original.inputs()
    assert torch.equal(run(ours.eval(), inputs), run(stock.eval(), inputs))
    # So it is where nothing compresses: a factor of 1, or no block.
    for words in ({"kv_compress_factor": 1, "kv_compress_blocks": [0]}, {"kv_compress_factor": 2}):
        same = PixArtExtendedTransformer2DModel(**config_of(original) | {"kv_compress_sampling": "conv"} | words)
        same.load_state_dict(stock.state_dict())
        assert torch.equal(run(same.eval(), inputs), run(stock, inputs))


def test_conv_begins_as_an_average() -> None:
    """The state in which a training of the original starts."""
    how = {"kv_compress_sampling": "conv", "kv_compress_factor": 3, "kv_compress_blocks": [1]}
    attention = PixArtExtendedTransformer2DModel(**config_of(random()) | how).transformer_blocks[1].attn1
    tokens = torch.randn(1, 36, 24)
    mean = torch.nn.functional.avg_pool2d(tokens.transpose(1, 2).unflatten(2, (6, 6)), 3).flatten(2).transpose(1, 2)
    torch.testing.assert_close(attention.compress(tokens, (6, 6)), torch.nn.functional.layer_norm(mean, (24,)))


@pytest.mark.parametrize(
    "words",
    [
        {"kv_compress_sampling": "max"},
        {"kv_compress_sampling": "conv", "kv_compress_factor": 0},
        {"kv_compress_sampling": "conv", "kv_compress_factor": 2, "kv_compress_blocks": [2]},
        {"kv_compress_sampling": "conv", "kv_compress_factor": 2, "kv_compress_blocks": [-1]},
        {"kv_compress_factor": 2, "kv_compress_blocks": [1]},
    ],
)
def test_a_compression_that_is_none_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no such KV compression in 2 blocks"):
        PixArtExtendedTransformer2DModel(**config_of(random()) | words)


# What diffusers' models can do.


def small() -> tuple[Original, PixArtExtendedTransformer2DModel, torch.Tensor]:
    """A model with both, and its output."""
    original = compressed("conv", micro_condition=True)
    model = extended(original)
    with torch.no_grad():
        return original, model, run(model, original.inputs())


@torch.no_grad()
def test_every_attention_processor_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original, model, wanted = small()

    def efficient(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_bias: Any, op: Any, scale: float) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias, scale=scale)

    class Trainable(torch.nn.Module):
        """A processor with weights of its own."""

        def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
            return AttnProcessor()(attn, *args, **kwargs)

    monkeypatch.setattr(
        attention_processor, "xformers", SimpleNamespace(ops=SimpleNamespace(memory_efficient_attention=efficient))
    )
    xformers = attention_processor.XFormersAttnProcessor()
    for processor in (AttnProcessor(), AttnProcessor2_0(), SlicedAttnProcessor(3), xformers, Trainable()):
        model.set_attn_processor(processor)
        assert set(model.attn_processors.values()) == {processor}
        assert len(model.attn_processors) == 4
        assert distance(run(model, original.inputs()), wanted) < 1e-6
    model.set_default_attn_processor()
    for size in (1, 2, None):
        for module in model.modules():
            if isinstance(module, Attention):
                module.set_attention_slice(size)
        assert isinstance(
            model.transformer_blocks[1].attn1.processor, SlicedAttnProcessor if size else AttnProcessor2_0
        )
        assert distance(run(model, original.inputs()), wanted) < 1e-6


def test_fused_projections_are_refused() -> None:
    """They would skip what this class adds."""
    for original in (random(qk_norm=True), compressed("ave", qk_norm=False)):
        model = extended(original)
        with pytest.raises(ValueError, match="fused projections would skip"):
            model.fuse_qkv_projections()
        assert "to_qkv" not in str(model.state_dict().keys())
    PixArtExtendedTransformer2DModel(**config_of(random())).fuse_qkv_projections()  # as stock diffusers, without either


def gradients(model: torch.nn.Module, *inputs: State) -> State:
    model.zero_grad()
    sum(run(model, one).square().mean() for one in inputs).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """Also where another size was run before the backward pass: a block is repeated with its own grid."""
    original, model, _ = small()
    inputs, model = original.inputs(), model.train()
    turned = inputs | {"latent": inputs["latent"].transpose(2, 3)}  # as many tokens, in another grid
    wanted = gradients(model, inputs, turned)
    own = [name for name in wanted if any(part in name for part in ("q_norm", "k_norm", "attn1.sr", "attn1.norm"))]
    assert len(own) == 12
    assert all(wanted[name].abs().max() > 0 for name in own)
    model.enable_gradient_checkpointing()
    calls: list[None] = []
    model.transformer_blocks[1].register_forward_pre_hook(lambda *_: calls.append(None))
    checkpointed = gradients(model, inputs, turned)
    assert len(calls) == 4
    assert checkpointed.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(checkpointed[name], gradient)


class Lora(torch.nn.Module):
    """What PEFT puts in the place of a layer, under the names that it has there."""

    def __init__(self, base_layer: torch.nn.Linear, rank: int = 2) -> None:
        super().__init__()
        draw, self.base_layer = torch.Generator().manual_seed(5), base_layer
        self.lora_A = torch.nn.Linear(base_layer.in_features, rank, bias=False, dtype=torch.float64)
        self.lora_B = torch.nn.Linear(rank, base_layer.out_features, bias=False, dtype=torch.float64)
        for layer in (self.lora_A, self.lora_B):
            torch.nn.init.normal_(layer.weight, generator=draw)

    def forward(self, x: torch.Tensor) -> Any:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@torch.no_grad()
@pytest.mark.parametrize("projection", ["to_q", "to_k", "to_v"])
def test_a_lora_changes_what_is_normalised_and_compressed(projection: str) -> None:
    """A LoRA beside the weights is one that is merged into them."""
    (_, module, _), (_, merged, _) = attentions("conv", 2), attentions("conv", 2)
    lora = Lora(getattr(module, projection))
    setattr(module, projection, lora)
    getattr(merged, projection).weight += lora.lora_B.weight @ lora.lora_A.weight
    x = torch.randn(2, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert distance(module(x, grid=(4, 6)), merged(x, grid=(4, 6))) < 1e-14
    assert distance(module(x, grid=(4, 6)), attentions("conv", 2)[1](x, grid=(4, 6))) > 0.1


@contextmanager
def warnings_of_diffusers() -> Iterator[list[str]]:
    """What diffusers logs, from warnings on."""
    held: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: held.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        yield held
    finally:
        logger.removeHandler(handler)


@torch.no_grad()
def test_saving_and_loading(tmp_path: Path) -> None:
    original, model, wanted = small()
    load = PixArtExtendedTransformer2DModel.from_pretrained
    rounded = extended(original, torch.float16)
    with warnings_of_diffusers() as logged:
        model.save_pretrained(tmp_path / "whole")
        model.save_pretrained(tmp_path / "shards", max_shard_size="50kB")
        rounded.save_pretrained(tmp_path / "whole", variant="fp16")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) == 4
        for folder in ("whole", "shards"):
            again, info = load(tmp_path / folder, output_loading_info=True)
            assert {name: list(keys) for name, keys in info.items() if keys} == {}
            assert torch.equal(run(again, original.inputs()), wanted)
        half = load(tmp_path / "whole", variant="fp16", torch_dtype=torch.float16)
    assert logged == []
    assert half.dtype == torch.float16
    assert distance(run(half, original.inputs(), torch.float16), wanted) < 1e-2
    stored = load_file(tmp_path / "whole" / "diffusion_pytorch_model.safetensors")
    assert stored.keys() == keyed(original.state).keys()
    fields = signature(PixArtExtendedTransformer2DModel.__init__).parameters.keys() - {"self"}
    assert fields > signature(PixArtTransformer2DModel.__init__).parameters.keys() - {"self"}
    assert {field: again.config[field] for field in fields} == {field: model.config[field] for field in fields}


@torch.no_grad()
def test_what_was_saved_loads_by_its_own_code(tmp_path: Path) -> None:
    """`AutoModel` twice: what it loads, it saves so that it can load it again."""
    original, model, wanted = small()
    model.save_pretrained(tmp_path / "0")
    for i in range(2):
        with warnings_of_diffusers() as logged:
            loaded = AutoModel.from_pretrained(f"{tmp_path}/{i}", trust_remote_code=True)
        assert all("`trust_remote_code` is enabled" in line for line in logged)
        assert type(loaded).__module__ == "diffusers_modules.local.pixart_transformer"
        assert torch.equal(run(loaded, original.inputs()), wanted)
        loaded.save_pretrained(tmp_path / str(i + 1))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModel.from_pretrained(f"{tmp_path}/2")


def on_disk(model: PixArtExtendedTransformer2DModel, folder: Path) -> Any:
    model.save_pretrained(folder)
    size = sum(parameter.nbytes for parameter in model.parameters())
    words: Words = {"device_map": "auto", "max_memory": {"cpu": size * 3 // 4}, "offload_folder": folder / "offload"}
    with pytest.warns(UserWarning, match="scale_shift_table"):  # as of the stock class: accelerate looks for modules
        loaded = PixArtExtendedTransformer2DModel.from_pretrained(folder, **words)
    assert {"cpu", "disk"} == set(loaded.hf_device_map.values())
    assert loaded.hf_device_map["transformer_blocks.1"] == "disk"  # whole: a block is not split
    return loaded


def sequential(model: PixArtExtendedTransformer2DModel, folder: Path) -> Any:
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert model.transformer_blocks[1].attn1.sr.weight.is_meta
    return model


def grouped(model: PixArtExtendedTransformer2DModel, folder: Path, kind: str) -> Any:
    device = torch.device("cpu")
    model.enable_group_offload(device, device, offload_type=kind, num_blocks_per_group=1)
    return model


def in_blocks(model: PixArtExtendedTransformer2DModel, folder: Path) -> Any:
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    return model


def as_one_graph(model: PixArtExtendedTransformer2DModel, folder: Path) -> Any:
    return torch.compile(model, fullgraph=True, backend="eager")


WAYS: dict[str, Callable[..., Any]] = {
    "a device map with a disk": on_disk,
    "offloaded one after the other": sequential,
    "offloaded in groups of blocks": partial(grouped, kind="block_level"),
    "offloaded in groups of layers": partial(grouped, kind="leaf_level"),
    "compiled block by block": in_blocks,
    "compiled as one graph": as_one_graph,
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_ways_of_running_it(way: str, tmp_path: Path) -> None:
    original, model, wanted = small()
    assert torch.equal(run(WAYS[way](model, tmp_path), original.inputs()), wanted)


@torch.no_grad()
def test_layer_wise_casting_keeps_norms_and_the_convolution() -> None:
    original, model, wanted = small()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    attention = model.transformer_blocks[1].attn1
    assert attention.to_k.weight.dtype == torch.float8_e4m3fn
    for layer in (attention.q_norm, attention.k_norm, attention.norm, attention.sr):
        assert layer.weight.dtype == torch.float32
    assert 1e-4 < distance(run(model, original.inputs()), wanted) < 0.1
