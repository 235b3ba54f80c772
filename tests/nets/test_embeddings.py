"""Sinusoids of numbers and of positions."""

from __future__ import annotations

import math

import formulae
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import sincos

from converter.nets.layers import embed_numbers, sinusoid
from converter.nets.patches import position_table


@given(st.floats(0, 1000, width=32))
def test_sinusoid(number: float) -> None:
    got = sinusoid(torch.tensor([number]))[0].double().numpy()
    angles = number / 10000 ** (np.arange(128) / 128)
    # The rounding of the angle: half a unit of its frequency, half of the product, some of the exponential.
    rounding = 1e-7 + 4 * angles * 2**-24 * math.log(10000)
    assert (np.abs(got[:128] - np.cos(angles)) <= rounding).all()
    assert (np.abs(got[128:] - np.sin(angles)) <= rounding).all()


def test_sinusoid_is_float32_inside() -> None:
    numbers = torch.tensor([0.0, 1.0, 500.5, 999.0])
    wide = sinusoid(numbers.double())
    assert wide.dtype == torch.float64
    assert torch.equal(wide, sinusoid(numbers).double())
    half = sinusoid(numbers.half())
    assert half.dtype == torch.float16
    assert torch.equal(half, sinusoid(numbers).half())


def test_numbers_of_a_sample_stand_side_by_side() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"mlp.0.weight": (5, 256), "mlp.0.bias": (5,), "mlp.2.weight": (3, 5), "mlp.2.bias": (3,)}
    weights = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    both = embed_numbers(weights, torch.tensor([[7.0, 8.0], [9.0, 10.0]]))
    assert both.shape == (2, 6)
    for sample, numbers in enumerate([(7.0, 8.0), (9.0, 10.0)]):
        for place, number in enumerate(numbers):
            alone = embed_numbers(weights, torch.tensor([[number]]))[0]
            torch.testing.assert_close(both[sample, 3 * place : 3 * place + 3], alone)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 2.02, 3.0, 4.0])
@pytest.mark.parametrize("side", [16, 32])
def test_table_as_the_training_code_stores_it(side: int, scale: float) -> None:
    made = torch.from_numpy(position_table((side, side), 48, side, scale))
    assert made.dtype == torch.float64
    assert torch.equal(made.float(), sincos(48, side, scale))


@settings(max_examples=30)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    base=st.integers(1, 64),
    scale=st.sampled_from([0.5, 1.0, 2.0, 2.02]),
)
def test_table_of_any_grid(rows: int, columns: int, base: int, scale: float) -> None:
    made = position_table((rows, columns), 16, base, scale)
    assert made.shape == (1, rows * columns, 16)
    for row in range(rows):
        for column in range(columns):
            expected = formulae.place(row, column, (rows, columns), 16, base, scale)
            np.testing.assert_allclose(made[0, row * columns + column], expected, rtol=0, atol=1e-12)


def test_positions_span_the_base_grid_whatever_the_grid() -> None:
    """So says the original, and so the golden outputs at two aspect ratios."""
    wide = position_table((4, 8), 4, 32, 2.0)[0].reshape(4, 8, 4)
    step = 32 / 8 / 2.0
    np.testing.assert_allclose(wide[0, :, 0], [math.sin(step * i) for i in range(8)], atol=1e-12)
    step = 32 / 4 / 2.0
    np.testing.assert_allclose(wide[:, 0, 2], [math.sin(step * i) for i in range(4)], atol=1e-12)
