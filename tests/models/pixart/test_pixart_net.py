"""How the reference may be run: dtypes, masks, stages, probes, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from makers import ROOT
from originals import MODELS, Original, golden, random

from converter.models.pixart.compression import Compression
from converter.models.pixart.controlnet import controlnet
from converter.nets import Values, Weights, no_probe
from converter.nets.layers import cross_attention, linear

KV = Compression("conv", 2, frozenset({1}))
MODELS_MADE: dict[str, dict[str, Any]] = {
    "plain": {},
    "all at once": {"micro_condition": True, "qk_norm": True, "compression": KV},
    "ControlNet": {"copied_blocks": 1, "micro_condition": True},
}
made = pytest.mark.parametrize("model", [random(**changes) for changes in MODELS_MADE.values()], ids=MODELS_MADE)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


# Captions.


@made
def test_padding_does_not_matter(model: Original) -> None:
    inputs, net = model.inputs(), model.net()
    expected = net.forward(inputs)
    padding = inputs["caption_mask"][..., None] == 0
    for garbage in (1e4, float("nan"), float("inf")):
        dirty = inputs | {"caption": torch.where(padding, torch.tensor(garbage), inputs["caption"])}
        assert torch.equal(net.forward(dirty), expected)


@made
def test_kept_tokens_do_matter(model: Original) -> None:
    inputs, net = model.inputs(), model.net()
    expected = net.forward(inputs)
    more = inputs["caption_mask"].clone()
    more[0, 3] = 1  # the first that was padding
    assert not torch.equal(net.forward(inputs | {"caption_mask": more})[0], expected[0])
    assert distance(net.forward(inputs | {"caption_mask": more})[1], expected[1]) < 1e-6
    scattered = torch.zeros_like(more)
    scattered[:, ::2] = 1
    assert distance(net.forward(inputs | {"caption_mask": scattered}), expected) > 1e-3


@made
def test_no_mask_is_a_mask_of_ones(model: Original) -> None:
    inputs, net = model.inputs(), model.net()
    del inputs["caption_mask"]
    expected = net.forward(inputs)
    for dtype in (torch.int64, torch.bool, torch.float32, torch.bfloat16):
        ones = torch.ones(inputs["caption"].shape[:2], dtype=dtype)
        assert torch.equal(net.forward(inputs | {"caption_mask": ones}), expected)


def test_a_sample_alone_and_among_others() -> None:
    model = random(batch=3)
    inputs, net = model.inputs(), model.net(torch.float64)
    together = net.forward(inputs)
    for i in range(3):
        alone = net.forward({name: tensor[i : i + 1] for name, tensor in inputs.items()})
        assert distance(alone[0], together[i]) < 1e-13


def test_a_caption_of_which_nothing_is_kept() -> None:
    """Nothing comes of the attention, and no NaN: the output is the bias of its projection."""
    model = random()
    weights = Weights(model.state, torch.float32).under("blocks.0.cross_attn.")
    x, y = torch.randn(2, 5, 24), torch.randn(2, 3, 24)
    out = cross_attention(weights, x, y, torch.tensor([[0, 0, 0], [1, 1, 0]]), heads=4)
    assert torch.equal(out[0], weights["proj.bias"].expand(5, 24))
    assert not torch.equal(out[1], weights["proj.bias"].expand(5, 24))


def test_padding_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, multiplied = random(), list[int]()
    weights = Weights(model.state, torch.float32).under("blocks.0.cross_attn.")

    def counting(weights: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
        if name == "kv_linear":
            multiplied.append(x[..., 0].numel())
        return linear(weights, name, x)

    monkeypatch.setattr("converter.nets.layers.linear", counting)
    x, y, mask = torch.randn(2, 5, 24), torch.randn(2, 12, 24), model.inputs()["caption_mask"]
    cross_attention(weights, x, y, mask, heads=4)
    assert multiplied == [3 + 7]


# Dtypes.


@made
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str
)
def test_every_dtype_is_near_float64(model: Original, dtype: torch.dtype, limit: float) -> None:
    inputs = model.inputs()
    # Numbers that bfloat16 represents, since the sinusoids of others are another input.
    inputs["timestep"] = torch.tensor([100.0, 200.0])
    inputs |= {name: inputs[name].bfloat16().float() for name in ("img_hw", "aspect_ratio")}
    got = model.net(dtype).forward(inputs)
    assert got.dtype == dtype
    assert torch.isfinite(got).all()
    assert 0 < distance(got, model.net(torch.float64).forward(inputs)) < limit


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_goldens_in_half_precision(name: str, dtype: torch.dtype, limit: float) -> None:
    model = golden(name)
    inputs = model.inputs()
    wide = {key: tensor.to(dtype).float() for key, tensor in inputs.items()}  # what the cast makes of the inputs
    assert distance(model.net(dtype).forward(inputs), model.net().forward(wide)) < limit


def test_the_timestep_is_cast_too() -> None:
    model = random()
    inputs = model.inputs()

    def embedded(timestep: float, dtype: torch.dtype) -> torch.Tensor:
        stage = model.net(dtype).stages[1]
        assert stage.name == "timestep embedding"
        return stage.run(inputs | {"timestep": torch.full((2,), timestep)}, no_probe)["t"]

    # The neighbours of 999 in bfloat16 are 996 and 1000.
    assert torch.equal(embedded(999, torch.bfloat16), embedded(1000, torch.bfloat16))
    assert not torch.equal(embedded(999, torch.bfloat16), embedded(996, torch.bfloat16))
    assert not torch.equal(embedded(999, torch.float16), embedded(1000, torch.float16))
    assert not torch.equal(embedded(999, torch.float32), embedded(1000, torch.float32))
    steps = torch.arange(1000).float()
    assert int((steps.bfloat16().float() != steps).sum()) == 494


def test_inputs_of_another_dtype_are_cast() -> None:
    model = random(micro_condition=True)
    inputs = {name: tensor.bfloat16().float() for name, tensor in model.inputs().items()}
    net = model.net()
    expected = net.forward(inputs)
    assert torch.equal(net.forward({name: tensor.double() for name, tensor in inputs.items()}), expected)
    assert torch.equal(net.forward({name: tensor.bfloat16() for name, tensor in inputs.items()}), expected)
    inputs["timestep"] = torch.tensor([500, 999])
    whole = inputs | {"timestep": torch.tensor([500.0, 999.0])}
    assert torch.equal(net.forward(inputs), net.forward(whole))


# The positional table.


def test_without_a_stored_table() -> None:
    model = golden("alpha-fixed")
    bare = replace(model, state={key: t for key, t in model.state.items() if key != "pos_embed"})
    for dtype in (torch.float32, torch.float64, torch.float16):  # in float64 too: the buffer would be float32
        assert torch.equal(bare.net(dtype).forward(model.inputs()), model.net(dtype).forward(model.inputs()))


def test_a_stored_table_counts_in_the_fixed_class_only() -> None:
    for multi_scale in (False, True):
        model = random(grid=(8, 8), multi_scale=multi_scale)
        other = replace(model, state=model.state | {"pos_embed": torch.zeros_like(model.state["pos_embed"])})
        same = torch.equal(other.net().forward(model.inputs()), model.net().forward(model.inputs()))
        assert same is multi_scale


def test_the_fixed_class_takes_one_size() -> None:
    model = random(grid=(4, 6), multi_scale=False)
    with pytest.raises(ValueError, match=r"64 positions.* 4 x 6"):
        model.net().forward(model.inputs())


def test_rounding_is_for_weights_and_not_for_the_table() -> None:
    model = random(grid=(8, 8), multi_scale=False)
    rounded = {key: t if key == "pos_embed" else t.half().float() for key, t in model.state.items()}
    expected = replace(model, state=rounded).net().forward(model.inputs())
    assert torch.equal(model.net(rounded=torch.float16).forward(model.inputs()), expected)
    assert not torch.equal(model.net().forward(model.inputs()), expected)


def test_rounding_reaches_all_of_a_controlnet() -> None:
    model = random(copied_blocks=1)
    expected = replace(model, state={key: t.half() for key, t in model.state.items()}).net().forward(model.inputs())
    assert torch.equal(model.net(rounded=torch.float16).forward(model.inputs()), expected)


# Stages and probes.


@made
def test_stages(model: Original) -> None:
    """Names, values, shapes; one by one they are `forward`; nothing that goes in is changed."""
    net, inputs = model.net(), model.inputs()
    before = {name: tensor.clone() for name, tensor in inputs.items()}
    weights = {key: tensor.clone() for key, tensor in model.state.items()}
    batch, (_, tokens, _) = 2, inputs["caption"].shape
    count, width, depth = 4 * 6, model.shape.hidden_size, model.shape.depth
    tokens_of = (batch, count, width)
    x, control = {"x": tokens_of}, {"c": tokens_of} if model.copied_blocks else {}
    copies = {f"control block {i}": control | {f"skip {i}": tokens_of} for i in range(model.copied_blocks)}
    expected = {
        "patch embedding": x | control,
        "timestep embedding": {"t": (batch, width), "t0": (batch, 6 * width)},
        "caption embedding": {"y": (batch, tokens, width)},
        "block 0": x,
        **copies,
        **{f"block {i}": x for i in range(1, depth)},
        "final layer": {"output": (batch, model.shape.out_channels, 8, 12)},
    }

    values: Values = dict(inputs)
    found = {}
    for stage in net.stages:
        given = {name: tensor.clone() for name, tensor in values.items()}
        gained = stage.run(values, no_probe)
        found[stage.name] = {name: tuple(tensor.shape) for name, tensor in gained.items()}
        assert set(values) == set(given)
        assert all(torch.equal(values[name], tensor) for name, tensor in given.items())
        values |= gained
    assert found == expected
    assert list(found) == list(expected)
    assert torch.equal(values["output"], net.forward(inputs))
    assert all(torch.equal(inputs[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(model.state[key], tensor) for key, tensor in weights.items())


@made
def test_probes(model: Original) -> None:
    net, values = model.net(), model.inputs()
    image, text = (2, 4 * 6, model.shape.hidden_size), (2, 12, model.shape.hidden_size)
    inside = {
        "norm1 modulated": image,
        "attn1 q": image,
        "attn1 k": image,
        "attn1 v": image,
        "attn1 out": image,
        "after self-attention": image,
        "attn2 q": image,
        "attn2 k": text,
        "attn2 v": text,
        "attn2 out": image,
        "after cross-attention": image,
        "norm2 modulated": image,
        "ff hidden": (2, 4 * 6, 4 * model.shape.hidden_size),
        "ff out": image,
    }
    for stage in net.stages:
        heard: list[tuple[str, tuple[int, ...]]] = []
        watched = stage.run(values, lambda name, value, heard=heard: heard.append((name, tuple(value.shape))))
        alone = stage.run(values, no_probe)
        assert all(torch.equal(watched[name], tensor) for name, tensor in alone.items())  # listening changes nothing
        expected = inside if "block " in stage.name else {}
        assert heard == list(expected.items())
        values |= alone


def test_what_a_probe_hears() -> None:
    """By its own formulae, in a block without any of the variations."""
    model = random()
    heard: Values = {}
    values = model.inputs()
    w = {key.removeprefix("blocks.1."): t for key, t in model.state.items() if key.startswith("blocks.1.")}
    for stage in model.net().stages:
        if stage.name == "block 1":
            after = stage.run(values, lambda name, value: heard.update({name: value}))["x"]
            break
        values |= stage.run(values, no_probe)

    def close(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    for i, name in enumerate("qkv"):
        rows = slice(24 * i, 24 * (i + 1))
        close(
            heard[f"attn1 {name}"], heard["norm1 modulated"] @ w["attn.qkv.weight"][rows].T + w["attn.qkv.bias"][rows]
        )
    for i, name in enumerate("kv"):
        rows = slice(24 * i, 24 * (i + 1))
        weight, bias = w["cross_attn.kv_linear.weight"][rows], w["cross_attn.kv_linear.bias"][rows]
        close(heard[f"attn2 {name}"], values["y"] @ weight.T + bias)
    x = heard["after self-attention"]
    close(heard["attn2 q"], x @ w["cross_attn.q_linear.weight"].T + w["cross_attn.q_linear.bias"])
    close(heard["after cross-attention"], x + heard["attn2 out"])
    gates = w["scale_shift_table"] + values["t0"].reshape(2, 6, 24)
    close(x, values["x"] + gates[:, 2:3] * heard["attn1 out"])
    close(heard["ff hidden"], heard["norm2 modulated"] @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"])
    close(after, heard["after cross-attention"] + gates[:, 5:6] * heard["ff out"])


# What it depends on.


def test_imports() -> None:
    script = (
        "import sys, converter.models.pixart.net, converter.models.dit.net\n"
        "names = ('diffusers', 'transformers', 'safetensors', 'converter.checkpoint', 'converter.families',"
        " 'converter.parity')\n"
        "print([name for name in names if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("copied", [0, 2, 3, -1])
def test_as_many_copies_as_there_is_room_for(copied: int) -> None:
    model = random(copied_blocks=1)
    with pytest.raises(ValueError, match="copied blocks"):
        controlnet(Weights(model.state, torch.float32), model.shape, copied)
