"""Models of PixArt in the original layout as the class that travels with their weights holds them."""

from __future__ import annotations

import re
from typing import Any

import torch
from makers import diffusers_keyed
from originals import Original, State

from converter.models.pixart.pixart_transformer import PixArtExtendedTransformer2DModel

_OWN = re.compile(r"blocks\.(\d+)\.attn\.((?:q_norm|k_norm|sr|norm)\.(?:weight|bias))")


def config_of(original: Original) -> dict[str, Any]:
    shape, how = original.shape, original.shape.compression
    return {
        "num_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "attention_head_dim": shape.hidden_size // shape.num_heads,
        "cross_attention_dim": shape.hidden_size,
        "caption_channels": original.state["y_embedder.y_proj.fc1.weight"].shape[1],
        "sample_size": shape.input_size,
        "interpolation_scale": shape.scale,
        "use_additional_conditions": shape.micro_condition,
        "qk_norm": shape.qk_norm,
        "kv_compress_sampling": how.sampling if how else None,
        "kv_compress_factor": how.factor if how else 1,
        "kv_compress_blocks": sorted(how.blocks) if how else [],
    }


def keyed(state: State) -> State:
    """The weights under the class's keys, the four that diffusers has not mapped by hand."""
    own = {key: match for key in state if (match := _OWN.fullmatch(key))}
    named = {f"transformer_blocks.{match[1]}.attn1.{match[2]}": state[key] for key, match in own.items()}
    return diffusers_keyed({key: tensor for key, tensor in state.items() if key not in own}) | named


def extended(original: Original, dtype: torch.dtype = torch.float32) -> PixArtExtendedTransformer2DModel:
    """The class with the weights of an original, and with no key left over or missing."""
    model = PixArtExtendedTransformer2DModel(**config_of(original))
    model.load_state_dict(keyed(original.state))
    return model.to(dtype).eval()


def run(model: torch.nn.Module, inputs: State, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The output of a model of diffusers for one of an original's cases."""
    tensors = {name: tensor.to(dtype) for name, tensor in inputs.items()}
    output: torch.Tensor = model(
        tensors["latent"],
        encoder_hidden_states=tensors["caption"],
        encoder_attention_mask=tensors["caption_mask"],
        timestep=inputs["timestep"],
        added_cond_kwargs={"resolution": tensors.get("img_hw"), "aspect_ratio": tensors.get("aspect_ratio")},
    ).sample
    return output
