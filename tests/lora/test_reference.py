"""What a merge has to give: the formulas element by element, and a bound that float32 keeps and errors do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

from converter.checkpoint.dtypes import F32, DType
from converter.lora.changes import Change
from converter.lora.lycoris import Hadamard, Kronecker
from converter.lora.names import ORIGINAL
from converter.lora.placed import Placed
from converter.lora.products import Full, Held, LowRank, Product, Replaced
from converter.lora.reference import reference

Array = np.ndarray[Any, Any]
RANK, OUT, IN, KERNEL = 3, 4, 6, 2


@dataclass
class Weight:
    """A tensor of a base, in memory."""

    array: Array
    dtype: DType = F32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def numpy(self) -> Array:
        return self.array


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def held(*shape: int, seed: int = 0) -> Held:
    return Held(drawn(*shape, seed=seed))


def each(shape: tuple[int, ...], value: Callable[..., float]) -> Array:
    """An array by the formula of one element."""
    return np.array([value(*place) for place in product(*map(range, shape))]).reshape(shape)


def total(formula: Callable[..., float], *ranges: int) -> float:
    return float(sum(formula(*place) for place in product(*map(range, ranges))))


def wide(factor: Held) -> Array:
    return np.asarray(factor.array, np.float64)


MATRIX, CONVOLUTION = (OUT, IN), (OUT, IN, KERNEL, KERNEL)


def lora() -> tuple[Product, Array]:
    one = LowRank(held(RANK, IN), held(OUT, RANK))
    a, b = wide(one.down), wide(one.up)
    return one, each(MATRIX, lambda o, i: total(lambda m: b[o, m] * a[m, i], RANK))


def convolution() -> tuple[Product, Array]:
    one = LowRank(held(RANK, IN, KERNEL, KERNEL), held(OUT, RANK, 1, 1))
    a, b = wide(one.down), wide(one.up)
    return one, each(CONVOLUTION, lambda o, i, k, m: total(lambda r: b[o, r, 0, 0] * a[r, i, k, m], RANK))


def tucker() -> tuple[Product, Array]:
    one = LowRank(held(RANK, IN, 1, 1), held(OUT, RANK, 1, 1), held(RANK, RANK, KERNEL, KERNEL))
    assert one.mid
    a, b, core = wide(one.down), wide(one.up), wide(one.mid)

    def value(o: int, i: int, k: int, m: int) -> float:
        return total(lambda r, s: b[o, r, 0, 0] * core[r, s, k, m] * a[s, i, 0, 0], RANK, RANK)

    return one, each(CONVOLUTION, value)


def loha() -> tuple[Product, Array]:
    one = Hadamard(held(OUT, RANK), held(RANK, IN), held(OUT, RANK, seed=1), held(RANK, IN, seed=1))
    halves = [wide(one.w1_a) @ wide(one.w1_b), wide(one.w2_a) @ wide(one.w2_b)]
    return one, each(MATRIX, lambda o, i: halves[0][o, i] * halves[1][o, i])


def loha_core() -> tuple[Product, Array]:
    a, b, core = (RANK, OUT), (RANK, IN), (RANK, RANK, KERNEL, KERNEL)
    one = Hadamard(
        held(*a), held(*b), held(*a, seed=1), held(*b, seed=1), held(*core), held(*core, seed=1)
    )  # fmt: skip

    def half(a: Array, b: Array, core: Array, o: int, i: int, k: int, m: int) -> float:
        return total(lambda r, s: core[r, s, k, m] * a[r, o] * b[s, i], RANK, RANK)

    assert one.t1
    assert one.t2
    sides = [(wide(one.w1_a), wide(one.w1_b), wide(one.t1)), (wide(one.w2_a), wide(one.w2_b), wide(one.t2))]
    return one, each(CONVOLUTION, lambda *place: half(*sides[0], *place) * half(*sides[1], *place))


def lokr() -> tuple[Product, Array]:
    one = Kronecker(w1=held(2, 3), w2_a=held(2, RANK), w2_b=held(RANK, 2))
    assert one.w1
    assert one.w2_a
    assert one.w2_b
    first, second = wide(one.w1), wide(one.w2_a) @ wide(one.w2_b)
    return one, each(MATRIX, lambda o, i: first[o // 2, i // 2] * second[o % 2, i % 2])


def lokr_core() -> tuple[Product, Array]:
    one = Kronecker(
        w1_a=held(2, 1), w1_b=held(1, 3), w2_a=held(RANK, 2), w2_b=held(RANK, 2), t2=held(RANK, RANK, KERNEL, KERNEL)
    )
    assert one.w1_a
    assert one.w1_b
    assert one.w2_a
    assert one.w2_b
    assert one.t2
    first, a, b, core = wide(one.w1_a) @ wide(one.w1_b), wide(one.w2_a), wide(one.w2_b), wide(one.t2)

    def value(o: int, i: int, k: int, m: int) -> float:
        inner = total(lambda r, s: core[r, s, k, m] * a[r, o % 2] * b[s, i % 2], RANK, RANK)
        return float(first[o // 2, i // 2] * inner)

    return one, each(CONVOLUTION, value)


def lokr_whole() -> tuple[Product, Array]:
    one = Kronecker(w1=held(2, 2), w2=held(2, 3, KERNEL, KERNEL))
    assert one.w1
    assert one.w2
    first, second = wide(one.w1), wide(one.w2)
    return one, each(CONVOLUTION, lambda o, i, k, m: first[o // 2, i // 3] * second[o % 2, i % 3, k, m])


def full() -> tuple[Product, Array]:
    one = Full(held(*MATRIX))
    return one, wide(one.diff)


PRODUCTS = (lora, convolution, tucker, loha, loha_core, lokr, lokr_core, lokr_whole, full)
made = pytest.mark.parametrize("make", PRODUCTS, ids=lambda make: make.__name__)


def placed(weight: Array, *changes: tuple[float, Change]) -> Placed:
    return Placed(None, [Weight(weight)], ORIGINAL, [(s, ORIGINAL, [change]) for s, change in changes])


@made
def test_a_product_is_added_at_its_scale_and_strength(make: Callable[[], tuple[Product, Array]]) -> None:
    one, right = make()
    weight = drawn(*right.shape, seed=7)
    exact, doubt = reference(placed(weight, (0.7, Change(one, 1.5))))
    expected = weight.astype(np.float64) + 0.7 * 1.5 * right
    assert np.abs(exact.numpy() - expected).max() < 1e-13
    assert doubt.min() > 0
    assert doubt.max() < 2e-4


@made
@pytest.mark.parametrize("axis", [0, 1])
def test_dora_on_either_axis(make: Callable[[], tuple[Product, Array]], axis: int) -> None:
    one, right = make()
    weight, count = drawn(*right.shape, seed=7), right.shape[axis]
    magnitude = np.abs(drawn(count, seed=3)) + 1
    change = Change(one, 1.5, magnitude=Held(magnitude), axis=axis)
    exact, _ = reference(placed(weight, (0.7, change)))
    value = np.moveaxis(weight + 0.7 * 1.5 * right, axis, 0)
    for row in range(count):
        length = float(np.sqrt((value[row] ** 2).sum()))
        expected = magnitude[row] * value[row] / length
        assert np.abs(np.moveaxis(exact.numpy(), axis, 0)[row] - expected).max() < 1e-12


def test_a_replacement_takes_the_place_of_the_tensor_by_its_strength() -> None:
    weight, other = drawn(*MATRIX, seed=7), held(*MATRIX)
    for strength in (1.0, 0.25):
        exact, _ = reference(placed(weight, (strength, Change(Replaced(other)))))
        expected = weight.astype(np.float64) * (1 - strength) + strength * wide(other)
        assert np.abs(exact.numpy() - expected).max() < 1e-15


def test_several_add_up_each_to_the_base() -> None:
    (one, right), (two, other) = lora(), full()
    weight, magnitude = drawn(*MATRIX, seed=7), np.ones(OUT, np.float32)
    exact, _ = reference(
        placed(weight, (0.5, Change(one)), (2.0, Change(two)), (1.0, Change(one, magnitude=Held(magnitude))))
    )
    value = weight + right
    unit = value / np.sqrt((value**2).sum(1, keepdims=True))
    assert np.abs(exact.numpy() - (0.5 * right + 2 * other + unit)).max() < 1e-12


@made
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_float32_keeps_within_the_bound_and_a_thousandth_of_a_part_does_not(
    make: Callable[[], tuple[Product, Array]], axis: int | None
) -> None:
    one, right = make()
    weight = drawn(*right.shape, seed=7)
    magnitude = None if axis is None else Held(np.abs(drawn(right.shape[axis], seed=3)) + 1)
    change = Change(one, 0.3, magnitude=magnitude, axis=axis or 0)
    exact, doubt = (each.numpy() for each in reference(placed(weight, (0.9, change))))
    merged = weight + change.difference(weight, 0.9)
    assert merged.dtype == np.float32
    assert (np.abs(merged - exact) <= doubt + np.abs(exact) * 2.0**-24).all()
    wrong = weight + change.difference(weight, 0.901)
    assert (np.abs(wrong - exact) > doubt + np.abs(exact) * 2.0**-24).mean() > 0.9


def test_a_long_sum_in_the_worst_order_keeps_within_the_bound() -> None:
    rank = 4096
    one = LowRank(Held(np.ones((rank, 1), np.float32)), Held(drawn(8, rank) + np.float32(1)))
    _, doubt = reference(placed(np.zeros((8, 1), np.float32), (1.0, Change(one))))
    exact = wide(one.up).sum(1)
    added = np.zeros(8, np.float32)
    for column in one.up.array.T:
        added += column
    assert (np.abs(added - exact) <= doubt.numpy()[:, 0]).all()
