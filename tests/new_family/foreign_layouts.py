"""Nets that this project knows nothing of, in the layout of their training code, and what diffusers makes of them.

Only key names and shapes are written here. What becomes of each is asked of diffusers' own converters: every key goes
in as a numbered run of rows, and where its rows come out, and in which order, is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from diffusers.loaders import single_file_utils

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Pairs = Iterator[tuple[str, Shape]]


@dataclass(frozen=True)
class ForeignNet:
    """`source` and `target`: keys and shapes; `whole`: source key -> the targets that hold its rows in order, equal
    runs of them, or () where no row of a table says what becomes of it (dropped, or its rows change places)."""

    source: Shapes
    target: Shapes
    whole: dict[str, tuple[str, ...]]


def linear(path: str, out: int, into: int, bias: bool = True) -> Pairs:
    yield f"{path}.weight", (out, into)
    if bias:
        yield f"{path}.bias", (out,)


def norm(path: str, size: int, name: str = "weight") -> Pairs:
    yield f"{path}.{name}", (size,)


def mlp(path: str, width: int, into: int, names: tuple[str, str] = ("mlp.0", "mlp.2")) -> Pairs:
    yield from linear(f"{path}.{names[0]}", width, into)
    yield from linear(f"{path}.{names[1]}", width, width)


def sana(d: int = 64, depth: int = 2) -> Pairs:
    yield "pos_embed", (1, 16, d)
    yield "x_embedder.proj.weight", (d, 32, 1, 1)
    yield "x_embedder.proj.bias", (d,)
    yield from mlp("t_embedder", d, 256)
    yield from linear("t_block.1", 6 * d, d)
    yield "y_embedder.y_embedding", (30, 48)
    yield from linear("y_embedder.y_proj.fc1", d, 48)
    yield from linear("y_embedder.y_proj.fc2", d, d)
    yield from norm("attention_y_norm", d)
    for i in range(depth):
        b = f"blocks.{i}."
        yield b + "scale_shift_table", (6, d)
        yield from linear(b + "attn.qkv", 3 * d, d, bias=False)
        yield from linear(b + "attn.proj", d, d)
        yield from linear(b + "cross_attn.q_linear", d, d)
        yield from linear(b + "cross_attn.kv_linear", 2 * d, d)
        yield from linear(b + "cross_attn.proj", d, d)
        for name, shape in (("inverted", (5 * d, d, 1, 1)), ("depth", (5 * d, 1, 3, 3))):
            yield f"{b}mlp.{name}_conv.conv.weight", shape
            yield f"{b}mlp.{name}_conv.conv.bias", shape[:1]
        yield b + "mlp.point_conv.conv.weight", (d, 5 * d // 2, 1, 1)
    yield from linear("final_layer.linear", 32, d)
    yield "final_layer.scale_shift_table", (2, d)


def sd3(d: int = 64, depth: int = 3) -> Pairs:
    yield "pos_embed", (1, 36, d)
    yield "x_embedder.proj.weight", (d, 16, 2, 2)
    yield "x_embedder.proj.bias", (d,)
    yield from mlp("t_embedder", d, 256)
    yield from linear("y_embedder.mlp.0", d, 40)
    yield from linear("y_embedder.mlp.2", d, d)
    yield from linear("context_embedder", d, 48)
    for i in range(depth):
        for side in ("context", "x"):
            b, last = f"joint_blocks.{i}.{side}_block.", side == "context" and i == depth - 1
            yield from linear(b + "attn.qkv", 3 * d, d)
            yield from norm(b + "attn.ln_q", 8)
            yield from norm(b + "attn.ln_k", 8)
            yield from linear(b + "adaLN_modulation.1", (2 if last else 6) * d, d)
            if not last:
                yield from linear(b + "attn.proj", d, d)
                yield from linear(b + "mlp.fc1", 4 * d, d)
                yield from linear(b + "mlp.fc2", d, 4 * d)
    yield from linear("final_layer.linear", 64, d)
    yield from linear("final_layer.adaLN_modulation.1", 2 * d, d)


def flux(d: int = 3072, depth: int = 2, single: int = 3) -> Pairs:
    yield from linear("img_in", d, 64)
    yield from linear("txt_in", d, 4096)
    for name, into in (("time", 256), ("vector", 768), ("guidance", 256)):
        yield from mlp(f"{name}_in", d, into, ("in_layer", "out_layer"))
    for i in range(depth):
        for side in ("img", "txt"):
            b = f"double_blocks.{i}.{side}_"
            yield from linear(b + "mod.lin", 6 * d, d)
            yield from linear(b + "attn.qkv", 3 * d, d)
            yield from norm(b + "attn.norm.query_norm", 128, "scale")
            yield from norm(b + "attn.norm.key_norm", 128, "scale")
            yield from linear(b + "attn.proj", d, d)
            yield from linear(b + "mlp.0", 4 * d, d)
            yield from linear(b + "mlp.2", d, 4 * d)
    for i in range(single):
        b = f"single_blocks.{i}."
        yield from linear(b + "linear1", 7 * d, d)
        yield from linear(b + "linear2", d, 5 * d)
        yield from norm(b + "norm.query_norm", 128, "scale")
        yield from norm(b + "norm.key_norm", 128, "scale")
        yield from linear(b + "modulation.lin", 3 * d, d)
    yield from linear("final_layer.linear", 64, d)
    yield from linear("final_layer.adaLN_modulation.1", 2 * d, d)


def mochi(d: int = 64, y: int = 32, depth: int = 48) -> Pairs:
    yield "x_embedder.proj.weight", (d, 12, 2, 2)
    yield "x_embedder.proj.bias", (d,)
    yield from mlp("t_embedder", d, 256)
    yield from linear("t5_y_embedder.to_kv", 2 * 48, 48)
    yield from linear("t5_y_embedder.to_q", 48, 48)
    yield from linear("t5_y_embedder.to_out", d, 48)
    yield from linear("t5_yproj", y, 48)
    yield "pos_frequencies", (3, 4, 8)
    for i in range(depth):
        b, last = f"blocks.{i}.", i == depth - 1
        yield from linear(b + "mod_x", 4 * d, d)
        yield from linear(b + "mod_y", (1 if last else 4) * y, d)
        yield from linear(b + "attn.qkv_x", 3 * d, d, bias=False)
        yield from linear(b + "attn.qkv_y", 3 * d, y, bias=False)
        for name in ("q_norm_x", "k_norm_x", "q_norm_y", "k_norm_y"):
            yield from norm(b + "attn." + name, 16)
        yield from linear(b + "attn.proj_x", d, d)
        yield from linear(b + "mlp_x.w1", 8 * d, d, bias=False)
        yield from linear(b + "mlp_x.w2", d, 4 * d, bias=False)
        if not last:
            yield from linear(b + "attn.proj_y", y, d)
            yield from linear(b + "mlp_y.w1", 8 * y, y, bias=False)
            yield from linear(b + "mlp_y.w2", y, 4 * y, bias=False)
    yield from linear("final_layer.mod", 2 * d, d)
    yield from linear("final_layer.linear", 48, d)


def hunyuan(d: int = 3072, depth: int = 2, single: int = 3) -> Pairs:
    yield "img_in.proj.weight", (d, 16, 1, 2, 2)
    yield "img_in.proj.bias", (d,)
    yield from linear("txt_in.input_embedder", d, 4096)
    yield from mlp("txt_in.t_embedder", d, 256)
    yield from linear("txt_in.c_embedder.linear_1", d, 4096)
    yield from linear("txt_in.c_embedder.linear_2", d, d)
    for i in range(depth):
        b = f"txt_in.individual_token_refiner.blocks.{i}."
        for name in ("norm1", "norm2"):
            yield from norm(b + name, d)
            yield from norm(b + name, d, "bias")
        yield from linear(b + "self_attn_qkv", 3 * d, d)
        yield from linear(b + "self_attn_proj", d, d)
        yield from linear(b + "mlp.fc1", 4 * d, d)
        yield from linear(b + "mlp.fc2", d, 4 * d)
        yield from linear(b + "adaLN_modulation.1", 2 * d, d)
    yield from mlp("time_in", d, 256)
    yield from mlp("vector_in", d, 768, ("in_layer", "out_layer"))
    yield from mlp("guidance_in", d, 256)
    for i in range(depth):
        for side in ("img", "txt"):
            b = f"double_blocks.{i}.{side}_"
            yield from linear(b + "mod.linear", 6 * d, d)
            yield from linear(b + "attn_qkv", 3 * d, d)
            yield from norm(b + "attn_q_norm", 128)
            yield from norm(b + "attn_k_norm", 128)
            yield from linear(b + "attn_proj", d, d)
            yield from linear(b + "mlp.fc1", 4 * d, d)
            yield from linear(b + "mlp.fc2", d, 4 * d)
    for i in range(single):
        b = f"single_blocks.{i}."
        yield from linear(b + "linear1", 7 * d, d)
        yield from linear(b + "linear2", d, 5 * d)
        yield from norm(b + "q_norm", 128)
        yield from norm(b + "k_norm", 128)
        yield from linear(b + "modulation.linear", 3 * d, d)
    yield from linear("final_layer.linear", 64, d)
    yield from linear("final_layer.adaLN_modulation.1", 2 * d, d)


def wan(d: int = 64, depth: int = 2) -> Pairs:
    yield "patch_embedding.weight", (d, 16, 1, 2, 2)
    yield "patch_embedding.bias", (d,)
    yield from linear("text_embedding.0", d, 48)
    yield from linear("text_embedding.2", d, d)
    yield from linear("time_embedding.0", d, 256)
    yield from linear("time_embedding.2", d, d)
    yield from linear("time_projection.1", 6 * d, d)
    for i in range(depth):
        b = f"blocks.{i}."
        yield b + "modulation", (1, 6, d)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                yield from linear(f"{b}{attention}.{part}", d, d)
            yield from norm(f"{b}{attention}.norm_q", d)
            yield from norm(f"{b}{attention}.norm_k", d)
        yield from linear(b + "cross_attn.k_img", d, d)
        yield from linear(b + "cross_attn.v_img", d, d)
        yield from norm(b + "cross_attn.norm_k_img", d)
        yield from norm(b + "norm3", d)
        yield from norm(b + "norm3", d, "bias")
        yield from linear(b + "ffn.0", 4 * d, d)
        yield from linear(b + "ffn.2", d, 4 * d)
    yield from linear("head.head", 64, d)
    yield "head.modulation", (1, 2, d)
    for part, out, into in (("1", 48, 48), ("3", d, 48)):
        yield from linear(f"img_emb.proj.{part}", out, into)
    for part, size in (("0", 48), ("4", d)):
        yield from norm(f"img_emb.proj.{part}", size)
        yield from norm(f"img_emb.proj.{part}", size, "bias")


def auraflow(d: int = 64, double: int = 2, single: int = 3) -> Pairs:
    yield "register_tokens", (1, 8, d)
    yield "positional_encoding", (1, 64, d)
    yield from linear("init_x_linear", d, 16)
    yield from mlp("t_embedder", d, 256)
    yield from linear("cond_seq_linear", d, 48, bias=False)
    for i in range(double):
        b = f"double_layers.{i}."
        for part in ("w1q", "w1k", "w1v", "w1o", "w2q", "w2k", "w2v", "w2o"):
            yield from linear(b + "attn." + part, d, d, bias=False)
        for part in ("mlpC", "mlpX"):
            yield from linear(b + part + ".c_fc1", 2 * d, d, bias=False)
            yield from linear(b + part + ".c_fc2", 2 * d, d, bias=False)
            yield from linear(b + part + ".c_proj", d, 2 * d, bias=False)
        for part in ("modC", "modX"):
            yield from linear(b + part + ".1", 6 * d, d, bias=False)
    for i in range(single):
        b = f"single_layers.{i}."
        for part in "qkvo":
            yield from linear(f"{b}attn.w1{part}", d, d, bias=False)
        yield from linear(b + "mlp.c_fc1", 2 * d, d, bias=False)
        yield from linear(b + "mlp.c_fc2", 2 * d, d, bias=False)
        yield from linear(b + "mlp.c_proj", d, 2 * d, bias=False)
        yield from linear(b + "modCX.1", 6 * d, d, bias=False)
    yield from linear("modF.1", 2 * d, d, bias=False)
    yield from linear("final_linear", 16, d, bias=False)


def ltx(d: int = 64, depth: int = 2) -> Pairs:
    yield "scale_shift_table", (2, d)
    yield from linear("patchify_proj", d, 128)
    yield from mlp("adaln_single.emb.timestep_embedder", d, 256, ("linear_1", "linear_2"))
    yield from linear("adaln_single.linear", 6 * d, d)
    yield from linear("caption_projection.linear_1", d, 48)
    yield from linear("caption_projection.linear_2", d, d)
    for i in range(depth):
        b = f"transformer_blocks.{i}."
        yield b + "scale_shift_table", (6, d)
        for attention in ("attn1", "attn2"):
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                yield from linear(f"{b}{attention}.{part}", d, d)
            yield from norm(f"{b}{attention}.q_norm", d)
            yield from norm(f"{b}{attention}.k_norm", d)
        yield from linear(b + "ff.net.0.proj", 4 * d, d)
        yield from linear(b + "ff.net.2", d, 4 * d)
    yield from linear("proj_out", 128, d)


NETS: dict[str, tuple[Callable[[], Pairs], str]] = {
    "sana": (sana, "convert_sana_transformer_to_diffusers"),
    "sd3": (sd3, "convert_sd3_transformer_checkpoint_to_diffusers"),
    "flux": (flux, "convert_flux_transformer_checkpoint_to_diffusers"),
    "mochi": (mochi, "convert_mochi_transformer_checkpoint_to_diffusers"),
    "hunyuan-video": (hunyuan, "convert_hunyuan_video_transformer_to_diffusers"),
    "wan": (wan, "convert_wan_transformer_to_diffusers"),
    "auraflow": (auraflow, "convert_auraflow_transformer_checkpoint_to_diffusers"),
    "ltx": (ltx, "convert_ltx_transformer_checkpoint_to_diffusers"),
}


def foreign_net(name: str) -> ForeignNet:
    """Both layouts of a net, and the truth of what becomes of each key."""
    make, converter = NETS[name]
    source = dict(make())
    # (number of the key, row): what a converter does to rows is seen on these alone, without the weights.
    tagged = {
        key: torch.stack([torch.full((shape[0],), number), torch.arange(shape[0])], 1)
        for number, (key, shape) in enumerate(source.items())
    }
    made = getattr(single_file_utils, converter)(dict(tagged))
    keys, target = list(source), {}
    runs: dict[str, list[tuple[int, int, str]]] = {key: [] for key in source}
    for path, rows in made.items():
        numbers, positions = rows[:, 0], rows[:, 1]
        key = keys[int(numbers[0])]
        assert bool((numbers == numbers[0]).all()), "a converter that joins tensors needs another oracle"
        target[path] = (len(rows), *source[key][1:])
        ordered = bool((positions.diff() == 1).all())
        runs[key].append((int(positions[0]) if ordered else -1, len(rows), path))
    whole = {}
    for key, found in runs.items():
        found.sort()
        step = source[key][0] // max(len(found), 1)
        regular = [(start, size) for start, size, _ in found] == [(i * step, step) for i in range(len(found))]
        whole[key] = tuple(path for _, _, path in found) if regular else ()
    return ForeignNet(source, target, whole)
