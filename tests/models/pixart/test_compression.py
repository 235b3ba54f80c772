"""Each way of KV compression against a loop over its tokens."""

from __future__ import annotations

from typing import Any

import formulae
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.models.pixart.attention import compress, pixart_attention
from converter.models.pixart.compression import Compression

D = 8
SAMPLINGS = ("conv", "ave", "uniform", "uniform_every")
WEIGHT_FREE = ("ave", "uniform", "uniform_every")


def drawn(factor: int, grid: tuple[int, int], seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights of an attention, and tokens (2, N, D)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "qkv.weight": (3 * D, D),
        "qkv.bias": (3 * D,),
        "proj.weight": (D, D),
        "proj.bias": (D,),
        "sr.weight": (D, 1, factor, factor),
        "sr.bias": (D,),
        "norm.weight": (D,),
        "norm.bias": (D,),
    }
    weights = {key: torch.randn(shape, generator=draw, dtype=torch.float64) for key, shape in shapes.items()}
    return weights, torch.randn(2, grid[0] * grid[1], D, generator=draw, dtype=torch.float64)


def by_loops(weights: dict[str, torch.Tensor], tokens: torch.Tensor, grid: tuple[int, int], how: Any) -> np.ndarray:
    arrays = {key: t.numpy() for key, t in weights.items()}
    return np.array([formulae.compressed(arrays, one, grid, how.sampling, how.factor) for one in tokens.numpy()])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=25)
@given(factor=st.integers(1, 4), rows=st.integers(1, 4), columns=st.integers(1, 4), seed=st.integers(0, 99))
def test_like_the_loop(sampling: Any, factor: int, rows: int, columns: int, seed: int) -> None:
    how, grid = Compression(sampling, factor, frozenset()), (rows * factor, columns * factor)
    weights, tokens = drawn(factor, grid, seed)
    got = compress(weights, tokens, grid, how)
    if factor == 1:  # the original compresses nothing then, and has no convolution either
        assert torch.equal(got, tokens)
        return
    expected = by_loops(weights, tokens, grid, how)
    assert got.shape == expected.shape
    assert got.shape[1] == (rows * columns * factor if sampling == "uniform_every" else rows * columns)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-11, atol=1e-11)
    if sampling in WEIGHT_FREE:
        np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("sampling", ["conv", "ave"])
@pytest.mark.parametrize("grid", [(5, 4), (4, 7), (7, 5)])
def test_what_does_not_fill_a_window_is_left_out(sampling: Any, grid: tuple[int, int]) -> None:
    how = Compression(sampling, 2, frozenset())
    weights, tokens = drawn(2, grid)
    got = compress(weights, tokens, grid, how)
    assert got.shape == (2, (grid[0] // 2) * (grid[1] // 2), D)
    np.testing.assert_allclose(got.numpy(), by_loops(weights, tokens, grid, how), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("sampling", "grid"), [("uniform", (5, 4)), ("uniform", (4, 5)), ("uniform_every", (5, 3)), ("max", (4, 4))]
)
def test_where_the_original_fails(sampling: Any, grid: tuple[int, int]) -> None:
    weights, tokens = drawn(2, grid)
    with pytest.raises(ValueError, match=sampling):
        compress(weights, tokens, grid, Compression(sampling, 2, frozenset()))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_inside_the_attention(sampling: Any) -> None:
    """Keys and values alike, the queries not."""
    how, grid = Compression(sampling, 2, frozenset({0})), (4, 6)
    weights, tokens = drawn(2, grid)
    got = pixart_attention(weights, tokens, grid, 2, compression=how)
    arrays = {key: t.numpy() for key, t in weights.items()}
    for sample, x in zip(got, tokens.numpy(), strict=True):
        q, k, v = np.split(formulae.affine(arrays, "qkv", x), 3, axis=-1)
        k, v = (formulae.compressed(arrays, a, grid, sampling, 2) for a in (k, v))
        expected = formulae.affine(arrays, "proj", formulae.attention(q, k, v, 2))
        np.testing.assert_allclose(sample.numpy(), expected, rtol=1e-11, atol=1e-11)
