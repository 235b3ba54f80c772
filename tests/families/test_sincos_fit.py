"""The scale of a table that was rounded or averaged: exact, or none where it is not beyond doubt; never a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from averaged import averaged
from hypothesis import given
from hypothesis import strategies as st
from makers import sincos

from converter.families.sincos import DRIFT, Fit, fit

SCALES = (0.15, 0.25, 0.5, 0.75, 1.0, 1.37, 1.5, 2.0, 2.02, 3.0, 4.0)
HALF, BRAIN = torch.float16, torch.bfloat16


def fitted(table: Any, step: int = 37) -> Fit | None:
    values = np.asarray(table)[0]
    side = round(len(values) ** 0.5)

    def rows() -> Iterator[tuple[int, Any]]:
        for first in range(0, len(values), step):
            yield first, values[first : first + step]

    return fit(rows, values.shape[1], side)


def noisy(table: torch.Tensor, size: float) -> torch.Tensor:
    return table + size * torch.randn(table.shape, generator=torch.Generator().manual_seed(3))


CHANGES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "as it was": (lambda t: t, ""),
    "in float64": (lambda t: t.double(), ""),
    "float16 and widened": (lambda t: t.half().float(), "float16"),
    "bfloat16 and widened": (lambda t: t.bfloat16().float(), "bfloat16"),
    "float16, bfloat16 and widened": (lambda t: t.half().bfloat16().float(), "bfloat16"),
    "float16 in float64": (lambda t: t.half().double(), "float16"),
    "averaged": (lambda t: averaged(t, 0.999, 200), ""),
    "averaged, then bfloat16": (lambda t: averaged(t, 0.999, 200).bfloat16().float(), None),
    "shrunk": (lambda t: t * 0.999, ""),
    "noise of 1e-3": (lambda t: noisy(t, 1e-3), ""),
}  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", CHANGES)
def test_the_scale_is_read_whatever_was_done_to_the_table(name: str, scale: float) -> None:
    change, rounded = CHANGES[name]
    made = fitted(change(sincos(48, 32, scale)))
    assert made
    assert made.scale == scale
    assert made.difference <= DRIFT
    assert rounded is None or made.rounded == rounded


@pytest.mark.parametrize("decay", [0.99, 0.9999])
def test_an_average_of_thousands_of_updates(decay: float) -> None:
    made = fitted(averaged(sincos(16, 32, 1.5), decay, 3000))
    assert made
    assert made.scale == 1.5
    assert made.difference == pytest.approx(1.6e-4, rel=0.2) if decay > 0.99 else made.difference < 1e-4


@given(
    st.integers(1, 1000),
    st.integers(0, 2),
    st.sampled_from([(16, 2), (16, 3), (12, 4), (24, 8), (40, 17), (16, 32)]),
    st.sampled_from(["none", "float16", "bfloat16", "float16-bfloat16"]),
    st.floats(0, 2e-3),
    st.integers(0, 2**32),
)
def test_no_rounding_and_no_drift_makes_another_scale_of_it(
    number: int, digits: int, sizes: tuple[int, int], rounding: str, drift: float, seed: int
) -> None:
    """The law: the true scale, or none and so it is asked for."""
    scale = number / 10**digits
    if not 0.05 <= scale <= 64:
        return
    table = sincos(*sizes, scale)
    # A drift is towards zero, other in every element, and the same wherever a value is the same.
    random = np.random.default_rng(seed).uniform(0, drift, table.numel())
    _, where = np.unique(table.numpy(), return_inverse=True)
    table = table * (1 - torch.from_numpy(random[where.reshape(-1)]).float().reshape(table.shape))
    for name in rounding.replace("none", "").split("-"):
        table = table.to(getattr(torch, name)).float() if name else table
    made = fitted(table)
    assert made is None or made.scale in (None, scale)


@pytest.mark.parametrize("size", [1e-2, 0.1, 1.0])
def test_what_is_further_off_than_a_drift_has_no_scale(size: float) -> None:
    made = fitted(noisy(sincos(48, 32, 1.5), size))
    assert made
    assert made.scale is None
    assert made.difference > DRIFT


def begun() -> torch.Tensor:
    table = sincos(48, 32, 2.0)
    table[0, 100:] = torch.randn(924, 48, generator=torch.Generator().manual_seed(1))
    return table


def one_wrong() -> torch.Tensor:
    table = sincos(48, 32, 2.0)
    table[0, 500, 7] += 0.5
    return table


def transposed() -> torch.Tensor:
    return sincos(48, 32, 2.0).roll(24, dims=-1)


OTHERS: dict[str, Callable[[], torch.Tensor]] = {
    "random": lambda: torch.randn(1, 1024, 48, generator=torch.Generator().manual_seed(2)),
    "begins like one": begun,
    "one element": one_wrong,
    "height first": transposed,
    "backwards": lambda: sincos(48, 32, 2.0).flip(1),
    "ones": lambda: torch.ones(1, 1024, 48),
    "zeros": lambda: torch.zeros(1, 1024, 48),
    "NaN": lambda: sincos(48, 32, 2.0).index_fill_(1, torch.tensor([9]), float("nan")),
    "infinite": lambda: sincos(48, 32, 2.0) * float("inf"),
    "huge": lambda: sincos(48, 32, 2.0).double() * 1e200,
}


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_table_has_a_scale(name: str) -> None:
    made = fitted(OTHERS[name]())
    assert made is None or made.scale is None


def test_rows_that_are_not_those_of_the_table() -> None:
    table = sincos(16, 4, 2.0)[0].numpy()
    for wrong in (table[:-1], np.concatenate([table, table]), table[:, :-4]):
        assert fit(lambda wrong=wrong: iter([(0, wrong)]), 16, 4) is None


@pytest.mark.parametrize("step", [1, 5, 8, 64, 1000])
def test_the_pieces_that_it_comes_in_change_nothing(step: int) -> None:
    assert fitted(sincos(16, 8, 1.5).half().float(), step) == fitted(sincos(16, 8, 1.5).half().float())
