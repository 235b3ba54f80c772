"""Layouts that this project does not convert, by their published names: drafts of what the words were not made for."""

from __future__ import annotations

import pytest

from converter.new_family import KeyList, draft

D, DEPTH = 96, 3
Pairs = list[tuple[str, str | tuple[str, ...], tuple[int, ...]]]

J, F, W, T = "joint_blocks.{}.", "double_blocks.{}.", "blocks.{}.", "transformer_blocks.{}."
EMB, COND = "time_text_embed.", "condition_embedder."
QKV = tuple(f"{T}attn.to_{part}" for part in "qkv")
ADDED = tuple(f"{T}attn.add_{part}_proj" for part in "qkv")

# (original, target, shape of the original's); a path that ends in '!' is a tensor itself.
SD3: Pairs = [
    ("pos_embed!", "pos_embed.pos_embed!", (1, 400, D)),
    ("x_embedder.proj", "pos_embed.proj", (D, 16, 2, 2)),
    ("t_embedder.mlp.0", EMB + "timestep_embedder.linear_1", (D, 256)),
    ("t_embedder.mlp.2", EMB + "timestep_embedder.linear_2", (D, D)),
    ("y_embedder.mlp.0", EMB + "text_embedder.linear_1", (D, 2048)),
    ("y_embedder.mlp.2", EMB + "text_embedder.linear_2", (D, D)),
    ("context_embedder", "context_embedder", (D, 4096)),
    (J + "x_block.attn.qkv", QKV, (3 * D, D)),
    (J + "context_block.attn.qkv", ADDED, (3 * D, D)),
    (J + "x_block.attn.proj", T + "attn.to_out.0", (D, D)),
    (J + "context_block.attn.proj", T + "attn.to_add_out", (D, D)),
    (J + "x_block.adaLN_modulation.1", T + "norm1.linear", (6 * D, D)),
    (J + "context_block.adaLN_modulation.1", T + "norm1_context.linear", (6 * D, D)),
    (J + "x_block.mlp.fc1", T + "ff.net.0.proj", (4 * D, D)),
    (J + "x_block.mlp.fc2", T + "ff.net.2", (D, 4 * D)),
    (J + "context_block.mlp.fc1", T + "ff_context.net.0.proj", (4 * D, D)),
    (J + "context_block.mlp.fc2", T + "ff_context.net.2", (D, 4 * D)),
    ("final_layer.linear", "proj_out", (64, D)),
    ("final_layer.adaLN_modulation.1", "norm_out.linear", (2 * D, D)),
]
FLUX: Pairs = [
    ("img_in", "x_embedder", (D, 64)),
    ("time_in.in_layer", EMB + "timestep_embedder.linear_1", (D, 256)),
    ("time_in.out_layer", EMB + "timestep_embedder.linear_2", (D, D)),
    ("vector_in.in_layer", EMB + "text_embedder.linear_1", (D, 768)),
    ("vector_in.out_layer", EMB + "text_embedder.linear_2", (D, D)),
    ("guidance_in.in_layer", EMB + "guidance_embedder.linear_1", (D, 256)),
    ("guidance_in.out_layer", EMB + "guidance_embedder.linear_2", (D, D)),
    ("txt_in", "context_embedder", (D, 4096)),
    (F + "img_mod.lin", T + "norm1.linear", (6 * D, D)),
    (F + "txt_mod.lin", T + "norm1_context.linear", (6 * D, D)),
    (F + "img_attn.qkv", QKV, (3 * D, D)),
    (F + "txt_attn.qkv", ADDED, (3 * D, D)),
    (F + "img_attn.proj", T + "attn.to_out.0", (D, D)),
    (F + "txt_attn.proj", T + "attn.to_add_out", (D, D)),
    (F + "img_attn.norm.query_norm.scale!", T + "attn.norm_q.weight!", (12,)),
    (F + "img_attn.norm.key_norm.scale!", T + "attn.norm_k.weight!", (12,)),
    (F + "txt_attn.norm.query_norm.scale!", T + "attn.norm_added_q.weight!", (12,)),
    (F + "txt_attn.norm.key_norm.scale!", T + "attn.norm_added_k.weight!", (12,)),
    (F + "img_mlp.0", T + "ff.net.0.proj", (4 * D, D)),
    (F + "img_mlp.2", T + "ff.net.2", (D, 4 * D)),
    (F + "txt_mlp.0", T + "ff_context.net.0.proj", (4 * D, D)),
    (F + "txt_mlp.2", T + "ff_context.net.2", (D, 4 * D)),
    ("final_layer.linear", "proj_out", (64, D)),
    ("final_layer.adaLN_modulation.1", "norm_out.linear", (2 * D, D)),
]
WAN: Pairs = [
    ("patch_embedding", "patch_embedding", (D, 16, 1, 2, 2)),
    ("text_embedding.0", COND + "text_embedder.linear_1", (D, 4096)),
    ("text_embedding.2", COND + "text_embedder.linear_2", (D, D)),
    ("time_embedding.0", COND + "time_embedder.linear_1", (D, 256)),
    ("time_embedding.2", COND + "time_embedder.linear_2", (D, D)),
    ("time_projection.1", COND + "time_proj", (6 * D, D)),
    *((f"{W}self_attn.{part}", f"{W}attn1.to_{part}", (D, D)) for part in "qkv"),
    (W + "self_attn.o", W + "attn1.to_out.0", (D, D)),
    (W + "self_attn.norm_q.weight!", W + "attn1.norm_q.weight!", (D,)),
    (W + "self_attn.norm_k.weight!", W + "attn1.norm_k.weight!", (D,)),
    *((f"{W}cross_attn.{part}", f"{W}attn2.to_{part}", (D, D)) for part in "qkv"),
    (W + "cross_attn.o", W + "attn2.to_out.0", (D, D)),
    (W + "cross_attn.norm_q.weight!", W + "attn2.norm_q.weight!", (D,)),
    (W + "cross_attn.norm_k.weight!", W + "attn2.norm_k.weight!", (D,)),
    (W + "norm3", W + "norm2", (D,)),
    (W + "ffn.0", W + "ffn.net.0.proj", (4 * D, D)),
    (W + "ffn.2", W + "ffn.net.2", (D, 4 * D)),
    (W + "modulation!", W + "scale_shift_table!", (1, 6, D)),
    ("head.modulation!", "scale_shift_table!", (1, 2, D)),
    ("head.head", "proj_out", (64, D)),
]


def spelt(path: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The keys of a path in every block."""
    ends = {"": shape} if path.endswith("!") else {".weight": shape, ".bias": shape[:1]}
    indices = range(DEPTH if "{}" in path else 1)
    return {path.rstrip("!").replace("{}", str(i)) + end: size for i in indices for end, size in ends.items()}


@pytest.mark.parametrize(("pairs", "sure"), [(SD3, 18), (FLUX, 16), (WAN, 23)], ids=["SD3", "Flux", "Wan"])
def test_all_of_it_is_found_and_nothing_is_wrong_silently(pairs: Pairs, sure: int) -> None:
    source: dict[str, tuple[int, ...]] = {}
    target: dict[str, tuple[int, ...]] = {}
    truth = {}
    for path, to, shape in pairs:
        parts = to if isinstance(to, tuple) else (to,)
        truth[path.rstrip("!")] = tuple(part.rstrip("!") for part in parts)
        source |= spelt(path, shape)
        for part in parts:
            target |= spelt(part, (shape[0] // len(parts), *shape[1:]))
    # The order of a checkpoint that was sorted says nothing.
    made = draft(KeyList("original", source), KeyList("target", dict(sorted(target.items()))))
    assert {row.source: row.targets for row in made.rows} == truth
    assert sum(row.sure for row in made.rows) >= sure
    assert (made.unmatched_source, made.unmatched_target) == ((), ())
