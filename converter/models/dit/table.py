"""Class-conditional DiT (Peebles & Xie, arXiv 2212.09748): original training code to diffusers, S to XL, patch 2, 4, 8.

Symbols in the shape patterns: D hidden size, C latent channels, p patch size, Y rows of the class table, N positions,
F width of the feed-forward layers, R rows of the output layer (patch^2 times output channels).
"""

from __future__ import annotations

from typing import Any

from ...families import evidence, positions
from ...families.amended import Amended, Amendment
from ...families.base import Family, Findings, Flag, State
from ...families.sincos import DRIFT
from ...mapping import Computed, Copies, KeyMapping, Parameter, Plan, ZeroInit

VAE_FACTOR, MLP_RATIO = 8, 4  # pixels per latent position; the feed-forward layers over the hidden size
B, T = "blocks.{}.", "transformer_blocks.{}."
EMB = T + "norm1.emb."  # diffusers has the embedders in every block, each a copy of the original's


KEYS = KeyMapping({
    "x_embedder.proj [D C p p]":        "pos_embed.proj",
    "t_embedder.mlp.0 [D 256]":         Copies(EMB + "timestep_embedder.linear_1"),
    "t_embedder.mlp.2 [D D]":           Copies(EMB + "timestep_embedder.linear_2"),
    "y_embedder.embedding_table.weight [Y D]": Copies(Parameter(EMB + "class_embedder.embedding_table.weight")),
    B + "adaLN_modulation.1 [6D D]":    ZeroInit(T + "norm1.linear"),
    B + "attn.qkv [3D D]":              (T + "attn1.to_q", T + "attn1.to_k", T + "attn1.to_v"),
    B + "attn.proj [D D]":              T + "attn1.to_out.0",
    B + "mlp.fc1 [F D]":                T + "ff.net.0.proj",
    B + "mlp.fc2 [D F]":                T + "ff.net.2",
    "final_layer.adaLN_modulation.1 [2D D]": ZeroInit("proj_out_1"),
    "final_layer.linear [R D]":         ZeroInit("proj_out_2"),
    positions.STORED + " [1 N D]":  Computed(positions.computed_table),
})  # fmt: skip

STOCK, EXACT_CLASS = "DiTTransformer2DModel", "DiTExactTransformer2DModel"
EXACT = "exact_timesteps"
FREQUENCIES = Amendment(
    "other timestep frequencies than DiT (10000^(-j/127) for 10000^(-j/128))",
    "block.norm1.emb.time_proj.downscale_freq_shift = 0",
)
AMENDED = Amended(STOCK, EXACT_CLASS, EXACT, (FREQUENCIES,))
FLAGS = (
    positions.IMAGE_SIZE,
    evidence.NUM_ATTENTION_HEADS,
    Flag(
        EXACT,
        bool,
        "DiT with diffusers' own class: true if whoever loads it runs the line of Python in the conversion's note.",
    ),
)

# Hidden size -> name, blocks, heads (facebookresearch/DiT, models.py). Heads have 64 channels, those of XL 72.
SIZES = {384: ("S", 12, 6), 768: ("B", 12, 12), 1024: ("L", 24, 16), 1152: ("XL", 28, 16)}
PIPELINE_NULL = 1000  # the label that the stock pipeline takes for the unconditional one, whatever the model


def describe(plan: Plan, state: State, findings: Findings) -> None:
    """Fill `findings`: what names, shapes and the positional table show, then the user's word, then convention."""
    evidence.sizes(plan, findings, mlp_ratio=MLP_RATIO)
    _classes(plan, findings)
    hidden, depth, patch = (findings[name].value for name in ("hidden_size", "depth", "patch_size"))
    name, blocks, usual = SIZES.get(hidden, ("", 0, 0))
    if (depth, bool(name)) == (blocks, True):
        findings.file("size", f"DiT-{name}/{patch}", f"hidden size {hidden}, {depth} blocks, patch {patch}")
    evidence.check_depth(findings, (blocks,) if name else (), f"DiT-{name} has")
    others = f"; the published sizes are {', '.join(map(str, SIZES))}, and this model has {hidden}" if hidden else ""
    evidence.heads(findings, state, usual or None, f"as in DiT-{name}, of hidden size {hidden}" if name else others)
    positions.check_width(findings)
    table = positions.read_table(plan, state, findings)
    positions.resolution(findings, state.config, table, vae_factor=VAE_FACTOR)
    if table and table.side > (patch or 1) and table.scale != 1:
        seen = f"{table.seen}: scale {table.scale:g}" if table.scale else table.seen
        stock = "the diffusers class computes the one of scale 1 and allows no other"
        findings.problems.append(f"{seen}, and {stock}")
    AMENDED.describe(findings)
    evidence.check_config(state.config, findings, num_embeds_ada_norm="num_classes")


def _classes(plan: Plan, findings: Findings) -> None:
    rows = plan.dims.get("Y")
    shown = plan.evidence.get("Y", "no tensor shows it")
    counted = f"{shown}: a row for each class, and the last for none, as diffusers counts"
    findings.file("num_classes", rows - 1 if rows else None, counted if rows else shown)
    if rows and rows != PIPELINE_NULL + 1:
        findings.diffusers_notes.append(
            f"its class table has {rows} rows, so that {rows - 1} is the label of no class (if it was trained to have "
            f"one); the stock DiTPipeline takes {PIPELINE_NULL} for it and cannot guide this model"
        )


def config(findings: Findings) -> dict[str, Any]:
    """`config.json` for the class with the original's frequencies, or for diffusers' own."""
    own = {"norm_type": "ada_norm_zero", "num_embeds_ada_norm": findings.value("num_classes")}
    return evidence.stock_config(findings, _class_name=AMENDED.class_name(findings), **own)


def buffer_mismatch(findings: Findings, difference: float) -> tuple[bool, str]:
    """Words for a `pos_embed` that recomputing does not give; the net adds it to its input whatever it is."""
    if rounded := positions.up_to_rounding(findings, difference):
        return True, rounded
    if drift := positions.drifted(difference):
        return True, positions.use_exact_table(findings, drift, "image_size")
    return False, (
        f"is not the sin-cos table of its size (by up to {difference:.2g}), which is all that the diffusers class "
        "computes: the converted model would be another one"
    )


CLASSES = (f"converter.models.dit.dit_transformer:{EXACT_CLASS}",)
# Of the two classes, neither shows in the weights: which of them a folder is for, the nets show.
IGNORABLE_CONFIG = evidence.INERT | {"_class_name": ("Transformer2DModel", STOCK, EXACT_CLASS)}

DIT = Family(
    "dit", "DiT", KEYS, describe, config=config, classes=CLASSES, flags=FLAGS, buffer_mismatch=buffer_mismatch,
    storing=DRIFT, ignorable_config=IGNORABLE_CONFIG, parity="converter.models.dit.parity:PARITY",
)  # fmt: skip
