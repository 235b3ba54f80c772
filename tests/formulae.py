"""The PixArt nets once more, as their formulae read: NumPy, float64, loops over samples, tokens and heads.

It shares nothing with the reference but the sinusoids of numbers, which are float32 by definition: those are passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from converter.models.dit.net import DiTShape
from converter.models.pixart.net import PixArtShape

Array = np.ndarray[Any, np.dtype[Any]]
State = Mapping[str, Array]


def affine(state: State, name: str, x: Array) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)


def affine_norm(state: State, name: str, x: Array) -> Array:
    return norm(x, 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def place(row: int, column: int, grid: tuple[int, int], hidden: int, base: int, scale: float) -> Array:
    """The positional vector of one patch."""
    made = []
    for index, count in ((column, grid[1]), (row, grid[0])):
        position = float(np.float32(np.float32(index) / np.float32(count / base)) / np.float32(scale))
        angles = [position / 10000 ** (j / (hidden // 4)) for j in range(hidden // 4)]
        made += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return np.array(made)


def patches(state: State, shape: PixArtShape | DiTShape, image: Array, table: Array | None) -> Array:
    """The tokens of one image (C, H, W)."""
    side, kernel = shape.patch_size, state["x_embedder.proj.weight"]
    rows, columns = image.shape[1] // side, image.shape[2] // side
    made = []
    for row in range(rows):
        for column in range(columns):
            cut = image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            token = np.array([(cut * one).sum() for one in kernel]) + state["x_embedder.proj.bias"]
            if table is None:
                base = shape.input_size // side
                token = token + place(row, column, (rows, columns), shape.hidden_size, base, shape.scale)
            else:
                token = token + table[row * columns + column]
            made.append(token)
    return np.array(made)


def attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    width = q.shape[-1] // heads
    made = np.zeros_like(q)
    for head in range(heads):
        cut = slice(head * width, (head + 1) * width)
        for i in range(len(q)):
            scores = np.array([q[i, cut] @ key[cut] for key in k]) / math.sqrt(width)
            odds = np.exp(scores - scores.max())
            made[i, cut] = (odds / odds.sum()) @ v[:, cut]
    return made


def compressed(state: State, tokens: Array, grid: tuple[int, int], sampling: str, factor: int) -> Array:
    """(N, D) -> (M, D), one token after the other."""
    rows, columns = grid
    if sampling == "uniform_every":
        return np.array([tokens[i] for i in range(0, len(tokens), factor)])
    made = []
    for row in range(rows // factor):
        for column in range(columns // factor):
            if sampling in ("ave", "uniform"):
                made.append(tokens[row * factor * columns + column * factor])
                continue
            total = state["sr.bias"].copy()
            for i in range(factor):
                for j in range(factor):
                    token = tokens[(row * factor + i) * columns + column * factor + j]
                    total = total + token * state["sr.weight"][:, 0, i, j]
            made.append(affine_norm(state, "norm", total))
    return np.array(made)


def below(state: State, prefix: str) -> State:
    return {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}


def block(state: State, shape: PixArtShape, index: int, x: Array, y: Array, t0: Array, grid: tuple[int, int]) -> Array:
    """One sample: x (N, D), y (kept tokens, D), t0 (6 * D)."""
    rows = state["scale_shift_table"] + t0.reshape(6, -1)
    hidden = norm(x, 1e-6) * (1 + rows[1]) + rows[0]

    attn = below(state, "attn.")
    q, k, v = np.split(affine(attn, "qkv", hidden), 3, axis=-1)
    if shape.qk_norm:
        q, k = affine_norm(attn, "q_norm", q), affine_norm(attn, "k_norm", k)
    how = shape.compression
    if how is not None and index in how.blocks:
        k, v = (compressed(attn, a, grid, how.sampling, how.factor) for a in (k, v))
    x = x + rows[2] * affine(attn, "proj", attention(q, k, v, shape.num_heads))

    q = affine(state, "cross_attn.q_linear", x)
    k, v = np.split(affine(state, "cross_attn.kv_linear", y), 2, axis=-1)
    x = x + affine(state, "cross_attn.proj", attention(q, k, v, shape.num_heads))

    hidden = norm(x, 1e-6) * (1 + rows[4]) + rows[3]
    return x + rows[5] * affine(state, "mlp.fc2", gelu(affine(state, "mlp.fc1", hidden)))


def image(tokens: Array, grid: tuple[int, int], side: int, channels: int) -> Array:
    """The output (C, H, W) of tokens that are patches, pixel by pixel."""
    rows, columns = grid
    made = np.zeros((channels, rows * side, columns * side))
    for row in range(rows):
        for column in range(columns):
            for p in range(side):
                for q in range(side):
                    first = (p * side + q) * channels
                    pixel = tokens[row * columns + column][first : first + channels]
                    made[:, row * side + p, column * side + q] = pixel
    return made


def forward(
    state: State, shape: PixArtShape, inputs: State, sinusoid: Callable[[float], Array], copied_blocks: int = 0
) -> Array:
    """Sample by sample. `sinusoid` gives the 256 channels of a number."""
    base = below(state, "base_model.") if copied_blocks else state

    def number(name: str, value: float) -> Array:
        return affine(base, f"{name}.mlp.2", silu(affine(base, f"{name}.mlp.0", sinusoid(value))))

    made = []
    for i, latent in enumerate(inputs["latent"]):
        side = shape.patch_size
        grid = latent.shape[1] // side, latent.shape[2] // side
        x = patches(base, shape, latent, None if shape.multi_scale else base["pos_embed"][0])
        t = number("t_embedder", inputs["timestep"][i])
        if shape.micro_condition:
            height, width = (number("csize_embedder", value) for value in inputs["img_hw"][i])
            t = t + np.concatenate([height, width, number("ar_embedder", inputs["aspect_ratio"][i, 0])])
        t0 = affine(base, "t_block.1", silu(t))
        kept = inputs["caption"][i][inputs["caption_mask"][i] != 0]
        y = affine(base, "y_embedder.y_proj.fc2", gelu(affine(base, "y_embedder.y_proj.fc1", kept)))

        c = patches(base, shape, inputs["control"][i], None) if copied_blocks else None
        for j in range(shape.depth):
            if c is not None and 1 <= j <= copied_blocks:
                copy = below(state, f"controlnet.{j - 1}.")
                if j == 1:
                    c = x + affine(copy, "before_proj", c)
                c = block(below(copy, "copied_block."), shape, j - 1, c, y, t0, grid)
                x = x + affine(copy, "after_proj", c)
            x = block(below(base, f"blocks.{j}."), shape, j, x, y, t0, grid)

        shift, scale = base["final_layer.scale_shift_table"] + t
        tokens = affine(base, "final_layer.linear", norm(x, 1e-6) * (1 + scale) + shift)
        made.append(image(tokens, grid, side, shape.out_channels))
    return np.array(made)
