"""The positional table: its bits are diffusers' and the original's, and its scale can be read off two elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from hypothesis import given
from hypothesis import strategies as st
from makers import GOLDEN, sincos
from shaped import ROUNDING, rounded

from converter import open_checkpoint
from converter.families.sincos import SinCosTable, scale_of

SCALES = (0.5, 1.0, 2.0, 4.0)
DTYPES = tuple(ROUNDING)


def whole(table: SinCosTable) -> np.ndarray:
    return table.rows(0, table.side**2, table.axis())


@pytest.mark.parametrize("pixels", [256, 512, 1024, 2048])
@pytest.mark.parametrize("scale", [*SCALES, 0.75, 1.5, 3.0, 2.02])  # at the last four the positions are rounded
def test_bit_equal_to_the_table_of_diffusers(pixels: int, scale: float) -> None:
    hidden, side = (1152, pixels // 16) if pixels < 2048 else (72, 128)  # the large table, narrower
    theirs = get_2d_sincos_pos_embed(hidden, side, interpolation_scale=scale, base_size=side, output_type="pt").float()
    ours = torch.from_numpy(whole(SinCosTable(hidden, side, scale)))
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, sincos(hidden, side, scale)[0])  # the original's, by another road


@pytest.mark.parametrize(
    ("name", "side", "scale"),
    [
        ("alpha-ms", 32, 2.0),
        ("alpha-fixed", 16, 1.0),
        ("sigma-ms", 32, 1.0),
        ("sigma-kvcompress", 32, 2.0),
        ("sigma-qknorm", 16, 0.5),
    ],
)
def test_bit_equal_to_what_the_original_nets_saved(name: str, side: int, scale: float) -> None:
    table = SinCosTable(48, side, scale)
    with open_checkpoint(GOLDEN / f"{name}.pth") as checkpoint:
        stored = checkpoint["pos_embed"]
        assert stored.shape == table.shape
        assert stored.read() == whole(table).tobytes()


@given(st.sampled_from(SCALES), st.integers(1, 6), st.integers(1, 5), st.data())
def test_an_element_is_that_of_the_whole(scale: float, quarter: int, side: int, data: st.DataObject) -> None:
    table = SinCosTable(4 * quarter, side, scale)
    token, channel = data.draw(st.integers(0, side**2 - 1)), data.draw(st.integers(0, 4 * quarter - 1))
    assert abs(table.element(token, channel) - float(whole(table)[token, channel])) < 1e-6


def test_a_token_holds_sine_and_cosine_of_its_column_then_of_its_row() -> None:
    table = whole(SinCosTable(8, 3, 0.5)).reshape(3, 3, 2, 2, 2)
    assert table.dtype == np.float32
    for row in range(3):
        for column in range(3):
            for axis, position in enumerate((column / 0.5, row / 0.5)):
                angles = position * np.array([1, 1e-2])
                wanted = np.stack([np.sin(angles), np.cos(angles)])
                np.testing.assert_allclose(table[row, column, axis], wanted, rtol=0, atol=1e-7)


@given(st.integers(0, 49), st.integers(0, 49))
def test_any_run_of_tokens_is_that_of_the_whole_table(one: int, other: int) -> None:
    table = SinCosTable(12, 7, 2.0)
    start, stop = sorted((one, other))
    assert np.array_equal(table.rows(start, stop, table.axis()), whole(table)[start:stop])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [*SCALES, 2.02, 2.01, 1.5, 3.0, 8.0])
def test_the_scale_is_exact_in_every_dtype(scale: float, dtype: torch.dtype) -> None:
    sine, cosine = (rounded(f(1 / scale), dtype) for f in (math.sin, math.cos))
    assert scale_of(sine, cosine, ROUNDING[dtype]) == scale


def test_of_a_table_that_the_original_saved_too() -> None:
    with open_checkpoint(GOLDEN / "sigma-qknorm.pth") as checkpoint:
        table = checkpoint["pos_embed"].numpy()
    assert scale_of(float(table[0, 1, 0]), float(table[0, 1, 12]), 2e-7) == 0.5


@given(st.integers(40, 1000))
def test_two_decimals_are_read_exactly_from_float32(hundredths: int) -> None:
    scale = hundredths / 100
    sine, cosine = (rounded(f(1 / scale), torch.float32) for f in (math.sin, math.cos))
    assert scale_of(sine, cosine, ROUNDING[torch.float32]) == scale


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_elements_have_no_scale(dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    for sine, cosine in random.standard_normal((300, 2)):
        if abs(math.hypot(sine, cosine) - 1) > 2 * ROUNDING[dtype]:
            assert scale_of(rounded(sine, dtype), rounded(cosine, dtype), ROUNDING[dtype]) is None


@pytest.mark.parametrize(
    ("sine", "cosine"),
    [(0.0, 1.0), (0.0, 0.0), (-0.1, 0.9), (math.nan, 1.0), (0.5, math.nan), (math.inf, 0.0), (1e-300, 1.0), (0.6, 0.7)],
)
def test_nor_have_these(sine: float, cosine: float) -> None:
    assert scale_of(sine, cosine, 2e-7) is None
