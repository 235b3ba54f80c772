"""The streamed stock net: to the last bit what `from_pretrained` makes, and no parameter stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers import HEADS
from memory_tensors import MemoryTensor, memory_tensors
from opened import NAMES, Pair, golden
from safetensors.torch import load_file

from converter.checkpoint import open_checkpoint
from converter.checkpoint.json_file import read_json
from converter.conversion.analysis import analyse
from converter.models.pixart import parity as pixart
from converter.models.pixart.parity import STOCK
from converter.nets import Memory, Staged, Values, Weights, no_probe
from converter.nets.inputs import Case
from converter.nets.streamed import StockStage, Streamed

STAYS = {"scale_shift_table"}  # of the top, which belongs to no part


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    at = tmp_path_factory.mktemp("stock")
    return {name: golden(name, at) for name in NAMES}


def streamed(pair: Pair, dtype: torch.dtype = torch.float32, **change: Any) -> Streamed:
    state = load_file(pair.model / "diffusion_pytorch_model.safetensors")
    return STOCK.net(read_json(pair.model / "config.json") | change, Weights(memory_tensors(state), dtype))


def whole(pair: Pair) -> Any:
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    return PixArtTransformer2DModel.from_pretrained(pair.model, low_cpu_mem_usage=False).eval()


def cases(pair: Pair) -> dict[str, Case]:
    with open_checkpoint(pair.original) as checkpoint:
        found = analyse(checkpoint, {"num_attention_heads": HEADS, "multi_scale_train": True}).findings
        return {case.name: case for case in pixart.cases(found, "standard", {})}


def left(net: Streamed) -> set[str]:
    return {name for name, parameter in net.model.named_parameters() if not parameter.is_meta}


# The same net.


@pytest.mark.parametrize("name", NAMES)
def test_to_the_last_bit_what_from_pretrained_makes(pairs: dict[str, Pair], name: str) -> None:
    """With and without a mask, of sizes that are square, wide, tall, and the model's own."""
    pair, model = pairs[name], whole(pairs[name])
    net, found = streamed(pair), cases(pair)
    assert {"t999-t321", "t0-t1", "t20-t500", "t998-t431.5", "native"} <= found.keys()
    assert "caption_mask" not in found["t20-t500"].arrays
    for case in found.values():
        inputs = case.tensors(torch.float32)
        with torch.inference_mode():
            wanted = STOCK.call(model, inputs)
        assert torch.equal(net.forward(inputs), wanted), case.name


@pytest.mark.parametrize("name", NAMES)
def test_in_float64(pairs: dict[str, Pair], name: str) -> None:
    pair, model = pairs[name], whole(pairs[name]).double()
    net = streamed(pair, torch.float64)
    for case in list(cases(pair).values())[:4]:
        inputs = case.tensors(torch.float64)
        with torch.inference_mode():
            wanted = STOCK.call(model, inputs)
        made = net.forward(inputs)
        assert made.dtype == torch.float64
        assert float((made - wanted).norm() / wanted.norm()) < 1e-12, case.name


@pytest.mark.parametrize("name", NAMES)
def test_the_loader_of_the_checker_is_that_of_the_library(pairs: dict[str, Pair], name: str) -> None:
    inputs = cases(pairs[name])["t0-t1"].tensors(torch.float32)
    with torch.inference_mode():
        assert torch.equal(STOCK.loaded(pairs[name].model, inputs), STOCK.call(whole(pairs[name]), inputs))


def test_another_net_is_another(pairs: dict[str, Pair]) -> None:
    """So that equality above says something."""
    pair = pairs["sigma-ms"]
    inputs = cases(pair)["t999-t321"].tensors(torch.float32)
    right = streamed(pair).forward(inputs)
    for change in ({"norm_eps": 1e-3}, {"activation_fn": "gelu"}, {"interpolation_scale": 2}):
        assert not torch.equal(streamed(pair, **change).forward(inputs), right)
    maskless = {name: value for name, value in inputs.items() if name != "caption_mask"}
    assert not torch.equal(streamed(pair).forward(maskless), right)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_stage_by_stage_is_the_forward(pairs: dict[str, Pair], name: str, dtype: torch.dtype) -> None:
    net = streamed(pairs[name], dtype)
    for case in list(cases(pairs[name]).values())[:4]:
        inputs = case.tensors(dtype)
        seen: dict[str, Values] = {}
        wanted = net.forward(inputs, lambda stage, made, seen=seen: seen.update({stage: made}))
        values = dict(inputs)
        with torch.inference_mode():
            for stage in net.stages:
                made = stage.run(values, no_probe)
                assert made.keys() == seen[stage.name].keys(), stage.name
                for key, value in made.items():
                    assert torch.equal(value, seen[stage.name][key]), f"{case.name}: {stage.name} {key}"
                values |= made
        assert torch.equal(values["output"], wanted)
        assert list(seen) == [stage.name for stage in net.stages]


def test_watching_and_listening_change_nothing(pairs: dict[str, Pair]) -> None:
    net = streamed(pairs["alpha-ms"])
    inputs = cases(pairs["alpha-ms"])["t999-t321"].tensors(torch.float32)
    alone = net.forward(inputs)
    assert torch.equal(net.forward(inputs, lambda stage, made: None), alone)
    values = dict(inputs)
    with torch.inference_mode():
        for stage in net.stages:
            values |= stage.run(values, lambda name, value: None)
    assert torch.equal(values["output"], alone)
    assert torch.equal(net.forward(inputs), alone)
    watched: list[str] = []
    net.forward(inputs, lambda stage, made: watched.append(stage))
    assert watched == [stage.name for stage in net.stages]
    net.forward(inputs)
    assert len(watched) == len(net.stages)  # nobody listens any longer


# Probes.


def test_probes_are_those_of_the_reference(pairs: dict[str, Pair]) -> None:
    """The same names in the same order, and the same numbers, up to the shape that a library likes."""
    pair = pairs["alpha-ms"]
    net = streamed(pair, torch.float64)
    with open_checkpoint(pair.original) as checkpoint:
        found = analyse(checkpoint, {"num_attention_heads": HEADS}).findings
        ours = pixart.reference(found, Weights(checkpoint, torch.float64))
        values: Values = cases(pair)["t999-t321"].tensors(torch.float64)
        told = []
        with torch.inference_mode():
            for one, other in zip(ours.stages, net.stages, strict=True):
                assert one.name == other.name
                truth: dict[str, torch.Tensor] = {}
                heard: dict[str, torch.Tensor] = {}
                made = one.run(values, truth.__setitem__)
                theirs = other.run(values, heard.__setitem__)
                assert {key: value.shape for key, value in made.items()} == {k: v.shape for k, v in theirs.items()}
                assert sorted(truth) == sorted(heard)
                told += list(truth)
                for name in truth:
                    assert truth[name].numel() == heard[name].numel(), name
                    apart = (heard[name].reshape(truth[name].shape) - truth[name]).norm() / truth[name].norm()
                    assert float(apart) < 1e-12, f"{one.name}: {name}"
                values |= made
    assert set(told) == set(STOCK.probes)


# Where the parameters are.


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_stays(pairs: dict[str, Pair], name: str) -> None:
    net = streamed(pairs[name])
    inputs = cases(pairs[name])["t999-t321"].tensors(torch.float32)
    assert left(net) == STAYS
    net.forward(inputs)
    assert left(net) == STAYS
    values = dict(inputs)
    with torch.inference_mode():
        for stage in net.stages:
            values |= stage.run(values, lambda name, value: None)
            assert left(net) == STAYS, stage.name


def test_only_the_part_that_runs_is_there(pairs: dict[str, Pair]) -> None:
    net = streamed(pairs["sigma-ms"])
    seen: list[set[str]] = []
    for block in net.model.transformer_blocks:
        block.attn2.register_forward_hook(lambda *_: seen.append({name.split(".")[1] for name in left(net) - STAYS}))
    net.forward(cases(pairs["sigma-ms"])["t0-t1"].tensors(torch.float32))
    assert seen == [{"0"}, {"1"}, {"2"}]


def test_a_stage_alone_reads_its_own_weights_only(pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward is the library's own, but what lies before the stage does not run, and what lies behind is not
    reached."""
    net, read = streamed(pairs["sigma-ms"]), []
    scratch = Weights.scratch
    monkeypatch.setattr(Weights, "scratch", lambda self, prefix: read.append(prefix) or scratch(self, prefix))
    values = cases(pairs["sigma-ms"])["t0-t1"].tensors(torch.float32)
    wanted = ["pos_embed.", "adaln_single.", "caption_projection."]
    wanted += [*(f"transformer_blocks.{i}." for i in range(3)), "proj_out."]
    with torch.inference_mode():
        for stage, prefix in zip(net.stages, wanted, strict=True):
            read.clear()
            values |= stage.run(values, no_probe)
            assert read == [prefix], stage.name


class Breaks(Exception):
    pass


@pytest.mark.parametrize("path", ["attn1", "ff.net.2"])
@pytest.mark.parametrize("way", ["forward", "stage"])
def test_an_exception_lets_the_weights_go(pairs: dict[str, Pair], path: str, way: str) -> None:
    net = streamed(pairs["sigma-ms"])
    inputs = cases(pairs["sigma-ms"])["t0-t1"].tensors(torch.float32)
    right = net.forward(inputs)

    def breaks(*_: Any) -> None:
        assert left(net) > STAYS  # the weights are there
        raise Breaks

    hook = net.model.transformer_blocks[1].get_submodule(path).register_forward_hook(breaks)
    by_stages = Staged(net.stages)  # runs them one after the other, as localisation does
    with pytest.raises(Breaks):
        (net if way == "forward" else by_stages).forward(inputs, lambda stage, made: None)
    assert left(net) == STAYS
    hook.remove()
    assert torch.equal(net.forward(inputs), right)


def test_a_watcher_that_raises_leaves_no_hook(pairs: dict[str, Pair]) -> None:
    net = streamed(pairs["sigma-ms"])
    inputs = cases(pairs["sigma-ms"])["t0-t1"].tensors(torch.float32)

    def watch(stage: str, made: Values) -> None:
        raise Breaks

    with pytest.raises(Breaks):
        net.forward(inputs, watch)
    assert left(net) == STAYS
    net.forward(inputs)  # nobody is told any more


# Weights that do not fit.


def spoilt(pair: Pair, change: Callable[[dict[str, MemoryTensor]], None]) -> Streamed:
    state = memory_tensors(load_file(pair.model / "diffusion_pytorch_model.safetensors"))
    change(state)
    return STOCK.net(read_json(pair.model / "config.json"), Weights(state, torch.float32))


KEY = "transformer_blocks.1.attn1.to_q.weight"


def test_a_missing_tensor_is_an_error(pairs: dict[str, Pair]) -> None:
    """diffusers warns of it, and goes on with random numbers."""
    pair = pairs["sigma-ms"]
    inputs = cases(pair)["t0-t1"].tensors(torch.float32)
    net = spoilt(pair, lambda state: state.pop(KEY) and None)
    with pytest.raises(KeyError, match=r"attn1\.to_q\.weight"):
        net.forward(inputs)
    assert left(net) == STAYS


@pytest.mark.parametrize("shape", [(48, 24), (48,), (1, 48), (1,), ()])
def test_a_wrong_shape_is_an_error(pairs: dict[str, Pair], shape: tuple[int, ...]) -> None:
    """Even one that torch would broadcast."""
    pair = pairs["sigma-ms"]
    inputs = cases(pair)["t0-t1"].tensors(torch.float32)
    net = spoilt(pair, lambda state: state.update({KEY: MemoryTensor(torch.zeros(shape))}))
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\.attn1\.to_q\.weight has shape"):
        net.forward(inputs)
    assert left(net) == STAYS


def test_the_same_net_on_other_weights(pairs: dict[str, Pair]) -> None:
    """What the checker does for every fault: it must be the net of the new weights and nothing of the old."""
    pair = pairs["sigma-ms"]
    inputs = cases(pair)["t0-t1"].tensors(torch.float32)
    right = load_file(pair.model / "diffusion_pytorch_model.safetensors")
    net = streamed(pair)
    first = net.forward(inputs)
    for key in ("scale_shift_table", "proj_out.bias", "pos_embed.proj.weight", "transformer_blocks.2.ff.net.2.weight"):
        other = right | {key: right[key] + 0.01}
        one, two = (Weights(memory_tensors(other), torch.float32) for _ in range(2))
        again = net.on(one).forward(inputs)
        fresh = STOCK.net(read_json(pair.model / "config.json"), two).forward(inputs)
        assert torch.equal(again, fresh), key
        assert not torch.equal(again, first), key
    assert torch.equal(net.on(Weights(memory_tensors(right), torch.float32)).forward(inputs), first)


def test_one_memory_for_both_sides(pairs: dict[str, Pair]) -> None:
    """Only one stage runs at a time, so two nets may take turns in the same memory."""
    pair = pairs["sigma-ms"]
    state = memory_tensors(load_file(pair.model / "diffusion_pytorch_model.safetensors"))
    config, memory = read_json(pair.model / "config.json"), Memory()
    one = STOCK.net(config, Weights(state, torch.float32, memory=memory))
    other = STOCK.net(config, Weights(state, torch.float64, memory=memory))
    inputs = cases(pair)["t0-t1"].tensors(torch.float32)
    wanted = streamed(pair).forward(inputs)
    exact = streamed(pair, torch.float64).forward({k: v.double() for k, v in inputs.items()})
    for _ in range(2):
        assert torch.equal(one.forward(inputs), wanted)
        assert torch.equal(other.forward({k: v.double() for k, v in inputs.items()}), exact)


# What it leaves alone.


def test_the_callers_random_numbers(pairs: dict[str, Pair]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    net = streamed(pairs["alpha-ms"])
    net.forward(cases(pairs["alpha-ms"])["t0-t1"].tensors(torch.float32))
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_and_weights(pairs: dict[str, Pair]) -> None:
    pair = pairs["alpha-ms"]
    state = load_file(pair.model / "diffusion_pytorch_model.safetensors")
    copy = {key: tensor.clone() for key, tensor in state.items()}
    inputs = cases(pair)["t0-t1"].tensors(torch.float32)
    same = {key: tensor.clone() for key, tensor in inputs.items()}
    STOCK.net(read_json(pair.model / "config.json"), Weights(state, torch.float32)).forward(inputs)
    assert all(torch.equal(state[key], copy[key]) for key in copy)
    assert all(torch.equal(inputs[key], same[key]) for key in same)
    assert inputs.keys() == same.keys()


def test_no_gradients(pairs: dict[str, Pair]) -> None:
    made = streamed(pairs["sigma-ms"]).forward(cases(pairs["sigma-ms"])["t0-t1"].tensors(torch.float32))
    assert not made.requires_grad
    assert not any(parameter.requires_grad for parameter in streamed(pairs["sigma-ms"]).model.parameters())


# What the class takes a config for.


@pytest.mark.parametrize("change", [{}, {"sample_size": 128}, {"sample_size": 256}, {"sample_size": 32}])
@pytest.mark.parametrize("without", [(), ("interpolation_scale",), ("use_additional_conditions",), ("norm_eps",)])
def test_defaults_are_those_of_the_class(
    pairs: dict[str, Pair], change: dict[str, Any], without: tuple[str, ...]
) -> None:
    from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

    config = {k: v for k, v in read_json(pairs["sigma-ms"].model / "config.json").items() if k not in without} | change
    with torch.device("meta"):
        model = PixArtTransformer2DModel.from_config(config)
    made = STOCK.resolve_config(config)
    assert made["use_additional_conditions"] == model.use_additional_conditions
    assert made["interpolation_scale"] == model.pos_embed.interpolation_scale
    assert made["norm_eps"] == model.config.norm_eps
    assert made["out_channels"] == model.out_channels


def test_values_that_go_through_a_module_in_one_batch() -> None:
    """Each is a value of its own, of the stage and of those after it."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    weights = Weights({key: tensor.double() for key, tensor in model.state_dict().items()}, torch.float64)
    stages = (StockStage("both", "0", ("x", "c"), batched=True), StockStage("whole", "", ("output",)))
    net = Streamed(model, weights, stages, lambda module, v: module(torch.cat([v["one"], v["other"]])), probes={})
    inputs = {name: torch.randn(3, 2, dtype=torch.float64) for name in ("one", "other")}
    halves = net.stages[0].run(inputs, no_probe)
    assert {name: tuple(value.shape) for name, value in halves.items()} == {"x": (3, 2), "c": (3, 2)}
    assert not torch.equal(halves["x"], halves["c"])
    assert torch.equal(net.stages[1].run(inputs | halves, no_probe)["output"], net.forward(inputs))
