"""The statistics against NumPy, one bad number at a time, and what is not finite."""

from __future__ import annotations

from math import inf, isinf, isnan, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.parity.statistics import compare, relative

shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3])
)


def numbers(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@settings(max_examples=60)
@given(shapes, st.integers(0, 2**32 - 1), st.floats(-9, 1), st.floats(-4, 4))
def test_against_numpy(sizes: tuple[int, int, int, int, int], seed: int, error: float, scale: float) -> None:
    n, c, rows, columns, patch = sizes
    shape = (n, c, rows * patch, columns * patch)
    b = numbers(seed, shape) * 10**scale
    a = b + numbers(seed + 1, shape) * 10 ** (scale + error)
    made = compare(a, b, patch)
    x, y = a.numpy(), b.numpy()
    d = x - y
    rms = np.sqrt(np.mean(y**2))
    close = {"rel": 1e-9, "abs": 1e-300}
    assert made.scale == pytest.approx(rms, **close)
    assert made.gated["relative L2"] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(y), **close)
    assert made.gated["max abs over RMS"] == pytest.approx(np.abs(d).max() / rms, **close)
    channels = [np.sqrt(np.mean(d[:, i] ** 2)) for i in range(c)]
    assert made.gated["worst channel"] == pytest.approx(max(channels) / rms, **close)
    places = [np.sqrt(np.mean(d[:, :, i::patch, j::patch] ** 2)) for i in range(patch) for j in range(patch)]
    assert made.gated["worst patch position"] == pytest.approx(max(places) / rms, **close)
    assert made.shown["mean signed bias"] == pytest.approx(np.mean(d) / rms, rel=1e-6, abs=1e-12)
    assert made.shown["quantile 50 %"] == pytest.approx(np.quantile(np.abs(d), 0.5) / rms, **close)
    assert made.shown["quantile 99 %"] == pytest.approx(np.quantile(np.abs(d), 0.99) / rms, **close)
    assert made.shown["cosine"] == pytest.approx(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    noise_db = 10 * np.log10(np.sum(y**2) / np.sum(d**2))
    assert made.shown["SQNR in dB"] == pytest.approx(noise_db, rel=1e-9, abs=1e-6)
    index = np.unravel_index(np.argmax(np.abs(d)), shape)
    assert str(made.shown["worst index"]).startswith(f"{[int(i) for i in index]}: ")
    assert made.nonfinite == (0, 0)


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    b = numbers(1, (2, 4, 32, 32))
    return b.clone(), b


def test_one_bad_pixel_is_seen_in_the_peak() -> None:
    a, b = pair()
    a[1, 2, 5, 7] += 1e-3
    made = compare(a, b, 2)
    assert made.gated["max abs over RMS"] == pytest.approx(1e-3, rel=0.1)
    assert made.gated["relative L2"] < 2e-5  # spread over all it is nothing
    assert str(made.shown["worst index"]).startswith("[1, 2, 5, 7]: ")
    assert f"{float(a[1, 2, 5, 7]):.9g} for {float(b[1, 2, 5, 7]):.9g}" in str(made.shown["worst index"])


def test_one_bad_channel_is_seen() -> None:
    a, b = pair()
    a[:, 3] += 1e-3
    made = compare(a, b, 2)
    assert made.gated["worst channel"] == pytest.approx(1e-3, rel=0.1)
    assert made.gated["worst channel"] == pytest.approx(2 * made.gated["relative L2"], rel=0.01)  # one of four
    assert made.gated["worst patch position"] == pytest.approx(made.gated["relative L2"], rel=0.01)


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_one_bad_position_inside_every_patch_is_seen(place: tuple[int, int]) -> None:
    a, b = pair()
    a[:, :, place[0] :: 2, place[1] :: 2] += 1e-3
    made = compare(a, b, 2)
    assert made.gated["worst patch position"] == pytest.approx(1e-3, rel=0.1)
    assert made.gated["worst patch position"] == pytest.approx(2 * made.gated["relative L2"], rel=0.01)
    assert made.gated["worst channel"] == pytest.approx(made.gated["relative L2"], rel=0.01)
    assert compare(a, b, 1).gated["worst patch position"] == pytest.approx(made.gated["relative L2"], rel=0.01)


def test_bias_has_its_sign() -> None:
    _, b = pair()
    scale = float(b.square().mean().sqrt())
    assert compare(b + 0.5, b).shown["mean signed bias"] == pytest.approx(0.5 / scale)
    assert compare(b - 0.5, b).shown["mean signed bias"] == pytest.approx(-0.5 / scale)


def test_what_is_equal() -> None:
    a, b = pair()
    made = compare(a, b, 2)
    assert {*made.gated.values(), made.shown["mean signed bias"]} == {0}
    assert made.shown["cosine"] == pytest.approx(1)
    assert made.shown["SQNR in dB"] == inf


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_not_finite(bad: float) -> None:
    a, b = pair()
    a[0, 0, 0, :3] = bad
    made = compare(a, b)
    assert made.nonfinite == (3, 0)
    assert set(made.gated.values()) == {inf}
    assert made.scale > 0
    assert compare(b, a).nonfinite == (0, 3)
    assert compare(a, a).nonfinite == (3, 3)
    assert compare(a, a).gated["relative L2"] == inf  # never 0, though bits are equal


def test_a_reference_of_zeros() -> None:
    zeros = torch.zeros(1, 2, 4, 4)
    nothing = compare(zeros, zeros)
    assert (nothing.scale, nothing.gated["relative L2"], nothing.shown["cosine"]) == (0, 0, 0)
    something = compare(zeros + 0.5, zeros)
    assert something.scale == 0
    assert something.gated["max abs over RMS"] == 0.5
    assert something.gated["relative L2"] > 0
    numbers = [*something.gated.values(), *something.shown.values()]
    assert not any(isnan(value) for value in numbers if isinstance(value, float))


def test_a_candidate_of_zeros() -> None:
    _, b = pair()
    made = compare(torch.zeros_like(b), b)
    assert made.gated["relative L2"] == pytest.approx(1)
    assert made.shown["cosine"] == 0


def test_low_precision_is_compared_in_float64() -> None:
    b = torch.full((1, 1, 2, 2), 256.0, dtype=torch.bfloat16)
    a = b.double() + 1e-9
    assert compare(a, b).gated["relative L2"] == pytest.approx(1e-9 / 256, rel=1e-4)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2, 4, 4\] and \[1, 2, 4, 2\]"):
        compare(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 2))


def test_quantiles_of_more_numbers_than_torch_takes() -> None:
    b = torch.ones(1, 1, 4096, 4100, dtype=torch.float32)  # torch.quantile stops at 2 ** 24
    made = compare(b * 1.5, b)
    assert (made.shown["quantile 50 %"], made.shown["quantile 99 %"]) == (0.5, 0.5)


# Errors by a stage's own work.


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(-6, 6))
def test_relative_by_the_update(seed: int, size: float) -> None:
    """A block that adds little to a large stream is judged by what it adds."""
    base = numbers(seed, (3, 5)) * 10**size
    update, error = numbers(seed + 1, (3, 5)), numbers(seed + 2, (3, 5)) * 1e-3
    truth = base + update
    wanted = float(error.norm() / update.norm())
    assert relative(truth + error, truth, base) == pytest.approx(wanted, rel=1e-4)
    assert relative(truth + error, truth) == pytest.approx(float(error.norm() / truth.norm()), rel=1e-4)


def test_relative_of_nothing() -> None:
    x, zeros = torch.ones(3), torch.zeros(3)
    assert relative(x, x, x) == 0  # no work, no error
    assert isinf(relative(x + 1, x, x))  # no work, an error
    assert relative(zeros, zeros) == 0
    assert isinf(relative(x, zeros))


@pytest.mark.parametrize("bad", [nan, inf])
def test_relative_of_what_is_not_finite(bad: float) -> None:
    x = torch.ones(3)
    wrong = torch.tensor([1, bad, 1])
    assert relative(wrong, x) == inf
    assert relative(x, wrong) == inf
    assert relative(x, x, wrong) == inf
