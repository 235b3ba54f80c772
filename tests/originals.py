"""The golden models and small random ones, as the reference takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from makers import GOLDEN, HEADS, SMALL, pixart, recorded, sincos

from converter.models.pixart.compression import Compression
from converter.models.pixart.controlnet import controlnet
from converter.models.pixart.net import PixArtShape
from converter.models.pixart.net import pixart as reference
from converter.nets import Staged, Values, Weights

MODELS = ("alpha-ms", "alpha-fixed", "sigma-ms", "sigma-kvcompress", "sigma-qknorm", "alpha-controlnet")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Original:
    """A state dict, what it is the state of, and inputs (with the outputs, if golden) by case."""

    state: State
    shape: PixArtShape
    cases: tuple[State, ...]
    copied_blocks: int = 0

    def net(self, dtype: torch.dtype = torch.float32, **options: Any) -> Staged:
        weights = Weights(self.state, dtype, **options)
        if self.copied_blocks:
            return controlnet(weights, self.shape, self.copied_blocks)
        return reference(weights, self.shape)

    def inputs(self, case: int = 0) -> Values:
        return {name: tensor for name, tensor in self.cases[case].items() if name in INPUTS}


INPUTS = ("latent", "timestep", "caption", "caption_mask", "img_hw", "aspect_ratio", "control")


@cache
def golden(name: str) -> Original:
    """The checkpoint and what was recorded of it, the caption and its mask without their axes of size 1."""
    held = torch.load(GOLDEN / f"{name}.pth", weights_only=True)
    state: State = held.get("state_dict", held)
    told, cases = recorded(name)
    for tensors in cases:
        tensors["caption"] = tensors["caption"].squeeze(1)
        tensors["caption_mask"] = tensors["caption_mask"].squeeze(1).squeeze(1)

    compression = None
    if "kv_compress_config" in told:
        how = told["kv_compress_config"]
        compression = Compression(how["sampling"], how["scale_factor"], frozenset(how["kv_compress_layer"]))
    multi_scale = told["model"] == "PixArtMS"
    shape = PixArtShape(
        depth=told["depth"],
        hidden_size=told["hidden_size"],
        num_heads=told["num_heads"],
        patch_size=2,
        in_channels=4,
        out_channels=8,
        input_size=told["input_size"],
        scale=told["lewei_scale"] if "lewei_scale" in told else told["pe_interpolation"],
        multi_scale=multi_scale,
        micro_condition=told.get("micro_condition", multi_scale),  # the alpha class has it always
        qk_norm=told.get("qk_norm", False),
        compression=compression,
    )
    return Original(state, shape, tuple(cases), told.get("copy_blocks_num", 0))


def errors_of(net: Staged, inputs: Values, case: State) -> dict[str, float]:
    """The largest difference of the output, and of each block that was recorded ("block0" and so on)."""
    errors = {}

    def watch(stage: str, made: Values) -> None:
        key = stage.replace(" ", "")
        if key in case:
            errors[key] = float((made["x"] - case[key]).abs().max())

    output = net.forward(inputs, watch)
    assert output.shape == case["output"].shape
    return errors | {"output": float((output - case["output"]).abs().max())}


def random(
    *,
    seed: int = 0,
    grid: tuple[int, int] = (4, 6),
    copied_blocks: int = 0,
    batch: int = 2,
    depth: int = 2,
    **changes: Any,
) -> Original:
    """A multi-scale model of makers' small sizes, `changes` made to its shape, and one case of inputs."""
    hidden, side = SMALL["hidden_size"], SMALL["input_size"]
    shape = PixArtShape(
        depth=depth,
        hidden_size=hidden,
        num_heads=HEADS,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        input_size=side,
        scale=2.0,
        multi_scale=True,
    )
    shape = replace(shape, **changes)
    how = shape.compression
    state = pixart(
        seed=seed,
        scale=shape.scale,
        depth=depth,
        patch_size=shape.patch_size,
        in_channels=shape.in_channels,
        pred_sigma=shape.out_channels == 2 * shape.in_channels,
        micro_conditions=shape.micro_condition,
        qk_norm=shape.qk_norm,
        kv_compress=tuple(how.blocks) if how is not None and how.sampling == "conv" else (),
        copied_blocks=copied_blocks,
    )
    if copied_blocks:
        state["base_model.pos_embed"] = sincos(hidden, side // shape.patch_size, shape.scale)

    draw = torch.Generator().manual_seed(seed + 1)
    tokens, channels = SMALL["tokens"], SMALL["caption_channels"]
    height, width = (count * shape.patch_size for count in grid)
    mask = torch.zeros(batch, tokens)
    for i in range(batch):
        mask[i, : 3 + 4 * i] = 1
    case = {
        "latent": torch.randn(batch, shape.in_channels, height, width, generator=draw),
        "timestep": torch.rand(batch, generator=draw) * 999,
        "caption": torch.randn(batch, tokens, channels, generator=draw),
        "caption_mask": mask,
        "img_hw": torch.tensor([[8.0 * height, 8.0 * width]] * batch),
        "aspect_ratio": torch.tensor([[height / width]] * batch),
    }
    if copied_blocks:
        case["control"] = torch.randn(batch, shape.in_channels, height, width, generator=draw)
    return Original(state, shape, (case,), copied_blocks)
